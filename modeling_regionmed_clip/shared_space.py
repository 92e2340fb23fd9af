"""The shared space: how towers reach it, what unit length means there, and the temperatures of its comparisons."""

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .loss_terms import CONTRASTIVE_TERMS, TEXT_TERMS

LEAST_SCALE = 1.0  # inverse temperature below which cosines, at most 2 apart, could hardly tell texts apart


class Temperatures(nn.Module):
    """Learnable numbers, each of shape (1,), that turn cosines into logits.

    One log inverse temperature for each term that compares with texts; where the configuration has a bias, one for each
    of `CONTRASTIVE_TERMS` (`image_text_bias` ...), which pairwise sigmoid losses need and InfoNCE does not feel.
    """

    def __init__(self, config):
        super().__init__()
        self.log_scale_max = math.log(config.logit_scale_max)
        self.log_scale_min = min(math.log(LEAST_SCALE), self.log_scale_max)
        self.start = {name: float(config.logit_scale_init_value) for name in TEXT_TERMS}
        if config.logit_bias_init_value is not None:
            self.start |= {f"{name}_bias": float(config.logit_bias_init_value) for name in CONTRASTIVE_TERMS}
        for name, value in self.start.items():
            self.register_parameter(name, nn.Parameter(torch.full((1,), value)))

    def forward(self, name: str) -> Tensor:
        """(1,) float inverse temperature of a term."""
        return getattr(self, name).exp()

    def bias(self, name: str) -> Tensor | None:
        """(1,) float that is added to the logits of a term; None: it has none."""
        return getattr(self, f"{name}_bias", None)

    def idle_loss(self) -> Tensor:
        """() zero through which numbers that a loss does not use get a gradient of zero; see `forward` of the model."""
        return sum(0.0 * value.sum() for value in self.parameters())

    def init_weights(self) -> None:
        """Nothing; sets every number to the configured one unless a checkpoint has just given it."""
        for name, value in self.start.items():
            init.constant_(getattr(self, name), value)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Nothing; brings every inverse temperature back between `LEAST_SCALE` and the configured maximum.

        Called after an optimiser step: a clamp in the forward pass would have no gradient outside, and the value could
        never come back.
        """
        for name in TEXT_TERMS:
            getattr(self, name).clamp_(self.log_scale_min, self.log_scale_max)


def add_logits(output: ModelOutput, temperatures: Temperatures) -> None:
    """Nothing; fills the logits of a `RegionMedClipOutput` that its embeddings allow."""
    region_texts = output.region_text_embeds if output.region_text_embeds is not None else output.text_embeds
    if output.text_embeds is not None:
        # the order of CLIPModel's operations, whose logits are met bit for bit
        logits = output.text_embeds @ output.image_embeds.t() * temperatures("image_text")  # (T, B)
        output.logits_per_text = _with_bias(logits, temperatures.bias("image_text"))
        output.logits_per_image = output.logits_per_text.t()
        if output.fused_image_embeds is not None:
            logits = output.fused_image_embeds @ (temperatures("fused_image_text") * output.text_embeds.t())
            output.logits_per_fused_image = _with_bias(logits, temperatures.bias("fused_image_text"))
    if output.region_embeds is not None and region_texts is not None:
        logits = output.region_embeds @ (temperatures("region_text") * region_texts.t())
        output.logits_per_region = _with_bias(logits, temperatures.bias("region_text"))


def _with_bias(logits: Tensor, bias: Tensor | None) -> Tensor:
    return logits if bias is None else logits + bias


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


def unit(embeddings: Tensor) -> Tensor:
    """Embeddings of unit length along the last axis; a zero row stays exactly zero, in float16 too."""
    return nn.functional.normalize(embeddings, dim=-1, eps=max(1e-12, torch.finfo(embeddings.dtype).tiny))
