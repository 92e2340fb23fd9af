"""Recipes and the command line: every default hyper-parameter lives here, a recipe file holds only what differs."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE

RECIPES_FOLDER = Path(__file__).resolve().parent / "recipes"
DEFAULT_RECIPE = RECIPES_FOLDER / "quickstart.yaml"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EVALUATION_TASKS = ("retrieval", "zero_shot", "region", "proposals", "robustness")
PARAMETER_GROUPS = ("vision", "text", "roi")
TEXT_TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")
LOSS_TERMS = (*TEXT_TERMS, "proposals", "region_distillation")
REGION_TERMS = ("region_text", "image_region_text", "fused_image_text", "proposals")  # they need annotated regions
ROI_TERMS = ("region_text", "fused_image_text", "proposals", "region_distillation")  # they train ROI processing


@dataclass(frozen=True)
class TowerModes:
    """What of each part is trained: "full" or "frozen"; the projections go with their tower."""

    vision: str = "full"
    text: str = "full"
    roi: str = "full"

    def check(self, where: str) -> None:
        """Raises a ValueError for an unknown mode."""
        for name in PARAMETER_GROUPS:
            if getattr(self, name) not in ("full", "frozen"):
                raise ValueError(
                    f"{where}.{name} is {getattr(self, name)!r}; it must be full or frozen "
                    "(lora is not in this version)."
                )


@dataclass(frozen=True)
class Stage:
    """One stage of a progressive run.

    `loss_weights` maps terms of `LOSS_TERMS` to weights above 0; a term that is not named is not computed.
    """

    name: str = "joint"
    steps: int = 100
    learning_rate: float = 1e-3
    final_learning_rate_share: float = 0.05  # of `learning_rate`, reached by a cosine at the stage's last step
    warmup_steps: int = 0
    loss_weights: dict[str, float] = field(default_factory=lambda: {"image_text": 1.0})
    modes: TowerModes = field(default_factory=TowerModes)

    def check(self, where: str) -> None:
        """Raises a ValueError for a stage that could not run or would train nothing."""
        _require(where, "steps", self.steps, self.steps >= 1, "at least 1")
        _require(where, "learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _require(where, "warmup_steps", self.warmup_steps, 0 <= self.warmup_steps < self.steps, "from 0 to steps - 1")
        share = self.final_learning_rate_share
        _require(where, "final_learning_rate_share", share, 0 <= share <= 1, "from 0 to 1")
        if not self.loss_weights:
            raise ValueError(f"{where}.loss_weights is empty; give at least one of {', '.join(LOSS_TERMS)} a weight.")
        for term, weight in self.loss_weights.items():
            if term not in LOSS_TERMS:
                raise ValueError(f"{where}.loss_weights has {term!r}; the known terms are {', '.join(LOSS_TERMS)}.")
            _require(where, f"loss_weights.{term}", weight, weight > 0, "above 0; leave a term out to switch it off")
        self.modes.check(f"{where}.modes")
        uses_roi = any(term in self.loss_weights for term in ROI_TERMS)
        uses_text = any(term in self.loss_weights for term in TEXT_TERMS)
        is_idle = {"vision": self.modes.vision == "frozen"}
        is_idle["text"] = self.modes.text == "frozen" or not uses_text
        is_idle["roi"] = self.modes.roi == "frozen" or not uses_roi
        if all(is_idle.values()):
            raise ValueError(
                f"{where} would train nothing: each of vision, text and roi is frozen or used by none of its terms "
                f"{', '.join(self.loss_weights)}. Set a mode to full, or add a term."
            )


@dataclass(frozen=True)
class Tokenizer:
    """`source` "train" trains one on the training texts, "start" takes that of the checkpoint `model.start`; anything
    else is a folder or Hub id of a tokenizer.
    """

    source: str = "train"
    vocab_size: int = 4096
    max_length: int = 64

    def check(self, where: str) -> None:
        """Raises a ValueError for a size no tokenizer could have."""
        _require(
            where, "vocab_size", self.vocab_size, self.vocab_size >= 260, "at least 260 (256 bytes, 4 special tokens)"
        )
        _require(where, "max_length", self.max_length, self.max_length >= 3, "at least 3")


@dataclass(frozen=True)
class Optimizer:
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    max_grad_norm: float = 1.0

    def check(self, where: str) -> None:
        """Raises a ValueError for a setting with which nothing would be learnt."""
        _require(where, "weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _require(where, "betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "from 0 to below 1")
        _require(where, "epsilon", self.epsilon, self.epsilon > 0, "above 0")
        _require(where, "max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")


@dataclass(frozen=True)
class Evaluation:
    tasks: tuple[str, ...] = ("retrieval", "zero_shot", "region")  # proposals only where a stage trains them
    split: str = "test"
    batch_size: int = 64

    def check(self, where: str) -> None:
        """Raises a ValueError for an unknown task or an empty batch."""
        is_known = bool(self.tasks) and set(self.tasks) <= set(EVALUATION_TASKS)
        _require(where, "tasks", self.tasks, is_known, f"at least one of {', '.join(EVALUATION_TASKS)}")
        _require(where, "batch_size", self.batch_size, self.batch_size >= 1, "at least 1")


@dataclass(frozen=True)
class Distillation:
    """The boxes that the term `region_distillation` draws in every image, anew at every step."""

    regions: int = 8
    min_side: float = 0.2  # of the frame's side; at least a patch and a half
    max_side: float = 0.6

    def check(self, where: str) -> None:
        """Raises a ValueError for boxes that could not be drawn."""
        _require(where, "regions", self.regions, self.regions >= 1, "at least 1")
        _require(where, "max_side", self.max_side, 0 < self.max_side <= 1, "above 0 and at most 1")
        _require(where, "min_side", self.min_side, 0 < self.min_side <= self.max_side, "above 0 and at most max_side")


@dataclass(frozen=True)
class Recipe:
    """A whole run; see the fields' comments. `data` and `model` are plain values with their own checks."""

    name: str = "recipe"
    data: str | None = None  # phantom[:key=value,...] | jsonl:FOLDER | built corpus folder | mixture A*2 + B*1
    seed: int = 0
    image_size: int = 224  # pixels, side of the square frame the model sees
    max_regions: int = 8  # regions of one image that take part in one step; the choice changes from epoch to epoch
    box_noise: float = 0.0  # share of a box's sides by which its edges are moved at most, drawn anew at every position
    global_batch_size: int = 128  # images of one optimiser step over all processes
    num_processes: int | None = None  # None: any number that divides the batch
    precision: str = "auto"  # bf16 where the hardware has it, else fp32
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    baseline: bool = False  # train plain-clip too: the same steps with the region terms off
    log_sample_ids: bool = False  # a hash of the global batch's sample ids in every row of metrics.jsonl
    preparation_workers: int = 2  # processes that draw or decode images: before a run, or from shards while it trains
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    distillation: Distillation = field(default_factory=Distillation)
    model: dict[str, Any] = field(default_factory=dict)  # fields of RegionMedClipConfig, and `start` (starts.py)
    stages: tuple[Stage, ...] = ()

    def check(self) -> None:
        """Raises a ValueError that names the key, its value, the rule and the way out."""
        where = f"recipe {self.name!r}"
        for name in ("image_size", "max_regions", "global_batch_size", "checkpoint_every_steps", "keep_checkpoints"):
            _require(where, name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _require(where, "preparation_workers", self.preparation_workers, self.preparation_workers >= 1, "at least 1")
        _require(where, "box_noise", self.box_noise, 0 <= self.box_noise <= MAX_BOX_NOISE, f"from 0 to {MAX_BOX_NOISE}")
        _require(where, "precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        _require(
            where, "name", self.name, bool(re.fullmatch(r"\w[\w.-]*", self.name)), "letters, digits, '.', '_', '-'"
        )
        _require(where, "seed", self.seed, self.seed >= 0, "at least 0")
        is_count = self.num_processes is None or self.num_processes >= 1
        _require(where, "num_processes", self.num_processes, is_count, "at least 1, or null for any")
        for part in ("tokenizer", "optimizer", "evaluation", "distillation"):
            getattr(self, part).check(f"{where}: {part}")
        if not self.data:
            raise ValueError(
                f"{where} names no data; add data=phantom, data=jsonl:FOLDER or data=FOLDER of a built corpus to the "
                "command or the recipe."
            )
        if not self.stages:
            raise ValueError(f"{where} has no stages; a recipe is a list of at least one stage.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"{where} has stages named {names}; every stage needs a name of its own.")
        for stage in self.stages:
            stage.check(f"{where}: stage {stage.name!r}")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def loss_terms(self) -> frozenset[str]:
        """The terms that at least one stage computes."""
        return frozenset(term for stage in self.stages for term in stage.loss_weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def fingerprint(self) -> str:
        """Hash of everything that decides the weights; a checkpoint of another fingerprint is not resumed from."""
        undecisive = {"name", "baseline", "num_processes", "keep_checkpoints", "checkpoint_every_steps", "evaluation"}
        undecisive |= {"log_sample_ids", "preparation_workers"}
        if self.box_noise == 0:
            undecisive.add("box_noise")  # it is younger than checkpoints without it
        if "region_distillation" not in self.loss_terms:
            undecisive.add("distillation")
        fields = {key: value for key, value in self.to_dict().items() if key not in undecisive}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def plain_clip_recipe(recipe: Recipe) -> Recipe:
    """The same run with the region terms off and both towers trained throughout: the baseline of equal steps."""
    stages = tuple(
        dataclasses.replace(stage, loss_weights={"image_text": 1.0}, modes=TowerModes(roi="frozen"))
        for stage in recipe.stages
    )
    return dataclasses.replace(recipe, name=f"{recipe.name}-plain-clip", stages=stages, baseline=False)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a YAML file with `key=value` overrides applied; dots reach inner keys and stage names."""
    path = Path(path)
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
    recipe = build_dataclass(Recipe, values, str(path))
    recipe.check()
    return recipe


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"{override!r} on the command line is not key=value; write for instance seed=1.")
    *parents, last = key.split(".")
    target: Any = values
    for parent in parents:
        if isinstance(target, list):
            names = [stage.get("name") for stage in target]
            if parent not in names:
                raise ValueError(f"{override!r}: there is no stage {parent!r}; the recipe's stages are {names}.")
            target = target[names.index(parent)]
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


def build_dataclass(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` from plain values; unknown keys and wrong types are ValueErrors."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be a mapping of keys to values.")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}; the known keys are {', '.join(known)}.")
    return kind(**{key: _coerce(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; YAML's 1e-3, which it reads as text, becomes a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(item for item in arguments if item is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; it must be a list.")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where} is {value!r}; it must have {len(inner)} entries.")
        return tuple(_coerce(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(inner, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a mapping of keys to values.")
        return {str(key): _coerce(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    return _coerce_scalar(hint, value, where)


def _coerce_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"{where} is {value!r}; it must be a number.") from error
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ValueError(f"{where} is {value!r}; it must be {names[hint]}.")


def _require(where: str, name: str, value: Any, is_met: bool, rule: str) -> None:
    if not is_met or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where}: {name} is {value!r}; it must be {rule}.")


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
