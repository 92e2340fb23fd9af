"""The three paths of a model as modules that a graph can be made of, with sizes that stay open.

Letters: B images, R regions, T texts, L tokens, P patches, D width of the shared space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modeling_regionmed_clip.shared_space import unit, unit_length

IMAGES, TEXTS = {0: "images"}, {0: "texts", 1: "tokens"}
REGIONS = {0: "images", 1: "regions"}


class GraphPath(nn.Module):
    """A path of a model; `inputs` names what it takes with the axes that stay open, `outputs` what it gives."""

    name: str
    inputs: dict[str, dict[int, str]]
    outputs: tuple[str, ...]

    def __init__(self, model: Any):
        super().__init__()
        self.model = model


class ImagePath(GraphPath):
    """Images -> their plain global embeddings."""

    name = "image"
    inputs = {"pixel_values": IMAGES}
    outputs = ("image_embeds",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """((B, D) float32 of unit length,) of pixel values (B, 3, H, W)."""
        pooled = self.model.get_image_features(pixel_values).pooler_output
        return (unit_length(pooled, self.model.config.embedding_norm),)


class TextPath(GraphPath):
    """Texts -> their embeddings."""

    name = "text"
    inputs = {"input_ids": TEXTS, "attention_mask": TEXTS}
    outputs = ("text_embeds",)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """((T, D) float32 of unit length,) of ids and mask (T, L) int64."""
        pooled = self.model.get_text_features(input_ids, attention_mask).pooler_output
        return (unit_length(pooled, self.model.config.embedding_norm),)


class RegionPath(GraphPath):
    """Images with regions -> embeddings of the regions and of the images, plain and fused, and what is proposed."""

    name = "regions"
    inputs = {"pixel_values": IMAGES, "region_boxes": REGIONS, "region_mask": REGIONS}
    outputs = ("region_embeds", "image_embeds", "fused_image_embeds", "proposal_boxes", "proposal_scores")

    def forward(self, pixel_values: Tensor, region_boxes: Tensor, region_mask: Tensor) -> tuple[Tensor, ...]:
        """Region embeddings (B, R, D), zero where the mask is False; plain and fused image embeddings (B, D); for every
        patch a proposed box (B, P, 4), fractions of the frame, and its score (B, P) in [0, 1].

        Args:
            pixel_values: (B, 3, H, W) float32.
            region_boxes: (B, R, 4) float32 fractions of the frame.
            region_mask: (B, R) bool.
        """
        patches, pooled, _ = self.model.encode_patches(pixel_values)
        grid = self.model._grid_of(pixel_values)
        image = unit_length(self.model.visual_projection(pooled), self.model.config.embedding_norm)
        regions, region_mask = self.model.embed_regions(patches, grid, region_boxes, region_mask, None)
        regions = unit(regions)
        fused = unit(self.model.region_fusion(image, regions, region_mask))
        logits, boxes = self.model.proposal_head(patches, grid)
        return regions, image, fused, boxes, logits.sigmoid()


PATHS: tuple[type[GraphPath], ...] = (ImagePath, TextPath, RegionPath)


def sample_inputs(path: type[GraphPath], model: Any, num_images: int, num_regions: int, num_tokens: int) -> Any:
    """A tuple of tensors that the path takes, drawn by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    vision, vocabulary = model.config.vision_config, model.config.text_config.vocab_size
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    corners = torch.rand(num_images, num_regions, 2, generator=generator) * 0.5
    tensors = {
        "pixel_values": torch.randn(num_images, 3, side, side, generator=generator),
        "region_boxes": torch.cat([corners, corners + 0.3], dim=-1),
        "region_mask": torch.ones(num_images, num_regions, dtype=torch.bool),
        "input_ids": torch.randint(5, vocabulary, (num_images, num_tokens), generator=generator),
        "attention_mask": torch.ones(num_images, num_tokens, dtype=torch.int64),
    }
    return tuple(tensors[name] for name in path.inputs)
