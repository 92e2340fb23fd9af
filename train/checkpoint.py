"""Checkpoints of a run: written whole or not at all, read with tensors and primitives only; the newest and best kept.

A checkpoint is the folder `step_00000123`, or `best`, with the model and the moving average where there is one
(safetensors), the optimiser (tensors and primitives, read with weights_only=True) and `state.json`. No state of a
random number generator is in it: the random numbers of each process follow from (seed, step, rank), see `step_seed`,
the order of samples, their augmentation and noise from (seed, position): seed, step and position are the whole of it.
Beside the checkpoints lies the teacher of a label-free stage while that stage runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .dataclass_values import build_dataclass
from .run_identity import refuse_other_identity
from .whole_files import PARTIAL_SUFFIX, delete_whole_folder, flush_to_disk, write_whole_folder

STEP_FOLDER = "step_[0-9]*"
BEST_FOLDER = "best"
AVERAGE_FILE = "average.safetensors"
TEACHERS = "teacher_*.safetensors"
LIBRARIES = ("torch", "transformers", "accelerate", "peft")


def installed_versions() -> dict[str, str]:
    """Versions of the libraries that compute the weights, by name."""
    return {name: version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Best:
    """The figure for which a checkpoint was kept as the best so far."""

    metric: str
    value: float
    split: str  # on which it was taken


@dataclass(frozen=True)
class RunState:
    """Where a run stands after `step` optimiser steps.

    `position` is the next global sample position of the stage's data and `epoch` the pass over them that holds it.
    """

    step: int
    stage: str
    epoch: int
    position: int
    seed: int
    identity: dict[str, Any]  # of the run; see `run_identity`
    best: Best | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)


@dataclass(frozen=True)
class CheckpointTensors:
    """What a checkpoint holds beside its state: whole tensors by name, on any device."""

    model: Mapping[str, Tensor]
    optimizer: dict[str, Any]  # as `state_dict` of an optimiser gives it
    average: Mapping[str, Tensor] | None = None


def save_checkpoint(folder: Path, tensors: CheckpointTensors, state: RunState, num_kept: int) -> Path:
    """The checkpoint's path; older ones beyond `num_kept` are deleted after the new one is safely on disk."""
    path = folder / f"step_{state.step:08d}"
    write_whole_folder(path, lambda into: _write(into, tensors, state))
    for old in list_checkpoints(folder)[:-num_kept]:
        delete_whole_folder(old)
    return path


def save_best(folder: Path, tensors: CheckpointTensors, state: RunState) -> Path:
    """The path of the best checkpoint, written in the place of the last best one; `state.best` says of what."""
    assert state.best is not None
    path = folder / BEST_FOLDER
    write_whole_folder(path, lambda into: _write(into, tensors, state))
    return path


def _write(folder: Path, tensors: CheckpointTensors, state: RunState) -> None:
    _save_tensors(tensors.model, folder / "model.safetensors")
    if tensors.average is not None:
        _save_tensors(tensors.average, folder / AVERAGE_FILE)
    torch.save(tensors.optimizer, folder / "optimizer.pt")
    (folder / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, facts: dict[str, str] | None = None) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=facts)


def save_teacher(path: Path, teacher: nn.Module, facts: dict[str, str]) -> None:
    """Writes the weights of a stage's teacher, and the facts by which they are known again, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    _save_tensors(teacher.state_dict(), temporary, facts)
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)


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


def discard_teachers(folder: Path, but: Path | None) -> None:
    """Deletes the teachers in `folder` of all stages, except that at `but`: a kill may have left them."""
    for path in folder.glob(TEACHERS):
        if path != but:
            path.unlink()


def find_checkpoint(folder: Path, identity: Mapping[str, Any]) -> tuple[Path, RunState] | None:
    """The newest checkpoint in `folder` with its state, None if there is none.

    Raises:
        ValueError: if it belongs to another recipe or other data; the message says what differs.
    """
    paths = list_checkpoints(folder)
    if not paths:
        return None
    state = read_state(paths[-1])
    refuse_other_identity(paths[-1], state.identity, identity)
    return paths[-1], state


def best_state(folder: Path) -> RunState | None:
    """The state of the best checkpoint in `folder`, None if there is none."""
    path = folder / BEST_FOLDER
    return read_state(path) if path.is_dir() else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; half-written ones, and the best one, are not among them."""
    return sorted(path for path in folder.glob(STEP_FOLDER) if not path.suffix and path.is_dir())


def read_state(path: Path) -> RunState:
    """The state of a checkpoint.

    Raises:
        ValueError: if another version of this program wrote it.
    """
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        return build_dataclass(RunState, values, str(path))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'state.json'} is not as this version of the program writes it ({error}); resume with the version "
            "that did, or train into another --output_dir."
        ) from error


def load_model_weights(path: Path, model: nn.Module) -> None:
    """Loads the checkpoint's weights into `model`, every name and shape matching."""
    model.load_state_dict(load_file(path / "model.safetensors"))


def load_optimizer(path: Path) -> dict[str, Any]:
    """The optimiser's state in a checkpoint, its tensors on the CPU."""
    return torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")


def load_average(path: Path) -> dict[str, Tensor]:
    """The moving average in a checkpoint of a stage that has one, on the CPU."""
    return load_file(path / AVERAGE_FILE)
