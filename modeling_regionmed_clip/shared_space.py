"""The shared space: how towers reach it, what unit length means there, and the temperatures of its comparisons."""

import math

import torch
from torch import Tensor, nn

CONTRASTIVE_TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")


class Temperatures(nn.Module):
    """One learnable log inverse temperature, shape (1,), for each contrastive term, and the global logits' bias."""

    def __init__(self, config):
        super().__init__()
        self.log_scale_max = math.log(config.logit_scale_max)
        for name in CONTRASTIVE_TERMS:
            self.register_parameter(name, nn.Parameter(torch.full((1,), float(config.logit_scale_init_value))))
        self.image_text_bias = None
        if config.logit_bias_init_value is not None:
            self.image_text_bias = nn.Parameter(torch.full((1,), float(config.logit_bias_init_value)))

    def forward(self, name: str) -> Tensor:
        """(1,) float inverse temperature of a term."""
        return getattr(self, name).exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Brings every inverse temperature back to the configured maximum; called after an optimiser step.

        (A clamp in the forward pass would have no gradient above the maximum: the value could never come down.)
        """
        for name in CONTRASTIVE_TERMS:
            getattr(self, name).clamp_(max=self.log_scale_max)


def build_projection(kind: str, width: int, projection_dim: int) -> nn.Module:
    """From a tower's width to the shared space; kinds as `RegionMedClipConfig` names them."""
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, projection_dim, bias=False)
    hidden = (width + projection_dim) // 2
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, projection_dim, bias=False))


def unit_length(embeddings: Tensor, formula: str) -> Tensor:
    """Global embeddings (..., D) of unit length by a formula that `RegionMedClipConfig.embedding_norm` names.

    The formulas are those of the source checkpoints' own code; they differ in the last bit.
    """
    if formula == "clip":
        return embeddings / embeddings.pow(2).sum(dim=-1, keepdim=True).pow(0.5)
    return embeddings / embeddings.norm(dim=-1, keepdim=True)
