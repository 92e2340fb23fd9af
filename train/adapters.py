"""LoRA adapters on the towers: which layers they lie on, and how a recipe's stages add, keep, merge and drop them.

An adapter replaces a linear layer by peft's own: in the names of the model `X.weight` becomes `X.base_layer.weight`,
and `X.lora_A.default.weight`, `X.lora_B.default.weight` come beside it. Every tower has one adapter at most; the ROI
processor, the fusion, the proposal head and the projections have none, for they are small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from modeling_regionmed_clip.towers import build_tower

from .recipe_parts import TOWERS, Lora, Stage
from .sample_order import ADAPTER_STREAM
from .stage_plan import StagePlan

ADAPTER = "default"  # peft's name for an adapter that is the only one of its layer
EVERY_LAYER = ".*"
# The attention's four products, by type of tower; other types have adapters on every linear layer.
CLIP_ATTENTION = r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
BERT_ATTENTION = r".*\.attention\.(self\.(query|key|value)|output\.dense)"
VIT_ATTENTION = r".*\.attention\.((q|k|v|o)_proj|attention\.(query|key|value)|output\.dense)"  # and older releases'
ATTENTION_OF_TYPES = {
    ("clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model"): CLIP_ATTENTION,
    ("bert", "roberta", "camembert", "xlm-roberta", "electra", "ernie", "megatron-bert"): BERT_ATTENTION,
    ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"): VIT_ATTENTION,
}
DEFAULT_TARGETS = {name: pattern for names, pattern in ATTENTION_OF_TYPES.items() for name in names}


def tower_of(model: RegionMedClipModel, name: str) -> nn.Module:
    """The "vision" or "text" tower."""
    return getattr(model, f"{name}_model")


def adapted_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """The layers of the module that carry an adapter, by name; empty without one."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def target_layers(tower: nn.Module, settings: Lora, where: str) -> list[str]:
    """Names of the linear layers of a tower without adapter that `settings` puts one on, in the tower's order.

    Linear layers inside torch's own multi-head attention, whose weights it reads past the layer, are never among them.

    Raises:
        ValueError: for an expression that is none, or matches the whole name of no layer.
    """
    pattern = settings.target_modules or DEFAULT_TARGETS.get(tower.config.model_type, EVERY_LAYER)
    closed = tuple(f"{name}." for name, module in tower.named_modules() if isinstance(module, nn.MultiheadAttention))
    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    linear = [name for name in linear if not name.startswith(closed)]
    try:
        found = [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f"{where}.target_modules is {pattern!r}, which is no regular expression: {error}.") from error
    if not found:
        known = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in linear))
        raise ValueError(
            f"{where}.target_modules is {pattern!r}; it must match the whole name of at least one linear layer of the "
            f"tower ({tower.config.model_type}). Its layers are {known} with numbers for N; write for instance "
            f"'.*{re.escape(linear[0].rpartition('.')[2])}'."
        )
    return found


def check_targets(config: RegionMedClipConfig, stages: Iterable[Stage]) -> None:
    """Raises a ValueError for a stage whose adapters would lie on no layer of the model; needs no weights."""
    with torch.device("meta"):
        towers = {
            "vision": build_tower(config.vision_config, config.image_pooling),
            "text": build_tower(config.text_config, config.text_pooling),
        }
    for stage in stages:
        for name in stage.modes.lora_towers:
            target_layers(towers[name], getattr(stage.lora, name), f"stage {stage.name!r}: lora.{name}")


def add_adapter(tower: nn.Module, settings: Lora, where: str) -> None:
    """Puts a new adapter on a tower without one, by torch's random state; the tower computes what it did before."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_layers(tower, settings, where),
    )
    inject_adapter_in_model(config, tower, ADAPTER)


def detach_adapters(module: nn.Module) -> list[LoraLayer]:
    """The adapted layers, taken out of the module, which then computes with its base weights as if it had had none."""
    layers = adapted_layers(module)
    for name, layer in layers.items():
        module.set_submodule(name, layer.get_base_layer())
    for part in module.modules():
        if hasattr(part, "peft_config"):
            del part.peft_config
    return list(layers.values())


def merge_layers(layers: Iterable[LoraLayer]) -> None:
    """Adds the updates of detached layers to their base weights, wherever these lie now."""
    for layer in layers:
        layer.merge()


def begin_stage_adapters(model: RegionMedClipModel, plan: StagePlan, seed: int) -> None:
    """Brings the adapters to what the stage trains; to be called at its first step alone.

    Those of earlier stages are kept, merged or dropped as the stage says; a tower that trains by LoRA and then has none
    gets one, drawn from (seed, stage) alone: torch's random state stays as it is.
    """
    stage = plan.stage
    if stage.adapters != "keep":
        layers = detach_adapters(model)
        if stage.adapters == "merge":
            merge_layers(layers)
    new = [name for name in stage.modes.lora_towers if not adapted_layers(tower_of(model, name))]
    drawn = int(np.random.default_rng([seed, ADAPTER_STREAM, plan.index]).integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        _add_adapters(model, {name: getattr(stage.lora, name) for name in new})


def settle_adapters(model: RegionMedClipModel, plans: Sequence[StagePlan], step: int) -> None:
    """Gives a model without adapters those it has after `step` optimiser steps of the plans, with arbitrary values.

    Then the weights of a checkpoint of that step fit. A stage's transition belongs to its own first step: the
    checkpoint at the end of the stage before has the adapters of that one.
    """
    towers: dict[str, Lora] = {}
    for plan in plans:
        if plan.first_step >= step:
            break
        if plan.stage.adapters != "keep":
            towers.clear()
        for name in plan.stage.modes.lora_towers:
            towers.setdefault(name, getattr(plan.stage.lora, name))
    with torch.random.fork_rng(devices=[]):
        _add_adapters(model, towers)


def _add_adapters(model: RegionMedClipModel, settings: dict[str, Lora]) -> None:
    for name in TOWERS:
        if name in settings:
            add_adapter(tower_of(model, name), settings[name], f"lora.{name}")
