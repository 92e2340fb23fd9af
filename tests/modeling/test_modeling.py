"""RegionMedClipModel: the guarantees of DESIGN.md section 3 that hold before training."""

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_model

from modeling_regionmed_clip import RegionMedClipModel
from modeling_regionmed_clip.region_pooling import box_coverage, patch_boxes

TOLERANCE = {"atol": 1e-5, "rtol": 0}  # float32

TOWERS = {
    "vit and bert": {
        "vision_config": {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "intermediate_size": 64, "image_size": 48, "patch_size": 12},
    },
    "siglip vision": {
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "intermediate_size": 64, "image_size": 48, "patch_size": 12},
    },
    "clip text": {
        "text_config": {"model_type": "clip_text_model", "hidden_size": 32, "num_hidden_layers": 1,
                        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": VOCAB_SIZE,
                        "eos_token_id": 4, "bos_token_id": 3, "pad_token_id": 1},
    },
    "mean pooling": {"image_pooling": "mean", "text_pooling": "mean"},
}  # fmt: skip


def image_part(batch, rows=slice(None)):
    return {key: batch[key][rows] for key in ("pixel_values", "region_boxes", "region_mask")}


def test_a_saved_model_comes_back_bit_equal(tmp_path):
    model, batch = tiny_model(), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded = RegionMedClipModel.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(**batch).logits_per_region, model(**batch).logits_per_region)


def test_every_parameter_moves_in_one_joint_step():
    model = tiny_model().train()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.1)
    negatives = torch.tensor([[[1], [2]], [[0], [-1]], [[-1], [-1]]])  # (B, R, N) rows of the region texts
    model(**tiny_batch(), negative_text_index=negatives, return_loss=True).loss.backward()
    zero_by_mathematics = {name for name, _ in model.named_parameters() if name.endswith("k_proj.bias")}
    zero_by_mathematics |= {name for name, _ in model.named_parameters() if name.endswith("attention.self.key.bias")}
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0}
    assert still <= zero_by_mathematics


def test_regions_never_touch_the_global_embedding():
    model, batch = tiny_model(), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    with_regions = model(**batch).image_embeds
    plain = model(pixel_values=batch["pixel_values"]).image_embeds
    assert torch.equal(with_regions, plain)
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), plain, **TOLERANCE)


def test_without_regions_the_roi_processor_and_the_fusion_do_not_even_run():
    model, batch = tiny_model(), tiny_batch()
    ran = []
    for part in (model.roi_processor, model.region_fusion):
        part.register_forward_pre_hook(lambda module, _: ran.append(type(module).__name__))
    model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"])
    model.get_image_features(batch["pixel_values"])
    assert ran == []
    model.get_image_features(**image_part(batch))
    assert ran == ["RoiProcessor", "RegionFusion"]


def test_fusion_changes_nothing_at_first_and_something_once_alpha_moves():
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    torch.testing.assert_close(output.fused_image_embeds, output.image_embeds, **TOLERANCE)
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    torch.nn.init.normal_(model.region_fusion.attention.v_proj.bias)  # zero before training: would hide what it adds
    output = model(**batch)
    difference = (output.fused_image_embeds - output.image_embeds).abs().amax(dim=1)
    assert (difference[:2] > 1e-3).all()
    assert difference[2] < 1e-5  # no region, no fusion


def test_padding_regions_change_nothing_and_are_exactly_zero():
    model, batch = tiny_model(), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    output = model(**image_part(batch))
    assert torch.equal(output.region_embeds[~batch["region_mask"]], torch.zeros(3, 16))
    moved = {**image_part(batch), "region_boxes": batch["region_boxes"].clone()}
    moved["region_boxes"][~batch["region_mask"]] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    again = model(**moved)
    torch.testing.assert_close(again.region_embeds, output.region_embeds, **TOLERANCE)
    torch.testing.assert_close(again.fused_image_embeds, output.fused_image_embeds, **TOLERANCE)


def test_a_padding_region_takes_no_part_in_any_loss_whatever_text_it_names():
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch, return_loss=True).loss_terms
    batch["region_text_index"] = torch.tensor([[0, 1], [2, 1], [0, 2]])  # the second and third image's padding too
    for name, term in model(**batch, return_loss=True).loss_terms.items():
        assert torch.equal(term, expected[name]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("roi_mode", ["prompter", "roialign", "maskpool"])
def test_whatever_padding_holds_reaches_no_output_and_no_gradient(roi_mode, bad):
    model, batch = tiny_model(roi_mode=roi_mode), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    batch["region_coverage"] = box_coverage(batch["region_boxes"], (4, 4))
    is_padding = ~batch["region_mask"]
    found = []
    for value in (0.0, bad):
        for name in ("region_boxes", "region_coverage"):
            batch[name][is_padding] = value
        for given in (batch, {name: tensor for name, tensor in batch.items() if name != "region_coverage"}):
            model.zero_grad()
            output = model(**given, return_loss=True)
            output.loss.backward()
            gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            found.append((output.region_embeds, output.fused_image_embeds, gradients))
    for clean, dirty in zip(found[:2], found[2:]):
        assert torch.equal(dirty[0], clean[0])
        assert torch.equal(dirty[1], clean[1])
        for name, gradient in clean[2].items():
            assert torch.equal(dirty[2][name], gradient), name


@pytest.mark.parametrize("roi_mode", ["prompter", "roialign", "maskpool"])
@pytest.mark.parametrize(
    "box",
    [(0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.8), (1.2, 1.2, 1.4, 1.4), (0.8, 0.8, 0.2, 0.2), (-3.0, -3.0, 4.0, 4.0)],
    ids=["point", "line", "outside", "inverted", "beyond"],
)
def test_a_degenerate_box_gives_finite_embeddings_losses_and_gradients(box, roi_mode):
    model, batch = tiny_model(roi_mode=roi_mode), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    batch["region_boxes"][:, 0] = torch.tensor(box)
    output = model(**batch, return_loss=True)
    output.loss.backward()
    assert output.region_embeds.isfinite().all()
    assert all(0 <= term.item() < 20 for term in output.loss_terms.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kinds", ["boxes", "a mask beside boxes", "proposed"])
def test_a_batch_equals_its_images_one_by_one(kinds, precision, atol):
    model, batch = tiny_model(proposal_threshold=0.01), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    part = image_part(batch)
    if kinds == "a mask beside boxes":
        part["region_coverage"] = box_coverage(batch["region_boxes"], (4, 4))
        part["region_coverage"][0, :, 1::2] *= 0.5  # the first image's regions are masks
    model.to(precision)
    part["pixel_values"] = part["pixel_values"].to(precision)

    def embed(pixel_values, **regions):
        if kinds == "proposed":
            return {"pooler_output": model.get_image_features(pixel_values, regions="proposed").pooler_output}
        output = model(pixel_values=pixel_values, **regions)
        return {name: output[name] for name in ("image_embeds", "region_embeds", "fused_image_embeds")}

    whole = embed(**part)
    for i, num_regions in enumerate((2, 1, 1)):  # alone, an image has no padding of its neighbours
        regions = {name: tensor[i : i + 1, :num_regions] for name, tensor in part.items() if name != "pixel_values"}
        for name, single in embed(part["pixel_values"][i : i + 1], **regions).items():
            expected = whole[name][i, :num_regions] if name == "region_embeds" else whole[name][i]
            torch.testing.assert_close(single[0], expected, atol=atol, rtol=0)


def test_bfloat16_stays_near_float32():
    model, batch = tiny_model(), tiny_batch()
    exact = model(**batch).region_embeds
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**batch).region_embeds
    torch.testing.assert_close(rough.float(), exact, atol=3e-2, rtol=0)


@pytest.mark.parametrize("has_coverage", [False, True])
def test_a_model_in_float16_stays_near_float32_padding_and_uncovered_regions_included(has_coverage):
    model, batch = tiny_model(), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    part = image_part(batch)
    if has_coverage:
        part["region_coverage"] = box_coverage(batch["region_boxes"], (4, 4))
        part["region_coverage"][0, 1] = 0.0
    exact = model(**part)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in part.items()}
    rough = model.half()(**halves)
    for name in ("image_embeds", "region_embeds", "fused_image_embeds"):
        torch.testing.assert_close(rough[name].float(), exact[name], atol=1e-2, rtol=0)  # float16, boxes too


def test_coverage_of_the_same_boxes_gives_the_same_regions():
    model, batch = tiny_model(), tiny_batch()
    coverage = box_coverage(batch["region_boxes"], (4, 4))
    by_box = model.get_region_features(**image_part(batch)).pooler_output
    by_coverage = model.get_region_features(**image_part(batch), region_coverage=coverage).pooler_output
    torch.testing.assert_close(by_coverage, by_box, **TOLERANCE)


@pytest.mark.parametrize("roi_mode", ["prompter", "roialign", "maskpool"])
def test_a_patch_taken_as_a_region_is_its_dense_feature(roi_mode):
    model, pixels = tiny_model(roi_mode=roi_mode), tiny_batch()["pixel_values"]
    dense = model.get_dense_features(pixels)  # (B, D, h, w)
    assert dense.shape == (3, 16, 4, 4)
    boxes = patch_boxes((4, 4), pixels.device).expand(3, -1, -1)
    regions = model.get_region_features(pixels, boxes).pooler_output  # (B, P, D)
    torch.testing.assert_close(dense.flatten(2).transpose(1, 2), regions, **TOLERANCE)


def test_in_a_frame_that_is_not_square_rows_are_rows_on_every_path():
    model = tiny_model(proposal_threshold=0.0)
    pixels = torch.randn(1, 3, 36, 60, generator=torch.Generator().manual_seed(0))  # 3 x 5 patches
    seen = []
    model.roi_processor.prompter.patch_encoding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    texts = tiny_batch()["input_ids"]
    heat = model.ground_phrases(pixels, texts).heat
    by_hand = [[x / 5, y / 3, (x + 1) / 5, (y + 1) / 3] for y in range(3) for x in range(5)]
    for boxes in seen:
        torch.testing.assert_close(boxes, torch.tensor(by_hand), **TOLERANCE)
    assert len(seen) == 2
    assert heat.shape == (1, 2, 3, 5)
    box = torch.tensor([[[3 / 5, 1 / 3, 4 / 5, 2 / 3]]])  # row 1, column 3
    region = model.get_region_features(pixels, box).pooler_output[0, 0]
    phrases = model.get_text_features(texts).pooler_output
    expected = torch.nn.functional.cosine_similarity(region[None], phrases, dim=-1)
    torch.testing.assert_close(heat[0, :, 1, 3], expected, **TOLERANCE)


@pytest.mark.parametrize("changes", TOWERS.values(), ids=TOWERS)
def test_other_towers_embed_texts_apart_and_ignore_padding(changes):
    model = tiny_model(**changes)
    ids = torch.tensor([[3, 8, 9, 4, 1, 1], [3, 9, 8, 4, 1, 1], [3, 8, 9, 10, 4, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    texts = model.get_text_features(ids, mask).pooler_output
    assert torch.pdist(texts).min() > 1e-4
    trimmed = model.get_text_features(ids[:2, :4], mask[:2, :4]).pooler_output
    torch.testing.assert_close(trimmed, texts[:2], **TOLERANCE)
    output = model(**image_part(tiny_batch()))
    assert output.region_embeds.shape == (3, 2, 16)
    assert output.image_embeds.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_boxes": torch.zeros(2, 1, 4)}, r"region_boxes has shape \(2, 1, 4\).*B = 3"),
        ({"region_boxes": torch.zeros(3, 0, 4)}, r"region_boxes has shape \(3, 0, 4\).*R at least 1.*row of padding"),
        ({"region_coverage": torch.ones(3, 2, 7, 7)}, r"region_coverage has shape .*\(3, 2, 4, 4\).*patch_size"),
        ({"region_mask": torch.ones(3, 2)}, r"region_mask has shape .*float32; it must be .*torch.bool"),
        ({"region_mask": torch.ones(3, 2, dtype=torch.int64)}, r"torch.int64; it must be .*region_mask.bool\(\)"),
        ({"region_mask": torch.ones(3, 1, dtype=torch.bool)}, r"shape \(3, 1\).*\(B, R\) = \(3, 2\)"),
        ({"region_mask": torch.ones(2, dtype=torch.bool)}, r"shape \(2,\).*\(B, R\) = \(3, 2\)"),
        ({"region_boxes": None}, r"region_mask came without region_boxes"),
        (
            {"region_boxes": None, "region_mask": None, "region_coverage": torch.ones(3, 2, 4, 4)},
            r"region_coverage came without region_boxes and would not be used",
        ),
    ],
)
def test_regions_of_a_wrong_shape_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{**image_part(tiny_batch()), **changes})


def test_a_temperature_above_its_maximum_has_a_gradient_and_is_brought_back():
    model = tiny_model(logit_scale_max=20.0)
    torch.nn.init.constant_(model.temperatures.image_text, 4.0)  # e^4 = 54.6
    model(**tiny_batch(), return_loss=True).loss.backward()
    assert model.temperatures.image_text.grad.abs() > 0
    model.temperatures.clamp_()
    assert model.temperatures("image_text").item() == pytest.approx(20.0, rel=1e-6)


def test_a_text_longer_than_the_tower_is_refused_with_the_way_out():
    model = tiny_model()
    limit = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"{limit + 1} tokens a text and the text tower {limit} positions; truncate"):
        model.get_text_features(torch.full((1, limit + 1), 5))


def test_a_loss_without_texts_or_with_ambiguous_texts_is_refused():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match="needs pixel_values and input_ids"):
        model(pixel_values=batch["pixel_values"], return_loss=True)
    with pytest.raises(ValueError, match="3 images and 2 texts; give text_index"):
        model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"], return_loss=True)
    with pytest.raises(ValueError, match="neither pixel_values nor input_ids"):
        model()
