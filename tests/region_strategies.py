"""Hypothesis strategies for images of any size, how they lie in a frame, and regions in them."""

import numpy as np
from hypothesis import strategies as st

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.region_boxes import FrameGeometry

UNIT = st.floats(0, 1)
IMAGE_SIZES = st.one_of(
    st.tuples(st.integers(1, 4000), st.integers(1, 3000)), st.sampled_from([(1, 1), (1, 3000), (4000, 1), (4000, 3000)])
)
PROCESSORS = {
    "pad": RegionMedClipImageProcessor(size=224, patch_size=16),
    "pad, wide frame": RegionMedClipImageProcessor(size={"height": 224, "width": 320}, patch_size=32),
    "squash": RegionMedClipImageProcessor(geometry="source", size={"height": 384, "width": 384}, patch_size=16),
    "centre crop": RegionMedClipImageProcessor(
        geometry="source", size={"shortest_edge": 256}, do_center_crop=True, crop_size=224, patch_size=14
    ),
}
SHAPES = ["box", "ellipse", "diamond", "corner", "ring"]
PROCESSOR_NAMES = st.sampled_from(sorted(PROCESSORS))


def visible_box(geometry: FrameGeometry) -> np.ndarray:
    """(4,) float64: the part of the original image, in its pixels, that lies inside the frame."""
    corners = []
    for axis in (0, 1):
        num_pixels, scale, offset, frame_px = geometry.along_axis(axis)
        corners.append((max(0.0, -offset / scale), min(float(num_pixels), (frame_px - offset) / scale)))
    return np.array([corners[0][0], corners[1][0], corners[0][1], corners[1][1]])


@st.composite
def boxes_within(draw, size):
    """(4,) float64: a box of at least one pixel along x and y inside an image of (width, height) pixels."""
    sides = []
    for length in size:
        start = draw(UNIT) * (length - 1)
        sides.append((start, min(float(length), start + 1 + draw(UNIT) * (length - 1 - start))))
    return np.array([sides[0][0], sides[1][0], sides[0][1], sides[1][1]])


@st.composite
def geometries_with_shapes(draw, min_side_in_frame=0.0):
    """A geometry, and one mask (H, W) bool whose tight box has sides of at least so many frame pixels in the frame."""
    name = draw(PROCESSOR_NAMES)
    processor = PROCESSORS[name]
    geometry = processor.geometry_for(*draw(IMAGE_SIZES.filter(lambda size: _fits(processor, size, min_side_in_frame))))
    visible = visible_box(geometry)
    sides = []
    for axis in (0, 1):
        num_pixels, scale, _, _ = geometry.along_axis(axis)
        first, last = int(np.ceil(visible[axis])), int(np.floor(visible[axis + 2]))
        if last <= first:
            first, last = max(0, first - 1), min(num_pixels, last + 1)
        shortest = min(last - first, max(1, int(np.ceil(min_side_in_frame / scale))))
        length = shortest + int(draw(UNIT) * (last - first - shortest))
        start = first + int(draw(UNIT) * (last - first - length))
        sides.append((start, start + length))
    kind = draw(st.sampled_from(SHAPES))
    mask = np.zeros((geometry.original[1], geometry.original[0]), dtype=bool)
    (x0, x1), (y0, y1) = sides
    mask[y0:y1, x0:x1] = shape_of(kind, x1 - x0, y1 - y0)
    return geometry, mask


def _fits(processor, size, min_side):
    """Whether a region with sides of so many frame pixels fits into the visible part of such an image."""
    geometry = processor.geometry_for(*size)
    x0, y0, x1, y1 = visible_box(geometry)
    whole = ((np.floor(x1) - np.ceil(x0)) * geometry.scale_x, (np.floor(y1) - np.ceil(y0)) * geometry.scale_y)
    return min(whole) >= min_side


def shape_of(kind, width, height):
    """(height, width) bool: a shape that touches all sides."""
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]
    corner = (x < 0) | (y < 0)
    shapes = {
        "box": np.ones((height, width), dtype=bool),
        "ellipse": x**2 + y**2 <= 1,
        "diamond": np.abs(x) + np.abs(y) <= 1,
        "corner": corner,
        "ring": (np.abs(x) > 0.4) | (np.abs(y) > 0.4),
    }
    mask = shapes[kind]
    return mask if mask.any() else np.ones((height, width), dtype=bool)
