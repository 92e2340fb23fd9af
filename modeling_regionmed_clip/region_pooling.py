"""Regions as weights over patches: coverage of boxes, and the two pooling rules (area mean, folded RoIAlign).

Regions are fractions of the model's frame, (x0, y0, x1, y1), origin top-left, half-open.
Letters: B images, R regions, P = h x w patches in row-major order, C tower width.
"""

import torch
from torch import Tensor

COVERAGE_FLOOR = 1e-12  # far below the coverage of one pixel of a 4000-pixel image
ROI_ALIGN_BINS = 7  # along each side


def settle_regions(
    patches: Tensor, grid: tuple[int, int], boxes: Tensor, mask: Tensor | None, coverage: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, R, 4), mask (B, R) and coverage (B, R, P) of regions, all of them given or derived, padding rows zero.

    (What a padding row holds, NaN too, must reach no gradient: 0 x NaN is NaN.)

    Args:
        patches: (B, P, C) float.
        boxes, mask, coverage: as `RegionMedClipModel.get_region_features` takes them.

    Raises:
        ValueError: for a shape that does not fit, or a mask that is not bool.
    """
    shape = tuple(boxes.shape)
    if len(shape) != 3 or shape[0] != patches.shape[0] or shape[1] == 0 or shape[2] != 4:
        raise ValueError(
            f"region_boxes has shape {shape}; it must be (B, R, 4) with B = {patches.shape[0]} images and R at "
            "least 1, as the processor makes it: an image without regions has a row of padding."
        )
    if mask is None:
        mask = torch.ones(shape[:2], dtype=torch.bool, device=boxes.device)
    elif mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
        raise ValueError(
            f"region_mask has shape {tuple(mask.shape)} and type {mask.dtype}; it must be (B, R) = {shape[:2]} like "
            "region_boxes, and torch.bool: True = a real region. Give region_mask.bool(), or leave it out if all are."
        )
    boxes = boxes.float().masked_fill(~mask[..., None], 0.0)
    if coverage is None:
        return boxes, mask, box_coverage(boxes, grid).flatten(2)
    if tuple(coverage.shape) != (*shape[:2], *grid):
        raise ValueError(
            f"region_coverage has shape {tuple(coverage.shape)}; it must be (B, R, h, w) = {(*shape[:2], *grid)}: give "
            "the image processor the model's patch_size and the size of the pixel values."
        )
    return boxes, mask, coverage.flatten(2).masked_fill(~mask[..., None], 0.0)


def refuse_regions_without_boxes(boxes: Tensor | None, mask: Tensor | None, coverage: Tensor | None) -> None:
    """None.

    Raises:
        ValueError: for a mask or a coverage without boxes.
    """
    given = [name for name, value in (("region_mask", mask), ("region_coverage", coverage)) if value is not None]
    if boxes is None and given:
        raise ValueError(
            f"{' and '.join(given)} came without region_boxes and would not be used; give the boxes too, as the "
            "processor makes them (of a mask its tight box)."
        )


def box_coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, R, h, w) float32 share of each patch that a box covers, in [0, 1].

    Args:
        boxes: (B, R, 4) float; (x0, y0, x1, y1) fractions of the frame.
        grid: (h, w) patches.
    """
    boxes = boxes.float()
    height, width = grid
    along_x = _overlap_along_axis(boxes[..., 0], boxes[..., 2], width)  # (B, R, w)
    along_y = _overlap_along_axis(boxes[..., 1], boxes[..., 3], height)  # (B, R, h)
    return along_y[..., :, None] * along_x[..., None, :]  # (B, R, h, w): a box is separable, so its overlap is too


def _overlap_along_axis(low: Tensor, high: Tensor, num_cells: int) -> Tensor:
    """(..., num_cells) share of each of `num_cells` equal cells of [0, 1] between `low` and `high`."""
    edges = torch.arange(num_cells + 1, device=low.device, dtype=torch.float32)
    low, high = low[..., None] * num_cells, high[..., None] * num_cells
    return (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(0.0, 1.0)


def roi_align_weights(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, R, P) float32 weight of each patch in the mean of RoIAlign's 7 x 7 bins; every row sums to 1.

    RoIAlign with half-pixel alignment and adaptive sampling is linear in the features and separable, and its bins hold
    equally many samples; so its mean over the bins folds into one weight for each row and column of patches.

    Args:
        boxes: (B, R, 4) float; fractions of the frame, inside it.
        grid: (h, w) with h * w = P.

    Source: RoIAlign, arXiv:1703.06870, sec. 3.
    """
    boxes = boxes.float()
    height, width = grid
    along_x = _sample_weights(boxes[..., 0], boxes[..., 2], width)  # (B, R, w)
    along_y = _sample_weights(boxes[..., 1], boxes[..., 3], height)  # (B, R, h)
    return (along_y[..., :, None] * along_x[..., None, :]).flatten(-2)


def _sample_weights(low: Tensor, high: Tensor, num_cells: int) -> Tensor:
    """(..., num_cells) mean bilinear weight of each cell over RoIAlign's samples between `low` and `high` (...)."""
    length = ((high - low) * num_cells)[..., None]  # in cells
    samples_per_bin = (length / ROI_ALIGN_BINS).ceil().clamp_min(1.0)
    num_samples = ROI_ALIGN_BINS * samples_per_bin  # (..., 1)
    most = ROI_ALIGN_BINS * -(-num_cells // ROI_ALIGN_BINS)  # no box has more: the shape does not depend on the boxes
    index = torch.arange(most, device=low.device, dtype=torch.float32)
    places = low[..., None] * num_cells - 0.5 + (index + 0.5) * length / num_samples  # (..., most)
    places = places.clamp(0.0, num_cells - 1.0)[..., None]
    cells = torch.arange(num_cells, device=low.device, dtype=torch.float32)
    bilinear = (1.0 - (places - cells).abs()).clamp_min(0.0)  # (..., most, num_cells)
    is_sample = (index < num_samples)[..., None]
    return (bilinear * is_sample).sum(dim=-2) / num_samples


def patch_boxes(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(P, 4) float32 box of every patch as fractions of the frame, row-major."""
    height, width = grid
    top, left = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    corners = torch.stack([left / width, top / height, (left + 1) / width, (top + 1) / height], dim=-1)  # (h, w, 4)
    return corners.flatten(0, 1)


def pool_regions(patches: Tensor, coverage: Tensor) -> Tensor:
    """(B, R, C) mean patch feature of every region, each patch weighted by the share of it that the region covers.

    Args:
        patches: (B, P, C) float; row-major grid order, prefix tokens removed.
        coverage: (B, R, P) float in [0, 1]; the weights are computed in float32 at least.

    Source: the area-weighted limit of RoIAlign's mean, arXiv:1703.06870, sec. 3; exact for boxes of any size.
    """
    coverage = coverage.to(torch.promote_types(coverage.dtype, torch.float32))
    weights = coverage / coverage.sum(dim=-1, keepdim=True).clamp_min(COVERAGE_FLOOR)
    return torch.bmm(weights.to(patches.dtype), patches)
