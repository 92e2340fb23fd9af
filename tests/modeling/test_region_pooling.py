"""Coverage and pooling against independent numpy sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_regionmed_clip.region_pooling import box_coverage, patch_boxes, pool_regions, roi_align_weights


@st.composite
def boxes(draw):
    x0, x1 = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    y0, y1 = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return x0, y0, x1, y1


def numpy_coverage(box, height, width):
    """Overlap of the box with each cell, cell by cell."""
    x0, y0, x1, y1 = box
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            along_x = max(0.0, min(x1, (column + 1) / width) - max(x0, column / width)) * width
            along_y = max(0.0, min(y1, (row + 1) / height) - max(y0, row / height)) * height
            expected[row, column] = along_x * along_y
    return expected


@given(boxes(), st.integers(1, 9), st.integers(1, 9))
def test_coverage_is_the_overlap_with_each_patch(box, height, width):
    found = box_coverage(torch.tensor([[box]]), (height, width))[0, 0].numpy()
    np.testing.assert_allclose(found, numpy_coverage(box, height, width), atol=2e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_pooling_a_ramp_gives_the_box_centre(dtype, atol):
    ramp = ((torch.arange(8) + 0.5) / 8).repeat(8).view(1, 64, 1).to(dtype)  # value = x of the patch's centre
    box = torch.tensor([[[0.125, 0.25, 0.5, 0.75]]])  # centre x = 0.3125
    pooled = pool_regions(ramp, box_coverage(box, (8, 8)).flatten(2))
    torch.testing.assert_close(pooled.float(), torch.full((1, 1, 1), 0.3125), atol=atol, rtol=0)


def test_a_box_of_one_pixel_of_a_large_film_still_reads_its_patch():
    patches = torch.arange(16.0).view(1, 16, 1)
    side = 1 / 4000
    pooled = pool_regions(
        patches, box_coverage(torch.tensor([[[0.6, 0.6, 0.6 + side, 0.6 + side]]]), (4, 4)).flatten(2)
    )
    assert pooled.item() == pytest.approx(10.0, abs=1e-4)  # row 2, column 2


def test_the_box_of_every_patch_covers_that_patch_alone():
    found = box_coverage(patch_boxes((2, 3), torch.device("cpu"))[None], (2, 3)).flatten(2)[0]
    torch.testing.assert_close(found, torch.eye(6), atol=1e-6, rtol=0)


def numpy_roi_align_mean(features, box):
    """Mean over the 7 x 7 bins of RoIAlign (half-pixel aligned, adaptive samples), bin by bin and sample by sample."""
    height, width, _ = features.shape
    x0, y0, x1, y1 = np.array(box) * [width, height, width, height] - 0.5
    samples_x, samples_y = (max(1, int(np.ceil(side / 7))) for side in (x1 - x0, y1 - y0))
    bins = []
    for row, column in np.ndindex(7, 7):
        values = []
        for i, j in np.ndindex(samples_y, samples_x):
            y = y0 + (row + (i + 0.5) / samples_y) * (y1 - y0) / 7
            x = x0 + (column + (j + 0.5) / samples_x) * (x1 - x0) / 7
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = features[top, left] * (1 - (x - left)) + features[top, right] * (x - left)
            lower = features[bottom, left] * (1 - (x - left)) + features[bottom, right] * (x - left)
            values.append(upper * (1 - (y - top)) + lower * (y - top))
        bins.append(np.mean(values, axis=0))
    return np.mean(bins, axis=0)


@settings(max_examples=40)
@given(boxes(), st.integers(1, 17), st.integers(1, 17))
def test_folded_weights_give_the_mean_of_roi_align(box, height, width):
    features = np.random.default_rng(0).standard_normal((height, width, 3))
    weights = roi_align_weights(torch.tensor([[box]]), (height, width))
    assert weights.shape == (1, 1, height * width)
    found = weights[0, 0].double().numpy() @ features.reshape(-1, 3)
    box32 = np.array(box, dtype=np.float32).astype(np.float64)  # the model's boxes are float32
    np.testing.assert_allclose(found, numpy_roi_align_mean(features, box32), atol=1e-5)


def numpy_masked_mean(features, mask, patch):
    """Mean of the patch features over the pixels of a mask, pixel by pixel."""
    rows, columns = np.nonzero(mask)
    return np.mean([features[row // patch, column // patch] for row, column in zip(rows, columns)], axis=0)


def test_a_mask_is_pooled_by_its_area_in_each_patch():
    features = np.random.default_rng(1).standard_normal((4, 5, 3))
    mask = np.zeros((4 * 8, 5 * 8), dtype=bool)
    mask[3:17, 6:9] = True
    mask[20:22, 11:37] = True
    coverage = mask.reshape(4, 8, 5, 8).mean(axis=(1, 3))
    pooled = pool_regions(
        torch.tensor(features).reshape(1, 20, 3), torch.tensor(coverage, dtype=torch.float64).reshape(1, 1, 20)
    )
    np.testing.assert_allclose(pooled[0, 0].numpy(), numpy_masked_mean(features, mask, 8), atol=1e-12)


def test_a_box_over_whole_patches_pools_them_alike_by_area_and_differs_from_roi_align_at_the_rim():
    ramp = torch.arange(8.0).view(1, 8, 1)  # one row of patches, their value their column
    box = torch.tensor([[[0.25, 0.0, 0.75, 1.0]]])  # columns 2 to 5
    area = pool_regions(ramp, box_coverage(box, (1, 8)).flatten(2))
    aligned = torch.bmm(roi_align_weights(box, (1, 8)), ramp)
    torch.testing.assert_close(area.flatten(), torch.tensor([3.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(aligned.flatten(), torch.tensor([3.5]), atol=1e-6, rtol=0)  # symmetric: the same mean
    assert roi_align_weights(box, (1, 8))[0, 0, 1] > 0  # its bilinear samples reach into column 1, coverage does not
