"""The ROI processor's modes and its attention."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model

from modeling_regionmed_clip.region_pooling import box_coverage, roi_align_weights
from modeling_regionmed_clip.roi_processor import CrossAttention

TOLERANCE = {"atol": 1e-5, "rtol": 0}  # float32


def regions_of(model, batch, **changes):
    keys = ("pixel_values", "region_boxes", "region_mask")
    return model.get_region_features(**{**{key: batch[key] for key in keys}, **changes}).pooler_output


@pytest.mark.parametrize("mode", ["roialign", "maskpool"])
def test_a_pooling_mode_is_the_projected_mean_of_the_patches_and_nothing_more(mode):
    model, batch = tiny_model(roi_mode=mode), tiny_batch()
    patches, _, _ = model.encode_patches(batch["pixel_values"])
    coverage = box_coverage(batch["region_boxes"], (4, 4)).flatten(2)
    weights = coverage / coverage.sum(-1, keepdim=True)
    if mode == "roialign":
        weights = roi_align_weights(batch["region_boxes"], (4, 4))
    roi = model.roi_processor
    expected = roi.projection(roi.output_norm(weights @ patches)) * batch["region_mask"][..., None]
    torch.testing.assert_close(regions_of(model, batch), expected, **TOLERANCE)
    assert not any("prompter" in name for name, _ in model.named_parameters())


def test_a_mask_changes_the_region_but_not_for_roialign_which_sees_its_box_alone():
    batch = tiny_batch()
    coverage = box_coverage(batch["region_boxes"], (4, 4))
    coverage[..., 2:, :] = 0  # the upper half of each region
    for mode, is_blind in (("prompter", False), ("maskpool", False), ("roialign", True)):
        model = tiny_model(roi_mode=mode)
        whole, upper = regions_of(model, batch), regions_of(model, batch, region_coverage=coverage)
        assert torch.equal(whole, upper) is is_blind, mode


def test_the_prompter_tells_apart_two_places_of_one_flat_image():
    model = tiny_model(roi_mode="prompter")
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.zero_()  # the tower itself knows no places
    flat = torch.full((1, 3, 48, 48), 0.3)
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 0.25], [0.75, 0.75, 1.0, 1.0]]])
    near, far = torch.nn.functional.normalize(model.get_region_features(flat, boxes).pooler_output[0], dim=-1)
    assert near @ far < 0.999
    pooled = tiny_model(roi_mode="maskpool")
    with torch.no_grad():
        pooled.vision_model.embeddings.position_embedding.weight.zero_()
    near, far = pooled.get_region_features(flat, boxes).pooler_output[0]
    torch.testing.assert_close(near, far, **TOLERANCE)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_depth_and_heads_follow_the_config(num_layers):
    model = tiny_model(roi_num_layers=num_layers, roi_num_heads=4, fusion_num_heads=2)
    assert len(model.roi_processor.prompter.blocks) == num_layers
    assert regions_of(model, tiny_batch()).isfinite().all()


@pytest.mark.parametrize("has_mask", [False, True])
def test_eager_and_fused_attention_agree(has_mask):
    torch.manual_seed(0)
    config = tiny_config()
    attention = CrossAttention(config, 32, 4)
    queries, keys = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]]) if has_mask else None
    found = {}
    for name in ("eager", "sdpa"):
        config._attn_implementation = name
        found[name] = attention(queries, keys, keys, mask)
    torch.testing.assert_close(found["eager"], found["sdpa"], **TOLERANCE)
    if has_mask:
        moved = keys.clone()
        moved[1, 3:] += 5.0
        torch.testing.assert_close(attention(queries, moved, moved, mask)[1], found["sdpa"][1], **TOLERANCE)
