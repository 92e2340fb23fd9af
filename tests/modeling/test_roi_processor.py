"""Coverage and pooling against independent numpy sums."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_regionmed_clip.roi_processor import box_coverage, patch_boxes, pool_regions


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
