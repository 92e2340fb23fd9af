"""Box-free discovery: one box and one score for every patch, and the non-maximum suppression that picks among them.

Boxes are fractions of the model's frame, (x0, y0, x1, y1), origin top-left, half-open.
Letters: B images, P = h x w patches in row-major order, K proposals, C tower width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .region_pooling import patch_boxes

PRIOR_SCORE = 0.01  # of every patch before training: an untrained head proposes nothing
NMS_IOU = 0.5


@dataclass
class RegionProposals(ModelOutput):
    """Regions found without being given, best first.

    Args:
        region_boxes: (B, K, 4) float32; fractions of the frame; zeros where the model abstains.
        region_mask: (B, K) bool; False = nothing proposed here.
        scores: (B, K) float32 in [0, 1]; how sure the model is, and roughly how well the box fits; 0 where it abstains.
    """

    region_boxes: Tensor | None = None
    region_mask: Tensor | None = None
    scores: Tensor | None = None


class ScoreLinear(nn.Linear):
    """A linear layer whose bias starts at the logit of `PRIOR_SCORE`; the model's `_init_weights` knows it by type."""


class ProposalHead(nn.Module):
    """For every patch a score and a box, the box as distances from the patch's centre to its four sides."""

    def __init__(self, config):
        super().__init__()
        width = config.vision_config.hidden_size
        self.norm = nn.LayerNorm(width, eps=getattr(config.vision_config, "layer_norm_eps", 1e-6))
        self.score_hidden = nn.Linear(width, width)
        self.score = ScoreLinear(width, 1)
        self.sides_hidden = nn.Linear(width, width)
        self.sides = nn.Linear(width, 4)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits (B, P) and boxes (B, P, 4), float32, clipped to the frame, from patches (B, P, C)."""
        states = self.norm(patches)
        logits = self.score(nn.functional.gelu(self.score_hidden(states)))[..., 0].float()  # (B, P)
        sides = self.sides(nn.functional.gelu(self.sides_hidden(states))).float()
        corners = patch_boxes(grid, patches.device)
        centre, patch_size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]  # (P, 2) each
        reach = nn.functional.softplus(sides).unflatten(-1, (2, 2)) * patch_size[:, None]  # left, top; right, bottom
        boxes = torch.cat([centre - reach[..., 0, :], centre + reach[..., 1, :]], dim=-1)
        return logits, boxes.clamp(0.0, 1.0)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """(...) intersection over union of boxes (..., 4) with boxes (..., 4), broadcast; 0 where both are empty."""
    corner = torch.maximum(first[..., :2], second[..., :2])
    far_corner = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (far_corner - corner).clamp_min(0.0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap).clamp_min(1e-9)


def suppress_overlaps(boxes: Tensor, scores: Tensor, num_kept: int, max_iou: float = NMS_IOU) -> tuple[Tensor, Tensor]:
    """The `num_kept` best boxes (B, K, 4) of which no two overlap more than `max_iou`, and their scores (B, K).

    Greedy non-maximum suppression over all images at once: one round a kept box. Where fewer boxes remain the score is
    -infinity.

    Args:
        boxes: (B, P, 4) float.
        scores: (B, P) float, finite.
    """
    remaining, kept_boxes, kept_scores = scores, [], []
    for _ in range(num_kept):
        score, best = remaining.max(dim=1, keepdim=True)  # (B, 1)
        box = boxes.gather(1, best[..., None].expand(-1, -1, 4))  # (B, 1, 4)
        kept_boxes.append(box)
        kept_scores.append(score)
        is_gone = (box_iou(boxes, box) > max_iou).scatter(1, best, True)
        remaining = remaining.masked_fill(is_gone, -torch.inf)
    return torch.cat(kept_boxes, dim=1), torch.cat(kept_scores, dim=1)


def select_proposals(logits: Tensor, boxes: Tensor, top_k: int, threshold: float) -> RegionProposals:
    """The best proposals of every image, those below the threshold masked out.

    Args:
        logits: (B, P) float; see `ProposalHead`.
        boxes: (B, P, 4) float.
        top_k: K, most proposals of an image.
        threshold: least score in [0, 1].

    Raises:
        ValueError: for a `top_k` or `threshold` outside its range.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}; it must be a whole number of at least 1.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}; a score lies in [0, 1].")
    kept_boxes, kept_scores = suppress_overlaps(boxes, logits.sigmoid(), top_k)
    mask = kept_scores >= threshold
    return RegionProposals(
        region_boxes=kept_boxes * mask[..., None], region_mask=mask, scores=kept_scores.masked_fill(~mask, 0.0)
    )
