"""What a stage trains and how fast: parameters by mode and loss term, optimiser groups, learning rate by step."""

from __future__ import annotations

import math

import torch
from torch import nn

from modeling_regionmed_clip import RegionMedClipModel
from modeling_regionmed_clip.towers import POOLING_LAYERS

from .recipe_parts import TEXT_TERMS, Optimizer, Stage

GLOBAL_TERMS = ("image_text", "image_region_text", "fused_image_text")
REGION_EMBEDDING_TERMS = ("region_text", "fused_image_text", "region_distillation")


def is_trained(name: str, stage: Stage) -> bool:
    """Whether the parameter `name` of `RegionMedClipModel` moves in `stage`: its part is full and a term reaches it."""
    part, _, rest = name.partition(".")
    terms, modes = stage.loss_weights, stage.modes
    if part == "temperatures":
        return rest in terms
    if part in ("text_model", "text_projection"):
        return modes.text != "frozen" and any(term in terms for term in TEXT_TERMS)
    if part == "vision_model" and rest.partition(".")[0] not in POOLING_LAYERS:
        return modes.vision != "frozen"
    if part in ("vision_model", "visual_projection"):  # a pooling layer is like the projection: regions pass it by
        return modes.vision != "frozen" and any(term in terms for term in GLOBAL_TERMS)
    if part == "region_fusion":
        return modes.roi == "full" and "fused_image_text" in terms
    if part == "roi_processor":
        return modes.roi == "full" and any(term in terms for term in REGION_EMBEDDING_TERMS)
    if part == "proposal_head":
        return modes.roi == "full" and "proposals" in terms
    raise ValueError(f"parameter {name!r} belongs to no part that a stage knows; add it to train/stages.py.")


def set_trained_parameters(model: RegionMedClipModel, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Sets `requires_grad` for the stage and gives the (name, parameter) pairs that move.

    Raises:
        ValueError: if nothing moves.
    """
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, stage))
        parameter.grad = None  # of the stage before: it would count in the norm by which gradients are clipped
        if parameter.requires_grad:
            trained.append((name, parameter))
    if not trained:
        raise ValueError(f"stage {stage.name!r} would train no parameter; set one of its modes to full.")
    return trained


def build_optimizer(
    trained: list[tuple[str, nn.Parameter]], stage: Stage, settings: Optimizer
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; biases, norms, gains and embeddings of one axis take no weight decay."""
    decayed = [parameter for _, parameter in trained if parameter.ndim >= 2]
    plain = [parameter for _, parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=stage.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def learning_rate_at(stage: Stage, step_in_stage: int) -> float:
    """Learning rate of a step (0 .. steps - 1) of the stage: linear warm-up, then a cosine to its final share."""
    if step_in_stage < stage.warmup_steps:
        return stage.learning_rate * (step_in_stage + 1) / (stage.warmup_steps + 1)
    span = max(1, stage.steps - 1 - stage.warmup_steps)
    progress = (step_in_stage - stage.warmup_steps) / span
    share = stage.final_learning_rate_share
    return stage.learning_rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: Stage, step_in_stage: int) -> None:
    """None; the optimiser's groups then have the rates of that step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(stage, step_in_stage)
