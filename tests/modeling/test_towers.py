"""Vision towers: which token is which patch, what the pooled state is, other image sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model
from tiny_towers import (
    IMAGE_SIZE,
    PATCH_SIZE,
    SIDE,
    TEXT_TOWERS,
    VISION_TOWERS,
    model_with,
    saved_tower,
    tower_config,
)

from modeling_regionmed_clip import RegionMedClipModel
from modeling_regionmed_clip.towers import build_tower, grid_of, read_patches, run_vision_tower

EXACT = {"atol": 0.0, "rtol": 0.0}  # float32
CLOSE = {"atol": 1e-5, "rtol": 0.0}  # float32
OTHER_SIZES = [(72, 72), (36, 60), (24, 96)]  # the last has as many patches as the native size, in another shape


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Name -> a random checkpoint of that vision tower, as the library saved and loaded it."""
    return {
        name: saved_tower(fields, tmp_path_factory.mktemp("tower"), seed)
        for seed, (name, (fields, _)) in enumerate(VISION_TOWERS.items())
    }


def pixels(height=IMAGE_SIZE, width=IMAGE_SIZE, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def patches_of(tower, image, image_pooling="tower"):
    outputs = run_vision_tower(tower, image)
    return read_patches(tower, outputs, grid_of(tower.config, image), image_pooling)


@pytest.mark.parametrize("size", [(IMAGE_SIZE, IMAGE_SIZE), (36, 60)])
@pytest.mark.parametrize("name", VISION_TOWERS)
def test_each_row_of_patches_answers_to_the_pixels_of_its_own_square(name, size):
    tower = build_tower(tower_config(VISION_TOWERS[name][0], num_hidden_layers=0), "tower").eval()
    height, width = size[0] // PATCH_SIZE, size[1] // PATCH_SIZE
    image = pixels(*size, count=1)
    before, _ = patches_of(tower, image)
    assert before.shape == (1, height * width, 32)
    for row in range(height):
        for column in range(width):
            changed = image.clone()
            top, left = row * PATCH_SIZE, column * PATCH_SIZE
            changed[..., top : top + PATCH_SIZE, left : left + PATCH_SIZE] += 1 + torch.rand(PATCH_SIZE, PATCH_SIZE)
            after, _ = patches_of(tower, changed)
            moved = (after - before).abs().amax(dim=-1)[0] > 1e-4
            assert moved.nonzero().flatten().tolist() == [row * width + column]


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_the_prefix_is_class_token_and_registers(checkpoints, name):
    tower, num_prefix = checkpoints[name], VISION_TOWERS[name][1]
    states = tower(pixel_values=pixels()).last_hidden_state
    assert states.shape[1] == num_prefix + SIDE * SIDE
    expected = states[:, num_prefix:]
    if name == "clip":  # the library norms the class token alone
        expected = tower.post_layernorm(expected)
    patches, _ = patches_of(tower, pixels())
    torch.testing.assert_close(patches, expected, **EXACT)


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_patches_come_after_the_last_norm(name):
    tower = build_tower(tower_config(VISION_TOWERS[name][0]), "mean")  # norms at their start: gain 1, shift 0
    patches, pooled = patches_of(tower, pixels(), "mean")
    torch.testing.assert_close(patches.mean(dim=-1), torch.zeros(2, SIDE * SIDE), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(dim=-1, correction=0), torch.ones(2, SIDE * SIDE), atol=1e-2, rtol=0)
    torch.testing.assert_close(pooled, patches.sum(dim=1) / (SIDE * SIDE), **CLOSE)


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_the_pooled_state_of_a_checkpoint_is_the_librarys_own(checkpoints, name):
    tower, image = checkpoints[name], pixels()
    model = model_with(tower, None)
    theirs = tower(pixel_values=image)
    # a ViT's class token comes without the dense layer, which its self-supervised and ImageNet checkpoints do not train
    expected = theirs.last_hidden_state[:, 0] if name == "vit" else theirs.pooler_output
    _, pooled, _ = model.encode_patches(image)
    torch.testing.assert_close(pooled, expected, **EXACT)
    assert pooled.shape == (2, model.config.pooled_image_width)


def test_the_dense_pooling_layer_of_a_vit_is_kept_on_demand(tmp_path):
    tower = saved_tower({**VISION_TOWERS["vit"][0], "pooler_output_size": 20}, tmp_path)
    model = model_with(tower, None, image_pooling="pooler")
    _, pooled, _ = model.encode_patches(pixels())
    assert model.visual_projection.in_features == 20
    torch.testing.assert_close(pooled, tower(pixel_values=pixels()).pooler_output, **EXACT)


@pytest.mark.parametrize("pooling", ["tower", "mean"])
@pytest.mark.parametrize("name", VISION_TOWERS)
def test_every_vision_parameter_gets_a_gradient(name, pooling):
    model = tiny_model(vision_config=VISION_TOWERS[name][0], image_pooling=pooling).train()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.1)
    model(**tiny_batch(), return_loss=True).loss.backward()
    named = dict(model.vision_model.named_parameters())
    # softmax does not see what all keys share
    zero_by_mathematics = {n for n in named if n.endswith(("k_proj.bias", "key.bias"))}
    still = {n for n, parameter in named.items() if parameter.grad is None or not parameter.grad.abs().max() > 0}
    assert still <= zero_by_mathematics


@pytest.mark.parametrize("name", ["dinov2", "dinov2 with registers", "dinov3"])
def test_a_mask_token_is_a_buffer_that_survives_saving(checkpoints, name, tmp_path):
    model = model_with(checkpoints[name], None)
    assert not any("mask_token" in n for n, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = RegionMedClipModel.from_pretrained(tmp_path)
    expected = checkpoints[name].embeddings.mask_token
    assert expected.abs().max() > 0
    assert torch.equal(loaded.vision_model.embeddings.mask_token, expected)


def test_siglips_head_is_not_built_where_patches_are_pooled():
    given = tower_config(VISION_TOWERS["siglip"][0])
    model = tiny_model(vision_config=given, image_pooling="mean")
    assert not hasattr(model.vision_model, "head")
    assert getattr(given, "vision_use_head", True)  # the caller's own config is left alone
    with pytest.raises(ValueError, match=r"image_pooling is 'tower'.*vision_use_head False.*image_pooling='mean'"):
        tiny_config(vision_config=model.config.vision_config)


@pytest.mark.parametrize("size", OTHER_SIZES)
@pytest.mark.parametrize("name", VISION_TOWERS)
def test_other_image_sizes_interpolate_positions_as_the_library_does(checkpoints, name, size):
    tower, image = checkpoints[name], pixels(*size)
    model = model_with(tower, None)
    asked = {"interpolate_pos_encoding": True} if name in ("clip", "siglip", "vit") else {}
    theirs = tower(pixel_values=image, **asked)
    expected = theirs.last_hidden_state[:, 0] if name == "vit" else theirs.pooler_output
    patches, pooled, _ = model.encode_patches(image)
    torch.testing.assert_close(pooled, expected, **EXACT)
    height, width = size[0] // PATCH_SIZE, size[1] // PATCH_SIZE
    assert patches.shape == (2, height * width, 32)
    assert model.get_dense_features(image).shape == (2, 16, height, width)
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 0.5]]]).expand(2, -1, -1)
    output = model(pixel_values=image, region_boxes=boxes)
    assert output.region_embeds.isfinite().all()
    assert output.proposal_logits.shape[1] == height * width


def test_a_box_on_a_larger_image_still_reads_its_own_half():
    model = tiny_model(roi_mode="maskpool", vision_config={**VISION_TOWERS["clip"][0], "num_hidden_layers": 0})
    image = pixels(48, 72, count=1)
    changed = image.clone()
    changed[..., 36:] = 0.0  # the right half
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]])
    before, after = (model.get_region_features(x, boxes).pooler_output[0] for x in (image, changed))
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_the_native_size_takes_no_interpolation(checkpoints, name, monkeypatch):
    model, image = model_with(checkpoints[name], None), pixels()
    expected = model.get_image_features(image).pooler_output
    forward = model.vision_model.forward

    def unasked(*args, interpolate_pos_encoding=False, **kwargs):
        assert not interpolate_pos_encoding  # traced for export, the library would interpolate even here
        return forward(*args, **kwargs)

    def refuse(*_, **__):
        raise AssertionError("positions were interpolated at the native size")

    monkeypatch.setattr(model.vision_model, "forward", unasked)
    monkeypatch.setattr(torch.nn.functional, "interpolate", refuse)
    for arguments in ({}, {"interpolate_pos_encoding": True}, {"interpolate_pos_encoding": False}):
        assert torch.equal(model.get_image_features(image, **arguments).pooler_output, expected)


def test_arguments_of_one_tower_do_not_reach_the_other(monkeypatch):
    model, batch = tiny_model(), tiny_batch()
    calls = {}
    for part in ("vision_model", "text_model"):
        tower = getattr(model, part)
        forward = tower.forward

        def note(*args, part=part, forward=forward, **kwargs):
            calls[part] = kwargs
            return forward(*args, **kwargs)

        monkeypatch.setattr(tower, "forward", note)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    token_types = torch.zeros_like(batch["input_ids"])
    model(pixel_values=pixels(72, 72), **inputs, interpolate_pos_encoding=True, token_type_ids=token_types)
    assert calls["vision_model"]["interpolate_pos_encoding"] is True
    assert "interpolate_pos_encoding" not in calls["text_model"]
    assert calls["text_model"]["token_type_ids"] is token_types
    assert "token_type_ids" not in calls["vision_model"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((50, 48), r"pixel_values are 50 x 48 pixels.*multiples of the vision tower's patch_size 12.*48 x 48"),
        ((48, 5), r"48 x 5 pixels.*for instance 48 x 12"),
        ((0, 48), r"0 x 48 pixels"),
    ],
)
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().get_image_features(torch.zeros(1, 3, *size))


def test_a_tower_of_one_size_refuses_another():
    model = tiny_model(vision_config={**VISION_TOWERS["clip"][0], "model_type": "mlcd_vision_model"})
    assert model.get_image_features(pixels()).pooler_output.shape == (2, 16)
    with pytest.raises(ValueError, match=r"72 x 48 pixels.*'mlcd_vision_model' takes 48 x 48 only"):
        model.get_image_features(pixels(72, 48))


REFUSED = [
    ({"model_type": "siglip2_vision_model"}, r"siglip2_vision_model'.*NaFlex.*fixed-resolution SigLIP2 checkpoint"),
    ({"model_type": "siglip2"}, r"'siglip2'.*NaFlex"),
    ({"model_type": "clip"}, r"'clip', a model of several towers.*from_clip_pretrained"),
    ({"model_type": "vit_mae"}, r"vit_mae'.*shuffles patches.*use vit"),
    ({"model_type": "yolos"}, r"yolos'.*after the patches"),
    ({**VISION_TOWERS["vit"][0], "image_size": 50}, r"image_size 50 and patch_size 12; the patch size must divide"),
    ({**VISION_TOWERS["vit"][0], "image_size": [48, 48]}, r"image_size \[48, 48\].*one whole number"),
    (TEXT_TOWERS["bert"][0], r"vision_config \(bert\) has image_size None"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
@pytest.mark.parametrize("as_object", [False, True])
def test_what_is_no_fixed_grid_of_patches_is_refused_by_name(fields, message, as_object):
    with pytest.raises(ValueError, match=message):
        tiny_config(vision_config=tower_config(fields) if as_object else fields)


def test_a_tower_whose_tokens_are_no_patches_is_refused_when_it_speaks():
    model = tiny_model()
    outputs = model.vision_model(pixel_values=pixels())
    with pytest.raises(ValueError, match=r"'clip_vision_model' gives a state of shape \(2, 17, 32\) for 6 x 6 patches"):
        read_patches(model.vision_model, outputs, (6, 6), "tower")


def test_a_tower_without_any_pooled_state_asks_for_the_mean():
    fields = {**VISION_TOWERS["vit"][0], "model_type": "ijepa"}
    with pytest.raises(ValueError, match=r"'ijepa' has neither a pooled output nor a class token.*'mean'"):
        tiny_model(vision_config=fields).get_image_features(pixels())
    assert tiny_model(vision_config=fields, image_pooling="mean").get_image_features(pixels()).pooler_output.shape
