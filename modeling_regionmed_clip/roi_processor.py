"""The ROI processor: patch features + regions -> region embeddings, and regions fused into the image embedding.

Regions are fractions of the model's frame, (x0, y0, x1, y1), origin top-left, half-open.
Letters: B images, R regions, P = h x w patches in row-major order, C tower width, D shared width.
"""

import math

import torch
from torch import Tensor, nn

COVERAGE_FLOOR = 1e-12  # far below the coverage of one pixel of a 4000-pixel image


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
        coverage: (B, R, P) float32 in [0, 1].

    Source: the area-weighted limit of RoIAlign's mean, arXiv:1703.06870, sec. 3; exact for boxes of any size.
    """
    weights = coverage / coverage.sum(dim=-1, keepdim=True).clamp_min(COVERAGE_FLOOR)
    return torch.bmm(weights.to(patches.dtype), patches)


class BoxEncoding(nn.Module):
    """A learnt linear map of the sines and cosines of a box's centre, width and height."""

    def __init__(self, num_frequencies: int, width: int):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.proj = nn.Linear(4 * 2 * num_frequencies, width)

    def forward(self, boxes: Tensor) -> Tensor:
        """(..., C) encoding of boxes (..., 4), fractions of the frame."""
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        extent = boxes[..., 2:] - boxes[..., :2]
        values = torch.cat([centre, extent], dim=-1).float()  # (..., 4)
        octaves = torch.arange(self.num_frequencies, device=boxes.device, dtype=torch.float32)
        angles = values[..., None] * (math.pi * torch.exp2(octaves))  # (..., 4, F)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (..., 8F)
        return self.proj(waves.to(self.proj.weight.dtype))


class CrossAttention(nn.Module):
    """Multi-head attention of queries over keys and values of the same width C."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
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
        mask = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, K)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class PrompterBlock(nn.Module):
    """A pre-norm block: region queries attend to all patch tokens, then pass a two-layer perceptron."""

    def __init__(self, width: int, num_heads: int, epsilon: float):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = CrossAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, R, C) queries after one block; keys and values (B, P, C)."""
        queries = queries + self.attention(self.query_norm(queries), keys, values)
        return queries + self.mlp(self.mlp_norm(queries))


class RoiProcessor(nn.Module):
    """Region embeddings from a box-prompted attention over the patches, gated against the region's own mean feature."""

    def __init__(self, config):
        super().__init__()
        width = config.vision_config.hidden_size
        epsilon = getattr(config.vision_config, "layer_norm_eps", 1e-6)
        self.box_encoding = BoxEncoding(config.roi_num_frequencies, width)
        self.patch_encoding = BoxEncoding(config.roi_num_frequencies, width)
        self.blocks = nn.ModuleList(
            PrompterBlock(width, config.roi_num_heads, epsilon) for _ in range(config.roi_num_layers)
        )
        self.gate = nn.Linear(2 * width, width)
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
        return self.embed(patches, boxes, pool_regions(patches, coverage), grid)

    def embed_patches(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, P, D) embedding of every patch taken as a region of its own: the dense map of the region path."""
        boxes = patch_boxes(grid, patches.device).expand(patches.shape[0], -1, -1)
        return self.embed(patches, boxes, patches, grid)

    def embed(self, patches: Tensor, boxes: Tensor, local: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, R, D) from the regions' boxes (B, R, 4) and their mean features `local` (B, R, C)."""
        keys = patches + self.patch_encoding(patch_boxes(grid, patches.device))[None]
        context = local + self.box_encoding(boxes)
        for block in self.blocks:
            context = block(context, keys, patches)
        gate = torch.sigmoid(self.gate(torch.cat([local, context], dim=-1)))  # (B, R, C)
        region = gate * local + (1 - gate) * context
        return self.projection(self.output_norm(region))


class RegionFusion(nn.Module):
    """image' = image + tanh(alpha) * attention(image -> its regions); alpha starts at 0: nothing changes at first."""

    def __init__(self, config):
        super().__init__()
        self.attention = CrossAttention(config.projection_dim, config.fusion_num_heads)
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
