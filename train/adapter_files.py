"""Adapters on disk, as peft keeps them: those of a finished run, and the model that such a folder and its base make.

OUTPUT_DIR/adapter holds adapter_config.json and adapter_model.safetensors: the LoRA matrices, and whole what lies
beside the towers (ROI processor, fusion, proposal head, projections, temperatures). With its base,

    PeftModel.from_pretrained(RegionMedClipModel.from_pretrained(BASE), "OUTPUT_DIR/adapter")

computes what the finished model computes; OUTPUT_DIR/final is that model with the updates merged into its weights.
BASE is `model.start` where that folder was saved by this model and the towers under the adapters still have its
weights; else OUTPUT_DIR/adapter_base, the model as it is under its adapters. The config names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .adapters import ADAPTER, adapted_layers, detach_adapters, merge_layers
from .whole_files import write_whole_folder

ADAPTER_FOLDER, BASE_FOLDER = "adapter", "adapter_base"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NAME_PREFIX = "base_model.model."  # peft's, of every tensor in its files
TOWER_PARTS = ("vision_model", "text_model")


def merge_adapters(model: RegionMedClipModel) -> None:
    """Makes the model a plain one that computes the same; without adapters it stays as it is."""
    merge_layers(detach_adapters(model))


def save_and_merge_adapters(
    model: RegionMedClipModel,
    processor: RegionMedClipProcessor,
    output_dir: Path,
    find_base: Callable[[RegionMedClipModel], Path | None] | None,
) -> None:
    """Writes `adapter`, and `adapter_base` where it is needed, to `output_dir`, then merges; nothing without adapters.

    Args:
        processor: is saved with the base, so that a run can start from the adapter folder.
        find_base: gives the folder that holds the model under its adapters, None if there is none; see `Start`.
    """
    if not adapted_layers(model):
        return
    config, tensors = describe_adapters(model), adapter_tensors(model)
    layers = detach_adapters(model)
    base = None if find_base is None else find_base(model)
    if base is None:
        base = output_dir / BASE_FOLDER
        write_whole_folder(base, lambda folder: _save_base(model, processor, folder))
    config.base_model_name_or_path = str(base.resolve())
    write_whole_folder(output_dir / ADAPTER_FOLDER, lambda folder: _save_adapter(config, tensors, folder))
    merge_layers(layers)


def _save_base(model: RegionMedClipModel, processor: RegionMedClipProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_adapter(config: LoraConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def describe_adapters(model: RegionMedClipModel) -> LoraConfig:
    """peft's description of the model's adapters for a file; the towers may differ in rank and alpha."""
    layers = adapted_layers(model)
    first_of_tower: dict[str, LoraLayer] = {}
    for name, layer in layers.items():
        first_of_tower.setdefault(name.partition(".")[0], layer)
    ranks = {tower: layer.r[ADAPTER] for tower, layer in first_of_tower.items()}
    alphas = {tower: layer.lora_alpha[ADAPTER] for tower, layer in first_of_tower.items()}
    default = next(iter(ranks))
    config = LoraConfig(
        r=ranks[default],
        lora_alpha=alphas[default],
        rank_pattern={_all_of(tower): rank for tower, rank in ranks.items() if rank != ranks[default]},
        alpha_pattern={_all_of(tower): alpha for tower, alpha in alphas.items() if alpha != alphas[default]},
        modules_to_save=_parts_beside_towers(model),
        inference_mode=True,
    )
    config.target_modules = list(layers)  # set afterwards, for peft would make it a set and write it in any order
    return config


def _all_of(part: str) -> str:
    return rf"{part}\..*"


def _parts_beside_towers(model: RegionMedClipModel) -> list[str]:
    """Names of the parts that have parameters and are no tower."""
    parts = model.named_children()
    return [name for name, part in parts if name not in TOWER_PARTS and next(part.parameters(), None) is not None]


def adapter_tensors(model: RegionMedClipModel) -> dict[str, Tensor]:
    """The tensors of an adapter file by peft's names, on the CPU; sharing nothing with the model."""
    found = {}
    for name, layer in adapted_layers(model).items():
        for matrix in ("lora_A", "lora_B"):
            found[f"{name}.{matrix}.weight"] = getattr(layer, matrix)[ADAPTER].weight
    for part in _parts_beside_towers(model):
        found |= {f"{part}.{name}": tensor for name, tensor in model.get_submodule(part).state_dict().items()}
    return {NAME_PREFIX + name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter that peft can read."""
    return (folder / CONFIG_FILE).is_file()


def base_of_adapter(folder: Path) -> Path:
    """The folder of the model that the adapter in `folder` belongs on.

    Raises:
        ValueError: if it is not where the adapter says, nor beside the adapter.
    """
    named = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    beside = folder.resolve().parent / BASE_FOLDER  # a run that has been moved as a whole
    for base in (beside, Path(named)):
        if Path(named).name == base.name and (base / "config.json").is_file():
            return base
    raise ValueError(
        f"{folder} is an adapter on {named!r}, which is no folder with a model, and there is none in {beside}; bring "
        f"the base there, or correct base_model_name_or_path in its {CONFIG_FILE}."
    )


def load_with_adapter(folder: Path) -> RegionMedClipModel:
    """The float32 model of an adapter folder and its base, the adapter merged into its weights."""
    model = RegionMedClipModel.from_pretrained(base_of_adapter(folder), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):  # peft draws matrices before it reads them
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    detach_adapters(merged)  # what peft leaves on the model of its description
    return merged
