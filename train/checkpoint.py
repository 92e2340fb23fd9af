"""Checkpoints of a run: written whole or not at all, read with tensors and primitives only, the newest kept.

A checkpoint is the folder `step_00000123` with the model (safetensors), the optimiser (tensors and primitives, read
with weights_only=True) and `state.json`. Random states are not in it: a step's random numbers follow from its seed.
Beside them lies the teacher of a label-free stage while that stage runs.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TEMPORARY_SUFFIX = ".partial"


@dataclass(frozen=True)
class RunState:
    """Where a run stands after `step` optimiser steps; `position` is the next global sample position."""

    step: int
    stage: str
    epoch: int
    position: int
    recipe_fingerprint: str


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, num_kept: int
) -> Path:
    """The checkpoint's path; older ones beyond `num_kept` are deleted after the new one is safely on disk."""
    path = folder / f"step_{state.step:08d}"
    temporary = path.with_suffix(TEMPORARY_SUFFIX)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    save_file(_tensors_of(model), temporary / "model.safetensors")
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    for file in temporary.iterdir():
        _flush_to_disk(file)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    _flush_to_disk(folder)
    for old in list_checkpoints(folder)[:-num_kept]:
        shutil.rmtree(old)
    return path


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def save_teacher(path: Path, teacher: nn.Module, facts: dict[str, str]) -> None:
    """Writes the weights of a stage's teacher, and the facts by which they are known again, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(TEMPORARY_SUFFIX)
    save_file(_tensors_of(teacher), temporary, metadata=facts)
    _flush_to_disk(temporary)
    temporary.replace(path)
    _flush_to_disk(path.parent)


def load_teacher(path: Path, teacher: nn.Module, facts: dict[str, str]) -> None:
    """Loads the weights that `save_teacher` wrote into `teacher`.

    Raises:
        ValueError: if there are none, or those of other facts.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; a stage of region_distillation cannot be resumed in its middle without its teacher. "
            "Restore the file, or train again into another --output_dir."
        )
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    if found != facts:
        raise ValueError(
            f"{path} holds the teacher of {found}, this run needs that of {facts}; restore the right file, or train "
            "again into another --output_dir."
        )
    teacher.load_state_dict(load_file(path))


def write_whole(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def refuse_other_run(folder: Path, recipe_fingerprint: str) -> None:
    """Raises a ValueError if the newest checkpoint in `folder` belongs to another recipe or other data."""
    for path in list_checkpoints(folder)[-1:]:
        read_state(path, recipe_fingerprint)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; half-written ones are not among them."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != TEMPORARY_SUFFIX and path.is_dir())


def read_state(path: Path, recipe_fingerprint: str) -> RunState:
    """The state of a checkpoint.

    Raises:
        ValueError: if it belongs to a recipe, or to data, that would give other weights.
    """
    state = RunState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    if state.recipe_fingerprint != recipe_fingerprint:
        raise ValueError(
            f"{path} was written by the recipe and data {state.recipe_fingerprint}, this run has "
            f"{recipe_fingerprint}; resume with the recipe.yaml and data of that run, or choose another --output_dir."
        )
    return state


def load_model_weights(path: Path, model: nn.Module) -> None:
    """Loads the checkpoint's weights into `model`, every name and shape matching."""
    model.load_state_dict(load_file(path / "model.safetensors"))


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Loads the optimiser's state of the checkpoint."""
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"))
