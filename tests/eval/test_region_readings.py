"""The readings of a region: what each shows the model, and that none depends on the batch it came in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from regionmed_clip.eval.tasks.embedding import embed_examples, embed_readings
from regionmed_clip.eval.tasks.region_readings import (
    BLUR_SHARE,
    MEANING,
    READINGS,
    RED,
    blurred_around,
    circled,
    normalized,
)

BOXES = np.array(
    [[0.25, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]], dtype=np.float32
)  # of a frame of 40 x 20: 10..20, 10..15


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """(3, 20, 40) uint8 noise."""
    return np.random.default_rng(0).integers(0, 256, (3, 20, 40), dtype=np.uint8)


def test_a_blurred_background_leaves_the_box_as_it_is_and_blurs_the_rest_as_pillow_does(frame):
    first, whole = blurred_around(frame, BOXES)
    blurred = Image.fromarray(frame.transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(BLUR_SHARE * 20))
    expected = np.asarray(blurred).transpose(2, 0, 1).copy()
    expected[:, 10:15, 10:20] = frame[:, 10:15, 10:20]
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(whole, frame)


def test_a_red_circle_goes_around_the_box_and_changes_nothing_within_it(frame):
    shown, _ = circled(frame, BOXES)
    is_changed = (shown != frame).any(axis=0)
    assert not is_changed[10:15, 10:20].any()
    assert is_changed.any()
    assert (shown[:, is_changed] == np.array(RED)[:, None]).all()
    rows, columns = np.nonzero(is_changed)
    assert (rows.min() < 10, rows.max() >= 15, columns.min() < 10, columns.max() >= 20) == (True,) * 4


def test_prompts_leave_the_frame_itself_as_it_was(frame):
    before = frame.copy()
    list(blurred_around(frame, BOXES)), list(circled(frame, BOXES))
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("reading", READINGS)
def test_a_reading_of_many_images_is_that_of_each_alone(model, processor, draw_example, reading):
    examples = [draw_example(i, num_regions=i) for i in (2, 0, 1)]
    together = embed_examples(model, processor, examples, region_reading=reading, progress=False)
    alone = [embed_examples(model, processor, [e], region_reading=reading, progress=False) for e in examples]
    expected = np.concatenate([split.region_embeds for split in alone if split.num_regions])
    np.testing.assert_allclose(together.region_embeds, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.region_embeds, axis=1), 1.0, atol=1e-5)


def test_all_readings_differ_and_share_the_images(model, processor, draw_example):
    splits = embed_readings(model, processor, [draw_example(1)], readings=READINGS, progress=False)
    assert list(splits) == list(READINGS) == list(MEANING)
    embeds = [split.region_embeds for split in splits.values()]
    for i, first in enumerate(embeds):
        assert all(np.abs(first - other).max() > 1e-4 for other in embeds[i + 1 :])
        np.testing.assert_array_equal(list(splits.values())[i].image_embeds, splits["roi"].image_embeds)


def test_a_blurred_image_with_a_box_as_large_as_itself_reads_as_the_image(model, processor, draw_example):
    example = draw_example(0, num_regions=1, size=(32, 32))  # the frame itself, without black bars
    example["regions"][0]["box"] = [0, 0, 32, 32]
    embedded = embed_examples(model, processor, [example], region_reading="blur", progress=False)
    np.testing.assert_allclose(embedded.region_embeds, embedded.image_embeds, atol=1e-5)


def test_dense_readings_of_one_whole_patch_are_that_patch_under_the_images_projection(model, processor, draw_example):
    example = draw_example(0, num_regions=1, size=(32, 32))  # the frame itself: 4 x 4 patches of 8 pixels
    example["regions"][0]["box"] = [8, 16, 16, 24]
    for reading in ("dense_mean", "roialign"):
        embedded = embed_examples(model, processor, [example], region_reading=reading, progress=False)
        frame, _ = processor.image_processor.frame(example["image"]["bytes"])
        with torch.inference_mode():
            patches, _, _ = model.encode_patches(normalized(processor.image_processor, [frame], "cpu"))
            if reading == "dense_mean":  # row 2, column 1 of the grid
                mean = patches[0, 2 * 4 + 1]
            else:  # RoIAlign's samples lie between centres: 7 a side from x = 1 / 14 to 13 / 14 of the patch
                offsets = np.abs((np.arange(7) + 0.5) / 7 - 0.5)
                inner, outer = float(1 - offsets.mean()), float(offsets.mean() / 2)
                weights = torch.tensor([outer, inner, outer])
                grid = patches[0].reshape(4, 4, -1)[1:4, 0:3]
                mean = torch.einsum("y,x,yxc->c", weights, weights, grid)
            expected = torch.nn.functional.normalize(model.visual_projection(mean), dim=0)
        np.testing.assert_allclose(embedded.region_embeds[0], expected.numpy(), atol=1e-5)


def test_an_unknown_reading_is_refused_with_the_known_ones(model, processor, draw_example):
    with pytest.raises(ValueError, match=r"'glance'\] are not all known; choose from roi, crop, blur, red_circle"):
        embed_readings(model, processor, [draw_example(0)], readings=("roi", "glance"), progress=False)
