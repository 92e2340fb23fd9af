"""The parts of a recipe: stages, what they train and how, and the settings around them, each with its own checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE

from .dataclass_values import require

TOWERS = ("vision", "text")
MODES = ("full", "frozen", "lora")
RATE_GROUPS = ("vision", "text", "projections", "roi", "temperatures")
EVALUATION_TASKS = ("retrieval", "zero_shot", "region", "proposals", "robustness")
GLOBAL_TASKS = ("retrieval", "zero_shot")  # they say something of a model whose region path is not trained, too
CONTRASTIVE_TERMS = ("image_text", "region_text", "image_region_text", "fused_image_text")  # rows against candidates
TEXT_TERMS = (*CONTRASTIVE_TERMS, "hard_negatives")
LOSS_TERMS = (*TEXT_TERMS, "proposals", "region_distillation")
REGION_TERMS = ("region_text", "image_region_text", "fused_image_text", "hard_negatives", "proposals")  # need boxes
ROI_TERMS = ("region_text", "fused_image_text", "hard_negatives", "proposals", "region_distillation")
LOSS_KINDS = ("infonce", "sigmoid")
ADAPTER_ACTIONS = ("keep", "merge", "drop")
INHERITED = (  # fields of a stage that are those of the recipe where they are not given
    *("data", "image_size", "max_regions", "box_noise", "num_negatives", "similarity_filter"),
    *("global_batch_size", "batch_size_per_device", "augmentation", "ema_decay"),
)


@dataclass(frozen=True)
class TowerModes:
    """What of each part is trained: "full", "frozen", or for a tower "lora"; projections move unless it is frozen."""

    vision: str = "full"
    text: str = "full"
    roi: str = "full"

    def check(self, where: str) -> None:
        """Raises a ValueError for an unknown mode."""
        for name in TOWERS:
            value = getattr(self, name)
            require(where, name, value, value in MODES, f"one of {', '.join(MODES)}")
        is_known = self.roi in ("full", "frozen")
        require(where, "roi", self.roi, is_known, "full or frozen: it is small, so LoRA has nothing to save there")

    @property
    def lora_towers(self) -> tuple[str, ...]:
        """The towers that train through adapters."""
        return tuple(name for name in TOWERS if getattr(self, name) == "lora")


@dataclass(frozen=True)
class Lora:
    """The adapter of one tower; alpha / rank is the factor of its update."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | None = None  # regular expression over names in the tower; None: by the tower's type

    def check(self, where: str) -> None:
        """Raises a ValueError for an adapter that could not be."""
        require(where, "rank", self.rank, self.rank >= 1, "at least 1")
        require(where, "alpha", self.alpha, self.alpha > 0, "above 0")
        require(where, "dropout", self.dropout, 0 <= self.dropout < 1, "from 0 to below 1")


@dataclass(frozen=True)
class LoraOfTowers:
    vision: Lora = field(default_factory=Lora)
    text: Lora = field(default_factory=Lora)


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of the frame that carry regions and texts with them; the default shows images as they are.

    A crop keeps all regions whole. A flip mirrors the texts too, or is left out where they cannot be mirrored.
    """

    min_side: float = 1.0  # shortest side of a crop, in fractions of the frame
    flip_x: float = 0.0  # probability of mirroring left and right
    flip_y: float = 0.0  # probability of mirroring top and bottom

    def check(self, where: str) -> None:
        """Raises a ValueError for a share outside [0, 1]."""
        require(where, "min_side", self.min_side, 0.05 <= self.min_side <= 1, "from 0.05 to 1 (1: no crop)")
        for name in ("flip_x", "flip_y"):
            require(where, name, getattr(self, name), 0 <= getattr(self, name) <= 1, "from 0 to 1")


class Schedule(Protocol):
    """What decides the course of the learning rates: fields of a stage, and of a recipe that is one stage."""

    steps: int | None
    epochs: float | None
    learning_rate: float
    learning_rates: dict[str, float]
    final_learning_rate_share: float
    warmup_steps: int


def check_schedule(owner: Schedule, where: str, groups: Sequence[str]) -> None:
    """Raises a ValueError for steps, epochs and learning rates that could not be; `groups` are those of the rates."""
    if (owner.steps is None) == (owner.epochs is None):
        raise ValueError(f"{where} has steps {owner.steps} and epochs {owner.epochs}; give exactly one of them.")
    require(where, "steps", owner.steps, owner.steps is None or owner.steps >= 1, "at least 1")
    require(where, "epochs", owner.epochs, owner.epochs is None or owner.epochs > 0, "above 0")
    require(where, "learning_rate", owner.learning_rate, owner.learning_rate > 0, "above 0")
    for group, rate in owner.learning_rates.items():
        if group not in groups:
            raise ValueError(f"{where}: learning_rates has {group!r}; the groups are {', '.join(groups)}.")
        require(where, f"learning_rates.{group}", rate, rate > 0, "above 0; set a mode to frozen to train nothing")
    is_short = owner.steps is None or owner.warmup_steps < owner.steps
    require(where, "warmup_steps", owner.warmup_steps, 0 <= owner.warmup_steps and is_short, "from 0 to steps - 1")
    share = owner.final_learning_rate_share
    require(where, "final_learning_rate_share", share, 0 <= share <= 1, "from 0 to 1")


@dataclass(frozen=True)
class Stage:
    """One stage of a progressive run; a field that is None is the recipe's.

    `loss_weights` maps terms of `LOSS_TERMS` to weights above 0; a term that is not named is not computed.
    """

    name: str = "joint"
    steps: int | None = None  # this or `epochs`
    epochs: float | None = None  # passes over the stage's data, rounded up to whole steps
    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)  # by group of RATE_GROUPS; others `learning_rate`
    final_learning_rate_share: float = 0.05  # of the learning rate, reached by a cosine at the stage's last step
    warmup_steps: int = 0
    loss_weights: dict[str, float] = field(default_factory=lambda: {"image_text": 1.0})
    loss_kinds: dict[str, str] = field(default_factory=dict)  # of contrastive terms; others infonce
    modes: TowerModes = field(default_factory=TowerModes)
    lora: LoraOfTowers = field(default_factory=LoraOfTowers)
    adapters: str = "keep"  # what becomes at its start of the adapters that earlier stages left
    max_grad_norm: float | None = None  # this and the next: of the recipe's `optimizer`
    weight_decay: float | None = None
    data: str | None = None
    image_size: int | None = None
    max_regions: int | None = None
    box_noise: float | None = None
    num_negatives: int | None = None
    similarity_filter: float | None = None
    global_batch_size: int | None = None
    batch_size_per_device: int | None = None
    augmentation: Augmentation | None = None
    ema_decay: float | None = None

    def check(self, where: str) -> None:
        """Raises a ValueError for a stage that could not run or would train nothing."""
        check_schedule(self, where, RATE_GROUPS)
        self._check_terms(where)
        self.modes.check(f"{where}.modes")
        for tower in TOWERS:
            getattr(self.lora, tower).check(f"{where}.lora.{tower}")
        if self.lora != LoraOfTowers() and not self.modes.lora_towers:
            raise ValueError(
                f"{where} has settings in lora, and no tower trains by it; set modes.vision or modes.text to lora, or "
                "leave lora out."
            )
        require(
            where, "adapters", self.adapters, self.adapters in ADAPTER_ACTIONS, f"one of {', '.join(ADAPTER_ACTIONS)}"
        )
        check_sample_settings(self, where)
        norm, decay = self.max_grad_norm, self.weight_decay
        require(where, "max_grad_norm", norm, norm is None or norm > 0, "above 0")
        require(where, "weight_decay", decay, decay is None or decay >= 0, "at least 0")
        self._check_that_something_trains(where)

    def _check_terms(self, where: str) -> None:
        if not self.loss_weights:
            raise ValueError(f"{where}.loss_weights is empty; give at least one of {', '.join(LOSS_TERMS)} a weight.")
        for term, weight in self.loss_weights.items():
            if term not in LOSS_TERMS:
                raise ValueError(f"{where}.loss_weights has {term!r}; the known terms are {', '.join(LOSS_TERMS)}.")
            require(where, f"loss_weights.{term}", weight, weight > 0, "above 0; leave a term out to switch it off")
        for term, kind in self.loss_kinds.items():
            if term not in CONTRASTIVE_TERMS or term not in self.loss_weights:
                known = [name for name in CONTRASTIVE_TERMS if name in self.loss_weights]
                raise ValueError(
                    f"{where}.loss_kinds has {term!r}; a kind belongs to a contrastive term of the stage's "
                    f"loss_weights, here {', '.join(known) or 'none'}."
                )
            require(where, f"loss_kinds.{term}", kind, kind in LOSS_KINDS, f"one of {', '.join(LOSS_KINDS)}")

    def _check_that_something_trains(self, where: str) -> None:
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
        if "text" in self.modes.lora_towers and not uses_text:
            raise ValueError(
                f"{where}.modes.text is lora, and none of its terms {', '.join(self.loss_weights)} uses a text; set it "
                "to frozen."
            )

    def settled(self, recipe: Any) -> Stage:
        """The stage with the recipe's values where it has none of its own."""
        given = {name: getattr(recipe, name) for name in INHERITED if getattr(self, name) is None}
        for name in ("max_grad_norm", "weight_decay"):
            if getattr(self, name) is None:
                given[name] = getattr(recipe.optimizer, name)
        return replace(self, **given)


def check_sample_settings(holder: Any, where: str) -> None:
    """Raises a ValueError for a setting of samples or batches, of a recipe or of a stage, that could not be.

    Of a stage it may be None: then the recipe's counts.
    """
    for name in ("image_size", "max_regions", "global_batch_size", "batch_size_per_device"):
        value = getattr(holder, name)
        require(where, name, value, value is None or value >= 1, "at least 1")
    noise, negatives, likeness = holder.box_noise, holder.num_negatives, holder.similarity_filter
    is_noise = noise is None or 0 <= noise <= MAX_BOX_NOISE
    require(where, "box_noise", noise, is_noise, f"from 0 to {MAX_BOX_NOISE}")
    require(where, "num_negatives", negatives, negatives is None or negatives >= 0, "at least 0")
    is_cosine = likeness is None or 0 < likeness <= 1
    require(where, "similarity_filter", likeness, is_cosine, "a cosine above 0 and at most 1, or null for no filter")
    decay = holder.ema_decay
    require(where, "ema_decay", decay, decay is None or 0 < decay < 1, "between 0 and 1, or null for no average")
    if holder.augmentation is not None:
        holder.augmentation.check(f"{where}.augmentation")


def check_adapters(stages: Iterable[Stage], where: str) -> None:
    """Raises a ValueError for a stage that does not fit the adapters that earlier stages leave on its towers."""
    towers: dict[str, Lora] = {}  # with adapters so far
    for stage in stages:
        here = f"{where}: stage {stage.name!r}"
        if stage.adapters != "keep":
            towers.clear()
        for tower, settings in towers.items():
            if getattr(stage.modes, tower) == "full":
                raise ValueError(
                    f"{here} trains the {tower} tower in full, and an earlier stage left adapters on it; set "
                    "adapters: merge (they become part of the weights) or adapters: drop there."
                )
            wanted = getattr(stage.lora, tower)
            if getattr(stage.modes, tower) == "lora" and wanted != settings:
                raise ValueError(
                    f"{here} has lora.{tower} {wanted}, and goes on with the adapter of an earlier stage, which has "
                    f"{settings}; give the same settings there, or set adapters: merge to begin a new one."
                )
        towers.update((tower, getattr(stage.lora, tower)) for tower in stage.modes.lora_towers)


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
        require(
            where, "vocab_size", self.vocab_size, self.vocab_size >= 260, "at least 260 (256 bytes, 4 special tokens)"
        )
        require(where, "max_length", self.max_length, self.max_length >= 3, "at least 3")


@dataclass(frozen=True)
class Optimizer:
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    max_grad_norm: float = 1.0

    def check(self, where: str) -> None:
        """Raises a ValueError for a setting with which nothing would be learnt."""
        require(where, "weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        require(where, "betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "from 0 to below 1")
        require(where, "epsilon", self.epsilon, self.epsilon > 0, "above 0")
        require(where, "max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")


@dataclass(frozen=True)
class Evaluation:
    """The figures of the finished model."""

    tasks: tuple[str, ...] = ("retrieval", "zero_shot", "region")  # proposals only where a stage trains them
    split: str = "test"
    batch_size: int = 64

    def check(self, where: str) -> None:
        """Raises a ValueError for an unknown task or an empty batch."""
        _check_tasks(where, self.tasks)
        require(where, "batch_size", self.batch_size, self.batch_size >= 1, "at least 1")


@dataclass(frozen=True)
class Validation:
    """Figures while the model trains, on a split of their own, and the checkpoint that was best by one of them."""

    every_steps: int = 0  # 0: never
    split: str = "validation"
    tasks: tuple[str, ...] = ("retrieval", "zero_shot", "region")
    keep_best: str | None = None  # metric by which a best checkpoint is kept beside the newest, the higher the better

    def check(self, where: str) -> None:
        """Raises a ValueError for an unknown task, or a best checkpoint of figures that are never taken."""
        require(where, "every_steps", self.every_steps, self.every_steps >= 0, "at least 0 (0: never)")
        _check_tasks(where, self.tasks)
        if self.keep_best is not None and not self.every_steps:
            raise ValueError(
                f"{where}: keep_best is {self.keep_best!r} and every_steps 0; without a validation no checkpoint is "
                "the best. Set every_steps, or leave keep_best out."
            )

    def of_plain_clip(self) -> Validation:
        """The validation of the baseline: without the tasks that read regions, and without a best checkpoint."""
        tasks = tuple(task for task in self.tasks if task in GLOBAL_TASKS)
        every_steps = self.every_steps if tasks else 0
        return replace(self, tasks=tasks or self.tasks, every_steps=every_steps, keep_best=None)


def _check_tasks(where: str, tasks: tuple[str, ...]) -> None:
    is_known = bool(tasks) and set(tasks) <= set(EVALUATION_TASKS)
    require(where, "tasks", tasks, is_known, f"at least one of {', '.join(EVALUATION_TASKS)}")


@dataclass(frozen=True)
class Distillation:
    """The boxes that the term `region_distillation` draws in every image, anew at every step."""

    regions: int = 8
    min_side: float = 0.2  # of the frame's side; at least a patch and a half
    max_side: float = 0.6

    def check(self, where: str) -> None:
        """Raises a ValueError for boxes that could not be drawn."""
        require(where, "regions", self.regions, self.regions >= 1, "at least 1")
        require(where, "max_side", self.max_side, 0 < self.max_side <= 1, "above 0 and at most 1")
        require(where, "min_side", self.min_side, 0 < self.min_side <= self.max_side, "above 0 and at most max_side")
