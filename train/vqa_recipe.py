"""Recipes and the command line of train/finetune_vqa.py; their hyper-parameters have their defaults here alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE

from .arguments import MAX_SEED, PRECISIONS, RECIPES_FOLDER, read_recipe_values
from .dataclass_values import build_dataclass, require
from .recipe_parts import TOWERS, LoraOfTowers, Optimizer, Stage, TowerModes, check_schedule

DEFAULT_RECIPE = RECIPES_FOLDER / "vqa_quickstart.yaml"
STAGE_NAME = "answers"  # the one stage of such a run, in its logs and checkpoints
VQA_RATE_GROUPS = ("vision", "text", "roi", "head")
REGION_MODES = ("given", "proposed", "off")
QUESTION_ONLY, RANDOM_ENCODER = CONTROLS = ("question_only", "random_encoder")
ANSWER_FIELDS = ("answer_hidden_size", "answer_num_layers", "answer_num_heads", "answer_dropout")  # of the config
UNDECISIVE = (  # keys of a recipe that change nothing in its weights
    *("name", "start", "controls", "num_processes", "keep_checkpoints", "checkpoint_every_steps", "evaluation"),
    *("preparation_workers", "trackers"),
)
MISSING_START = (
    "start is missing; name the folder of the trained encoder, for instance start=runs/quickstart/final (a run of "
    "train/pretrain.py leaves it)"
)


@dataclass(frozen=True)
class RegionShares:
    """In which shares of the training questions regions are given, proposed by the model, or left out (mode "off").

    The mode is drawn for every question at every position, so that one model answers in each mode that has a share.
    """

    given: float = 0.5
    proposed: float = 0.2
    left_out: float = 0.3  # not "off", which YAML reads as false

    def check(self, where: str) -> None:
        """Raises a ValueError for shares that are none."""
        for name in ("given", "proposed", "left_out"):
            require(where, name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        require(where, "the sum of the shares", sum(self.shares()), sum(self.shares()) > 0, "above 0")

    def shares(self) -> tuple[float, ...]:
        """The shares in the order of `REGION_MODES`."""
        return self.given, self.proposed, self.left_out

    def by_mode(self) -> dict[str, float]:
        """The modes that have a share, with it."""
        return {mode: share for mode, share in zip(REGION_MODES, self.shares()) if share > 0}


@dataclass(frozen=True)
class Answers:
    """Which answers of the training split become classes: the frequent ones, most frequent first."""

    min_count: int = 1
    max_answers: int | None = None  # None: all

    def check(self, where: str) -> None:
        """Raises a ValueError for a vocabulary that would be empty."""
        require(where, "min_count", self.min_count, self.min_count >= 1, "at least 1")
        most = self.max_answers
        require(where, "max_answers", most, most is None or most >= 2, "at least 2, or null for all")


@dataclass(frozen=True)
class EarlyStopping:
    """When the accuracy on the validation split is taken, and when a run without progress ends.

    The weights of the best validation are those that are saved. The test split takes no part.
    """

    every_steps: int = 50
    patience: int = 5  # validations in a row without a new best, after which the run ends
    max_images: int | None = 400  # of the validation split, the first by hash; None: all
    batch_size: int = 64

    def check(self, where: str) -> None:
        """Raises a ValueError for numbers that could not be."""
        for name in ("every_steps", "patience", "batch_size"):
            require(where, name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        most = self.max_images
        require(where, "max_images", most, most is None or most >= 1, "at least 1, or null for all")


@dataclass(frozen=True)
class QuestionEvaluation:
    """The figures of the finished models, on a split that neither training nor early stopping has seen."""

    split: str = "test"
    max_images: int | None = None  # the first by the hash of their names; None: all
    batch_size: int = 64

    def check(self, where: str) -> None:
        """Raises a ValueError for an empty batch or split, or a split that the model was fitted or chosen on."""
        require(where, "batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        most = self.max_images
        require(where, "max_images", most, most is None or most >= 1, "at least 1, or null for all")
        is_unseen = self.split not in ("train", "validation")
        require(where, "split", self.split, is_unseen, "neither train nor validation: on these the model was chosen")


@dataclass(frozen=True)
class VqaRecipe:
    """A whole fine-tuning run. A field that is no mode of its own is as in the recipes of train/pretrain.py."""

    name: str = "recipe"
    start: str | None = None  # folder of the trained encoder, or of a checkpoint that pretraining can start from
    encoder: str = "pretrained"  # or "random": the start's configuration and tokenizer, drawn anew by the seed
    has_images: bool = True  # False: the question alone, whatever it asks of
    controls: tuple[str, ...] = ()  # of CONTROLS, trained by the same recipe into OUTPUT_DIR/controls/NAME
    data: str | None = None  # as in train/pretrain.py; the parts of a mixture one after the other, without weights
    derived_questions: bool = True  # add those that the regions of an image answer by rule
    balance_questions: bool = True  # leave out training questions until their wording tells less of the answer
    answers: Answers = field(default_factory=Answers)
    regions: RegionShares = field(default_factory=RegionShares)
    max_regions: int = 8
    box_noise: float = 0.0
    seed: int = 0
    steps: int | None = None  # this or `epochs`
    epochs: float | None = None  # passes over the training images, rounded up to whole steps
    global_batch_size: int = 32  # images of one step over all processes
    questions_per_image: int = 4  # most questions of one image that take part in one step, drawn anew each time
    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)  # by group of VQA_RATE_GROUPS
    final_learning_rate_share: float = 0.05
    warmup_steps: int = 0
    modes: TowerModes = field(default_factory=TowerModes)
    lora: LoraOfTowers = field(default_factory=LoraOfTowers)
    optimizer: Optimizer = field(default_factory=Optimizer)
    model: dict[str, Any] = field(default_factory=dict)  # fields ANSWER_FIELDS of RegionMedClipConfig
    validation: EarlyStopping = field(default_factory=EarlyStopping)
    evaluation: QuestionEvaluation = field(default_factory=QuestionEvaluation)
    num_processes: int | None = None
    precision: str = "auto"
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    preparation_workers: int = 2
    trackers: tuple[str, ...] = ("tensorboard",)

    def check(self) -> None:
        """Raises a ValueError that names the key, its value, the rule and the way out."""
        where = f"recipe {self.name!r}"
        require(where, "name", self.name, bool(re.fullmatch(r"\w[\w.-]*", self.name)), "letters, digits, '.', '_', '-'")
        if not self.start:
            raise ValueError(f"{where}: {MISSING_START}.")
        if not self.data:
            raise ValueError(
                f"{where} names no data; add data=phantom:num_validation=200, data=jsonl:FOLDER or the like."
            )
        for name in ("answers", "regions", "validation", "evaluation", "optimizer"):
            getattr(self, name).check(f"{where}: {name}")
        for name in ("checkpoint_every_steps", "keep_checkpoints", "preparation_workers", "max_regions"):
            require(where, name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("global_batch_size", "questions_per_image"):
            require(where, name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        require(where, "precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require(where, "seed", self.seed, 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
        require(where, "box_noise", self.box_noise, 0 <= self.box_noise <= MAX_BOX_NOISE, f"from 0 to {MAX_BOX_NOISE}")
        is_known = self.encoder in ("pretrained", "random")
        require(where, "encoder", self.encoder, is_known, "pretrained or random")
        is_known = set(self.controls) <= set(CONTROLS)
        require(where, "controls", list(self.controls), is_known, f"some of {', '.join(CONTROLS)}")
        self._check_model(where)
        check_schedule(self, where, VQA_RATE_GROUPS)

    def _check_model(self, where: str) -> None:
        self.modes.check(f"{where}: modes")
        for tower in TOWERS:
            getattr(self.lora, tower).check(f"{where}: lora.{tower}")
        if self.lora != LoraOfTowers() and not self.modes.lora_towers:
            raise ValueError(
                f"{where} has settings in lora, and no tower trains by it; set modes.vision or modes.text."
            )
        for key in self.model:
            if key not in ANSWER_FIELDS:
                raise ValueError(
                    f"{where}: model has {key!r}; the encoder is taken as it is, and of the head one can set "
                    f"{', '.join(ANSWER_FIELDS)}."
                )

    def with_steps(self, num_images: int) -> VqaRecipe:
        """The recipe with epochs turned into steps, from the number of training images that have a question."""
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * num_images / self.global_batch_size)
        settled = dataclasses.replace(self, steps=steps, epochs=None)
        settled.check()
        return settled

    def stage(self) -> Stage:
        """The run as the one stage that the schedule, the adapters and the progress of pretraining know."""
        names = ("steps", "learning_rate", "learning_rates", "final_learning_rate_share", "warmup_steps")
        names = (*names, "modes", "lora", "global_batch_size")
        fields = {name: getattr(self, name) for name in names}
        return Stage(name=STAGE_NAME, weight_decay=self.optimizer.weight_decay, **fields)

    def control(self, name: str) -> VqaRecipe:
        """The recipe of a control: the same steps, without images or with an encoder that has learnt nothing."""
        changes: dict[str, Any] = {"has_images": False} if name == QUESTION_ONLY else {"encoder": "random"}
        if name == RANDOM_ENCODER:  # a frozen tower of random weights would be a handicap of another kind
            changes["modes"] = TowerModes()
            changes["lora"] = LoraOfTowers()
        return dataclasses.replace(self, name=f"{self.name}-{name}", controls=(), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML and JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def decisive(self) -> dict[str, Any]:
        """Plain values of everything that decides the weights but for the content of data and start."""
        return {key: value for key, value in self.to_dict().items() if key not in UNDECISIVE}


@dataclass(frozen=True)
class VqaCommandLine:
    recipe: VqaRecipe
    output_dir: Path | None
    resume: bool
    text: str  # the command without its output folder, for the record


def load_vqa_recipe(path: str | Path, overrides: Sequence[str] = ()) -> VqaRecipe:
    """The checked recipe of a YAML file, or of that name in train/recipes, with `key=value` overrides applied."""
    named = RECIPES_FOLDER / f"{path}.yaml"
    path = named if named.is_file() else Path(path)
    recipe = build_dataclass(VqaRecipe, read_recipe_values(path, overrides), str(path))
    recipe.check()
    return recipe


def parse_vqa_command_line(arguments: Sequence[str]) -> VqaCommandLine:
    """The checked command line of train/finetune_vqa.py."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch train/finetune_vqa.py",
        description="Fine-tunes a trained RegionMed-CLIP to answer questions; with its controls and their figures.",
    )
    parser.add_argument("--recipe", default=str(DEFAULT_RECIPE), help="YAML recipe, or a name in train/recipes")
    parser.add_argument("--output_dir", type=Path, help="default: the next free runs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys, e.g. start=FOLDER seed=1")
    parsed = parser.parse_intermixed_args(list(arguments))
    recipe = load_vqa_recipe(parsed.recipe, parsed.overrides)
    told = ["--recipe", parsed.recipe] if parsed.recipe != str(DEFAULT_RECIPE) else []
    command = shlex.join(["accelerate", "launch", "train/finetune_vqa.py", *told, *parsed.overrides])
    return VqaCommandLine(recipe, parsed.output_dir, parsed.resume, command)
