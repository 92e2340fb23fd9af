"""The losses of regions without texts: proposals of regions, and regions that learn from a teacher's crops."""

import torch
from torch import Tensor

from .loss_terms import LossTerm

ROUNDING_MARGIN = 1.001  # a region whose middle lies between two patches is near both, not near none by rounding


def proposal_loss(
    logits: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    target_mask: Tensor,
    patch_boxes: Tensor,
    is_complete: Tensor | None = None,
) -> LossTerm:
    """Focal loss of the scores, L1 and GIoU loss of the boxes, of one proposal for every patch.

    A patch whose centre lies near the middle of a target (within a quarter of its sides, or half a patch) stands for
    it, of several targets for the smallest. The score it shall give is the overlap (IoU) of its own box with the
    target, so that well-placed boxes win the suppression; all other patches shall give 0.

    Args:
        logits: (B, P) float.
        boxes: (B, P, 4) float; fractions of the frame.
        target_boxes, target_mask: (B, R, 4) float, (B, R) bool; annotated regions, False = padding. Unannotated
            regions count as background. What lies outside the frame is cut off; an inverted box is no target.
        patch_boxes: (P, 4) float; fractions of the frame.
        is_complete: (B,) bool; False for an image of which only some annotated regions are targets, whose other patches
            then teach nothing. None: all are complete.

    Returns:
        The term, normalised by the number of patches that stand for a target (at least 1).

    Source: dense assignment as FCOS, arXiv:1904.01355; quality focal loss, arXiv:2006.04388, eq. 6; GIoU,
    arXiv:1902.09630; weights 5 and 2 of DETR, arXiv:2005.12872.
    """
    logits, boxes = logits.float(), boxes.float()
    target_boxes = target_boxes.float().masked_fill(~target_mask[..., None], 0.0).clamp(0.0, 1.0)
    patch_centres = (patch_boxes[:, :2] + patch_boxes[:, 2:]) / 2  # (P, 2)
    patch_side = patch_boxes[0, 2:] - patch_boxes[0, :2]
    middle = (target_boxes[..., :2] + target_boxes[..., 2:]) / 2  # (B, R, 2)
    extent = target_boxes[..., 2:] - target_boxes[..., :2]
    radius = torch.maximum(extent / 4, patch_side / 2) * ROUNDING_MARGIN
    offset = (patch_centres[None, :, None] - middle[:, None]).abs()  # (B, P, R, 2)
    is_target = target_mask & (extent >= 0).all(dim=-1)  # (B, R)
    stands_for = (offset <= radius[:, None]).all(dim=-1) & is_target[:, None]  # (B, P, R)
    areas = extent.prod(dim=-1)[:, None].expand_as(stands_for).masked_fill(~stands_for, torch.inf)
    chosen = areas.argmin(dim=-1)  # (B, P)
    is_positive = stands_for.any(dim=-1)
    targets = target_boxes.gather(1, chosen[..., None].expand(-1, -1, 4))  # (B, P, 4)
    iou, giou = _overlaps(boxes, targets)
    quality = torch.where(is_positive, iou.detach(), 0.0)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = (logits.sigmoid() - quality).abs().square() * entropy
    misfit = 5.0 * (boxes - targets).abs().mean(dim=-1) + 2.0 * (1.0 - giou)
    is_counted = torch.ones_like(is_positive) if is_complete is None else is_positive | is_complete[:, None]
    num_positives = is_positive.sum()
    total = torch.where(is_counted, focal, 0.0).sum() + torch.where(is_positive, misfit, 0.0).sum()
    loss, num_negatives = total / num_positives.clamp_min(1), is_counted.sum() - num_positives
    return LossTerm(loss, num_positives, num_negatives, torch.zeros_like(num_positives))


def _overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and its generalised form in [-1, 1], of boxes (..., 4) pair by pair."""
    low, high = (first[..., :2], second[..., :2]), (first[..., 2:], second[..., 2:])
    overlap = (torch.minimum(*high) - torch.maximum(*low)).clamp_min(0.0).prod(dim=-1)
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(dim=-1)
    union = sum((boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (first, second)) - overlap
    iou = overlap / union.clamp_min(1e-9)
    return iou, iou - (hull - union) / hull.clamp_min(1e-9)


def region_distillation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
    """1 - cosine of each region's embedding and the teacher's embedding of the region's crop, averaged over regions.

    Args:
        student: (..., D) float; region embeddings, of any length.
        teacher: (..., D) float; embeddings of the crops; no gradient flows into them.
        mask: (...) bool; False regions take no part.

    Returns:
        The term, `num_positives` the regions behind it; its loss is exactly zero, with a gradient, when there is none.

    Source: CLIPSelf, arXiv:2310.01403, whose loss it is.
    """
    cosine = torch.nn.functional.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    num_regions = mask.sum()
    total = torch.where(mask, 1.0 - cosine, 0.0).sum()
    nothing = torch.zeros_like(num_regions)
    return LossTerm(total / num_regions.clamp_min(1), num_regions, nothing, nothing)
