"""Recipes and the command line; hyper-parameters have their defaults here and in recipe_parts.py, and nowhere else."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .dataclass_values import build_dataclass, require
from .recipe_parts import (
    Augmentation,
    Distillation,
    Evaluation,
    Optimizer,
    Stage,
    Tokenizer,
    TowerModes,
    Validation,
    check_adapters,
    check_sample_settings,
)

RECIPES_FOLDER = Path(__file__).resolve().parent / "recipes"
DEFAULT_RECIPE = RECIPES_FOLDER / "quickstart.yaml"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
UNDECISIVE = (  # keys of a recipe that change nothing in its weights
    *("name", "baseline", "keep_checkpoints", "checkpoint_every_steps", "evaluation", "validation"),
    *("log_sample_ids", "preparation_workers", "trackers"),
)
SHARING = ("num_processes", "batch_size_per_device")  # how a step is shared out: rounding and draws of dropout alone
MAX_SEED = 2**32 - 1  # NumPy's


@dataclass(frozen=True)
class Recipe:
    """A whole run; see the fields' comments. `data` and `model` are plain values with their own checks."""

    name: str = "recipe"
    data: str | None = None  # phantom[:key=value,...] | jsonl:FOLDER | built corpus folder | mixture A*2 + B*1
    seed: int = 0
    image_size: int = 224  # pixels, side of the square frame the model sees; a stage may train on another
    max_regions: int = 8  # regions of one image that take part in one step; the choice changes from epoch to epoch
    box_noise: float = 0.0  # share of a box's sides by which its edges are moved at most, drawn anew at every position
    num_negatives: int = 0  # hard negatives of one region that take part in one step
    similarity_filter: float | None = None  # pairs whose texts' embeddings have a higher cosine are no negatives
    augmentation: Augmentation = field(default_factory=Augmentation)
    global_batch_size: int = 128  # images of one optimiser step over all processes
    batch_size_per_device: int | None = None  # images of one pass; less than a process's share: gradient caching
    ema_decay: float | None = None  # of the moving average of the weights that is evaluated and saved; None: none
    num_processes: int | None = None  # None: any number that divides the batch
    precision: str = "auto"  # bf16 where the hardware has it, else fp32
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    baseline: bool = False  # train plain-clip too: the same steps with the region terms off
    log_sample_ids: bool = False  # a hash of the global batch's sample ids in every row of metrics.jsonl
    preparation_workers: int = 2  # processes that draw, decode or crop images, before a run and while it trains
    trackers: tuple[str, ...] = ("tensorboard",)  # of Accelerate: tensorboard, wandb, mlflow ...
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    validation: Validation = field(default_factory=Validation)
    distillation: Distillation = field(default_factory=Distillation)
    model: dict[str, Any] = field(default_factory=dict)  # fields of RegionMedClipConfig, and `start` (starts.py)
    stages: tuple[Stage, ...] = ()

    def check(self) -> None:
        """Raises a ValueError that names the key, its value, the rule and the way out."""
        where = f"recipe {self.name!r}"
        for name in ("checkpoint_every_steps", "keep_checkpoints", "preparation_workers"):
            require(where, name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check_sample_settings(self, where)
        require(where, "precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require(where, "name", self.name, bool(re.fullmatch(r"\w[\w.-]*", self.name)), "letters, digits, '.', '_', '-'")
        require(where, "seed", self.seed, 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
        is_count = self.num_processes is None or self.num_processes >= 1
        require(where, "num_processes", self.num_processes, is_count, "at least 1, or null for any")
        for part in ("tokenizer", "optimizer", "evaluation", "validation", "distillation"):
            getattr(self, part).check(f"{where}: {part}")
        if not self.data:
            raise ValueError(
                f"{where} names no data; add data=phantom, data=jsonl:FOLDER or data=FOLDER of a built corpus to the "
                "command or the recipe."
            )
        self._check_stages(where)

    def _check_stages(self, where: str) -> None:
        if not self.stages:
            raise ValueError(f"{where} has no stages; a recipe is a list of at least one stage.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"{where} has stages named {names}; every stage needs a name of its own.")
        for stage in self.stages:
            here = f"{where}: stage {stage.name!r}"
            stage.check(here)
            if "hard_negatives" in stage.loss_weights and not stage.settled(self).num_negatives:
                raise ValueError(
                    f"{here} has the term hard_negatives and num_negatives 0; set num_negatives, for instance to 3, "
                    "or leave the term out."
                )
            bias = self.model.get("logit_bias_init_value")
            if "sigmoid" in stage.loss_kinds.values() and bias is None and "start" not in self.model:
                raise ValueError(
                    f"{here} has a sigmoid loss, and the model no bias to it; set model.logit_bias_init_value, for "
                    "instance to -10 as SigLIP does."
                )
        check_adapters(self.stages, where)

    def settled(self) -> Recipe:
        """The recipe with every stage's open fields filled in."""
        return dataclasses.replace(self, stages=tuple(stage.settled(self) for stage in self.stages))

    def with_steps(self, num_samples: Sequence[int]) -> Recipe:
        """The recipe with epochs turned into steps, from the number of training images of each stage's data."""
        stages = []
        for stage, number in zip(self.settled().stages, num_samples, strict=True):
            if stage.epochs is not None:
                steps = math.ceil(stage.epochs * number / stage.global_batch_size)
                stage = dataclasses.replace(stage, steps=steps, epochs=None)
                stage.check(f"recipe {self.name!r}: stage {stage.name!r} of {number} images")
            stages.append(stage)
        return dataclasses.replace(self, stages=tuple(stages))

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all stages together, of a recipe whose epochs have been turned into steps."""
        return sum(stage.steps for stage in self.stages if stage.steps is not None)

    @property
    def loss_terms(self) -> frozenset[str]:
        """The terms that at least one stage computes."""
        return frozenset(term for stage in self.stages for term in stage.loss_weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def decisive(self) -> dict[str, Any]:
        """Plain values of everything that decides the weights, but for their last bits and the draws of dropout."""
        fields = self.settled().to_dict()
        if "region_distillation" not in self.loss_terms:
            del fields["distillation"]
        fields["stages"] = [_without(stage, SHARING) for stage in fields["stages"]]
        return _without(fields, (*UNDECISIVE, *SHARING))

    def fingerprint(self) -> str:
        """Hash of everything that decides the weights; a checkpoint of another fingerprint is not resumed from."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()[:16]


def _without(fields: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def plain_clip_recipe(recipe: Recipe) -> Recipe:
    """The same run with the region terms off and both towers trained throughout: the baseline of equal steps."""
    stages = tuple(
        dataclasses.replace(
            stage, loss_weights={"image_text": 1.0}, loss_kinds={}, modes=TowerModes(roi="frozen"), adapters="drop"
        )
        for stage in recipe.stages
    )
    changes = {"name": f"{recipe.name}-plain-clip", "baseline": False, "validation": recipe.validation.of_plain_clip()}
    return dataclasses.replace(recipe, stages=stages, **changes)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a YAML file with `key=value` overrides applied; dots reach inner keys and stage names."""
    path = Path(path)
    recipe = build_dataclass(Recipe, read_recipe_values(path, overrides), str(path))
    recipe.check()
    return recipe


def read_recipe_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The plain values of a recipe's YAML file with the overrides applied; `name` is the file's where it has none."""
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in RECIPES_FOLDER.glob("*.yaml")))
        raise ValueError(
            f"recipe {str(path)!r} is not a file; give a path, for instance one of train/recipes: {known}."
        )
    values = _read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a YAML mapping of keys to values, not {type(values).__name__}.")
    for override in overrides:
        _apply_override(values, override)
    values.setdefault("name", path.stem)
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"{override!r} on the command line is not key=value; write for instance seed=1.")
    *parents, last = key.split(".")
    target: Any = values
    for parent in parents:
        if isinstance(target, list):
            names = [stage.get("name") for stage in target if isinstance(stage, dict)]
            if parent not in names:
                raise ValueError(f"{override!r}: there is no stage {parent!r}; the recipe's stages are {names}.")
            target = next(stage for stage in target if isinstance(stage, dict) and stage.get("name") == parent)
        else:
            target = target.setdefault(parent, {})
        if not isinstance(target, dict | list):
            raise ValueError(f"{override!r}: {parent!r} holds a single value, nothing lies below it.")
    if isinstance(target, list):
        raise ValueError(f"{override!r}: name the key to set inside the stage, for instance {key}.steps=10.")
    target[last] = _read_yaml(text, repr(override))


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}. Check its brackets, quotes and indentation.") from error


@dataclass(frozen=True)
class CommandLine:
    recipe: Recipe
    recipe_path: Path
    output_dir: Path | None
    resume: bool
    text: str  # the command without its output folder, for the record


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """The checked command line of train/pretrain.py."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch train/pretrain.py",
        description="Progressive training of RegionMed-CLIP; with no argument the quickstart on the phantom corpus.",
    )
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, help="YAML recipe (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, help="default: the next free runs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe keys, e.g. seed=1 stages.joint.steps=50"
    )
    parsed = parser.parse_intermixed_args(list(arguments))
    recipe = load_recipe(parsed.recipe, parsed.overrides)
    told = (
        ["--recipe", str(parsed.recipe)] if parsed.recipe != DEFAULT_RECIPE else []
    )  # where it is written says nothing
    command = shlex.join(["accelerate", "launch", "train/pretrain.py", *told, *parsed.overrides])
    return CommandLine(recipe, parsed.recipe, parsed.output_dir, parsed.resume, command)
