"""RegionMedClipModel: the guarantees of DESIGN.md section 3 that hold before training."""

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_model

from modeling_regionmed_clip import RegionMedClipModel

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
    model(**tiny_batch(), return_loss=True).loss.backward()
    zero_by_mathematics = {name for name, _ in model.named_parameters() if name.endswith("k_proj.bias")}
    zero_by_mathematics |= {name for name, _ in model.named_parameters() if name.endswith("attention.self.key.bias")}
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0}
    assert still <= zero_by_mathematics


def test_regions_never_touch_the_global_embedding():
    model, batch = tiny_model(), tiny_batch()
    with_regions = model(**batch).image_embeds
    plain = model(pixel_values=batch["pixel_values"]).image_embeds
    assert torch.equal(with_regions, plain)
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), plain, **TOLERANCE)


def test_fusion_changes_nothing_at_first_and_something_once_alpha_moves():
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    torch.testing.assert_close(output.fused_image_embeds, output.image_embeds, **TOLERANCE)
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
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


def test_a_batch_equals_its_images_one_by_one():
    model, batch = tiny_model(), tiny_batch()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    whole = model(**image_part(batch))
    for i in range(3):
        single = model(**image_part(batch, slice(i, i + 1)))
        for name in ("image_embeds", "region_embeds", "fused_image_embeds"):
            torch.testing.assert_close(single[name][0], whole[name][i], **TOLERANCE)


def test_bfloat16_stays_near_float32():
    model, batch = tiny_model(), tiny_batch()
    exact = model(**batch).region_embeds
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**batch).region_embeds
    torch.testing.assert_close(rough.float(), exact, atol=3e-2, rtol=0)


def test_coverage_of_the_same_boxes_gives_the_same_regions():
    from modeling_regionmed_clip.roi_processor import box_coverage

    model, batch = tiny_model(), tiny_batch()
    coverage = box_coverage(batch["region_boxes"], (4, 4))
    by_box = model.get_region_features(**image_part(batch)).pooler_output
    by_coverage = model.get_region_features(**image_part(batch), region_coverage=coverage).pooler_output
    torch.testing.assert_close(by_coverage, by_box, **TOLERANCE)


def test_a_patch_taken_as_a_region_is_its_dense_feature():
    from modeling_regionmed_clip.roi_processor import patch_boxes

    model, pixels = tiny_model(), tiny_batch()["pixel_values"]
    dense = model.get_dense_features(pixels)  # (B, D, h, w)
    assert dense.shape == (3, 16, 4, 4)
    boxes = patch_boxes((4, 4), pixels.device).expand(3, -1, -1)
    regions = model.get_region_features(pixels, boxes).pooler_output  # (B, P, D)
    torch.testing.assert_close(dense.flatten(2).transpose(1, 2), regions, **TOLERANCE)


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
        ({"region_coverage": torch.ones(3, 2, 7, 7)}, r"region_coverage has shape .*\(3, 2, 4, 4\).*patch_size 12"),
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
