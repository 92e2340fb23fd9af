"""What a stage trains and how fast: parameters by mode and loss term, optimiser groups, learning rate by step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from modeling_regionmed_clip import RegionMedClipModel
from modeling_regionmed_clip.towers import POOLING_LAYERS

from .recipe_parts import TEXT_TERMS, Optimizer, Stage

GLOBAL_TERMS = ("image_text", "image_region_text", "fused_image_text")
REGION_EMBEDDING_TERMS = ("region_text", "fused_image_text", "hard_negatives", "region_distillation")
BIAS_SUFFIX = "_bias"  # of a term's parameter in `Temperatures` that only the sigmoid loss has
LORA_MARK = ".lora_"  # in the names of an adapter's matrices, and of no other parameter
GROUP_OF_PART = {
    "vision_model": "vision",
    "text_model": "text",
    "visual_projection": "projections",
    "text_projection": "projections",
    "roi_processor": "roi",
    "region_fusion": "roi",
    "proposal_head": "roi",
    "temperatures": "temperatures",
}


def is_trained(name: str, stage: Stage) -> bool:
    """Whether the parameter `name` of `RegionMedClipModel` moves in `stage`: its mode says so and a term reaches it."""
    part, _, rest = name.partition(".")
    terms, modes = stage.loss_weights, stage.modes
    if part == "temperatures":
        term = rest.removesuffix(BIAS_SUFFIX)
        return term in terms and (term == rest or stage.loss_kinds.get(term) == "sigmoid")
    if part == "text_model":
        return _moves_in_tower(modes.text, rest) and any(term in terms for term in TEXT_TERMS)
    if part == "text_projection":
        return modes.text != "frozen" and any(term in terms for term in TEXT_TERMS)
    if part == "vision_model" and rest.partition(".")[0] not in POOLING_LAYERS:
        return _moves_in_tower(modes.vision, rest)
    if part == "vision_model":  # a pooling layer is like the projection: regions pass it by
        return _moves_in_tower(modes.vision, rest) and any(term in terms for term in GLOBAL_TERMS)
    if part == "visual_projection":
        return modes.vision != "frozen" and any(term in terms for term in GLOBAL_TERMS)
    if part == "region_fusion":
        return modes.roi == "full" and "fused_image_text" in terms
    if part == "roi_processor":
        return modes.roi == "full" and any(term in terms for term in REGION_EMBEDDING_TERMS)
    if part == "proposal_head":
        return modes.roi == "full" and "proposals" in terms
    raise ValueError(f"parameter {name!r} belongs to no part that a stage knows; add it to train/stages.py.")


def _moves_in_tower(mode: str, name: str) -> bool:
    return mode == "full" or (mode == "lora" and LORA_MARK in name)


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


def takes_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay draws on a parameter: on matrices, LoRA's among them, kernels and tables of embeddings.

    Biases, norms, gains and temperatures have one axis, and so has an embedding of one token, whatever its shape.
    """
    if name.partition(".")[0] == "temperatures" or parameter.ndim < 2:
        return False
    return parameter.ndim == 2 or parameter.numel() > parameter.shape[-1]


def build_optimizer(
    trained: list[tuple[str, nn.Parameter]],
    stage: Stage,
    settings: Optimizer,
    group_of_part: Mapping[str, str] = GROUP_OF_PART,
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters of a settled stage, in groups of one learning rate and one weight decay.

    A group has its `name`, in the order of `group_of_part`; two share a name where some of their parameters take weight
    decay and some none.

    Args:
        group_of_part: first part of a parameter's name -> name of the group.
    """
    assert stage.weight_decay is not None  # settled
    groups = []
    for group in dict.fromkeys(group_of_part.values()):
        mine = [(name, item) for name, item in trained if group_of_part[name.partition(".")[0]] == group]
        for is_decayed in (True, False):
            parameters = [item for name, item in mine if takes_decay(name, item) is is_decayed]
            decay = stage.weight_decay if is_decayed else 0.0
            if parameters:
                rate = learning_rate_at(stage, 0, group)
                groups.append({"name": group, "params": parameters, "weight_decay": decay, "lr": rate})
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.epsilon, fused=True)


def learning_rate_at(stage: Stage, step_in_stage: int, group: str) -> float:
    """Learning rate of a group of `RATE_GROUPS` in a step (0 .. steps - 1) of the stage.

    All groups follow the same course: linear warm-up to the group's rate, then a cosine down to a share of it.
    """
    rate = stage.learning_rates.get(group, stage.learning_rate)
    if step_in_stage < stage.warmup_steps:
        return rate * (step_in_stage + 1) / (stage.warmup_steps + 1)
    assert stage.steps is not None  # epochs have been turned into steps
    span = max(1, stage.steps - 1 - stage.warmup_steps)
    progress = (step_in_stage - stage.warmup_steps) / span
    share = stage.final_learning_rate_share
    return rate * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: Stage, step_in_stage: int) -> None:
    """None; the optimiser's groups then have the rates of that step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(stage, step_in_stage, group["name"])
