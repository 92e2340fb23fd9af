"""The ROI processor: patch features + regions -> region embeddings, and regions fused into the image embedding.

Regions are fractions of the model's frame, (x0, y0, x1, y1), origin top-left, half-open.
Letters: B images, R regions, P = h x w patches in row-major order, C tower width, D shared width.
"""

import math

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .region_pooling import box_coverage, patch_boxes, pool_regions, roi_align_weights


class BoxEncoding(nn.Module):
    """A learnt linear map of the sines and cosines of a box's centre, width and height."""

    def __init__(self, num_frequencies: int, width: int):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.proj = nn.Linear(4 * 2 * num_frequencies, width)

    def forward(self, boxes: Tensor) -> Tensor:
        """(..., C) encoding of boxes (..., 4), fractions of the frame."""
        boxes = boxes.float()
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        extent = boxes[..., 2:] - boxes[..., :2]
        values = torch.cat([centre, extent], dim=-1)  # (..., 4)
        octaves = torch.arange(self.num_frequencies, device=boxes.device, dtype=torch.float32)
        angles = values[..., None] * (math.pi * torch.exp2(octaves))  # (..., 4, F)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (..., 8F)
        return self.proj(waves.to(self.proj.weight.dtype))


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attended values (B, Q, heads, C / heads) and weights (B, heads, Q, K), written out; mask (B, 1, 1, K) bool."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, heads, Q, K)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), weights


class CrossAttention(nn.Module):
    """Multi-head attention of queries over keys and values of the same width C, by the library's interface."""

    is_causal = False

    def __init__(self, config, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (width // num_heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)  # a key bias cancels in the softmax
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, Q, C) values (B, K, C) gathered by the likeness of queries (B, Q, C) and keys (B, K, C).

        Args:
            key_mask: (B, K) bool; False keys are not attended to. At least one True a row.
        """
        query, key, value = (
            proj(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)
            for proj, states in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        if key_mask is not None and "flash" not in implementation:  # flash takes the (B, K) mask as it is
            key_mask = key_mask[:, None, None, :]
            if implementation == "flex_attention":  # adds its mask to the scores, whatever its type
                key_mask = torch.where(key_mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
        attended, _ = attend(self, query, key, value, key_mask, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.out_proj(attended.flatten(2))  # (B, Q, heads, C / heads) -> (B, Q, C)


class PrompterBlock(GradientCheckpointingLayer):
    """A pre-norm block: region queries attend to all patch tokens, then pass a two-layer perceptron."""

    def __init__(self, config, width: int, epsilon: float):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = CrossAttention(config, width, config.roi_num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, R, C) queries after one block; keys and values (B, P, C)."""
        queries = queries + self.attention(self.query_norm(queries), keys, values)
        return queries + self.mlp(self.mlp_norm(queries))


class RoiPrompter(nn.Module):
    """A region's mean feature, told where it lies, attends to all patches; a gate mixes what it had and what it saw."""

    def __init__(self, config, width: int, epsilon: float):
        super().__init__()
        self.box_encoding = BoxEncoding(config.roi_num_frequencies, width)
        self.patch_encoding = BoxEncoding(config.roi_num_frequencies, width)
        self.blocks = nn.ModuleList(PrompterBlock(config, width, epsilon) for _ in range(config.roi_num_layers))
        self.gate = nn.Linear(2 * width, width)

    def forward(self, patches: Tensor, boxes: Tensor, local: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, R, C) region states from boxes (B, R, 4) and mean features `local` (B, R, C)."""
        keys = patches + self.patch_encoding(patch_boxes(grid, patches.device))[None]
        context = local + self.box_encoding(boxes)
        for block in self.blocks:
            context = block(context, keys, patches)
        gate = torch.sigmoid(self.gate(torch.cat([local, context], dim=-1)))  # (B, R, C)
        return gate * local + (1 - gate) * context


class RoiProcessor(nn.Module):
    """Region embeddings by `config.roi_mode`.

    "prompter": the area-weighted mean of the region's patches, then `RoiPrompter`. "maskpool": that mean alone.
    "roialign": RoIAlign's mean of the region's box alone, blind to the shape of a mask.
    """

    def __init__(self, config):
        super().__init__()
        width = config.vision_config.hidden_size
        epsilon = getattr(config.vision_config, "layer_norm_eps", 1e-6)
        self.mode = config.roi_mode
        self.prompter = RoiPrompter(config, width, epsilon) if self.mode == "prompter" else None
        self.output_norm = nn.LayerNorm(width, eps=epsilon)
        self.projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, patches: Tensor, boxes: Tensor, coverage: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, R, D) region embeddings, not normalised; padding rows hold finite values for the caller to mask.

        Args:
            patches: (B, P, C) float; see `pool_regions`.
            boxes: (B, R, 4) float32; fractions of the frame.
            coverage: (B, R, P) float32; see `box_coverage`.
            grid: (h, w) with h * w = P.
        """
        if self.mode == "roialign":
            local = self._align(patches, boxes, grid)
        else:
            local = pool_regions(patches, coverage)
        return self._embed(patches, boxes, local, grid)

    def embed_patches(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, D) embedding of every patch taken as a region of its own: the dense map of the region path."""
        boxes = patch_boxes(grid, patches.device).expand(patches.shape[0], -1, -1)
        local = self._align(patches, boxes, grid) if self.mode == "roialign" else patches
        return self._embed(patches, boxes, local, grid)

    @staticmethod
    def _align(patches: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        return torch.bmm(roi_align_weights(boxes, grid).to(patches.dtype), patches)

    def _embed(self, patches: Tensor, boxes: Tensor, local: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, R, D) from the regions' boxes (B, R, 4) and their mean features `local` (B, R, C)."""
        states = local if self.prompter is None else self.prompter(patches, boxes, local, grid)
        return self.projection(self.output_norm(states))


class RegionFusion(nn.Module):
    """image' = image + tanh(alpha) * attention(image -> its regions); alpha starts at 0: nothing changes at first."""

    def __init__(self, config):
        super().__init__()
        self.attention = CrossAttention(config, config.projection_dim, config.fusion_num_heads)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
        """(B, D) fused image embedding; an image without a real region keeps its own.

        Args:
            image: (B, D) float; unit length.
            regions: (B, R, D) float; unit length, zero where padded.
            region_mask: (B, R) bool; True = a real region.
        """
        has_region = region_mask.any(dim=1, keepdim=True)  # (B, 1)
        key_mask = region_mask | ~has_region  # an empty row attends to its zeros instead of to nothing (NaN)
        attended = self.attention(image[:, None], regions, regions, key_mask)[:, 0]
        return image + torch.tanh(self.alpha) * attended * has_region


__all__ = ["RegionFusion", "RoiProcessor", "box_coverage", "patch_boxes", "pool_regions", "roi_align_weights"]
