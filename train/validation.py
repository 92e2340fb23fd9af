"""Figures while a model trains: the evaluation's own tasks on a split of their own, every so many steps.

A validation changes nothing in the training: it draws no random number, and leaves weights and modes as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.eval.tasks.prepared import KeptExample, keep_prepared
from regionmed_clip.eval.tasks.runner import RunContext, run_tasks
from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import Recipe
from .stage_plan import StagePlan

RECALLS = (1, 5, 10)
METRICS_OF_TASK: dict[str, tuple[str, ...]] = {  # of the whole split or a source; the higher the better
    "retrieval": tuple(
        f"{way}_{name}"
        for way in ("image_to_text", "text_to_image")
        for name in (*(f"recall@{k}" for k in RECALLS), "mrr")
    ),
    "zero_shot": ("macro_auroc",),
    "region": (
        "region_to_text_accuracy",
        "region_balanced_accuracy",
        *(f"text_to_region_recall@{k}" for k in RECALLS),
    ),
    "proposals": ("proposal_recall", "proposal_recall_small", "proposal_recall_at_threshold"),
    "robustness": ("region_jitter_cosine@10", "region_jitter_cosine@20"),
}
TASKS_OF_IMAGES = ("robustness",)  # they decode the images anew


def refuse_bad_validation(recipe: Recipe) -> None:
    """Raises a ValueError for a validation whose split the data lack, or that would choose by what it must not."""
    settings, where = recipe.validation, f"recipe {recipe.name!r}: validation"
    if not settings.every_steps:
        return
    try:
        stream_examples(recipe.data or "", settings.split)
    except ValueError as error:
        raise ValueError(
            f"{where} is on the split {settings.split!r}: {error} Name another by validation.split=NAME, set "
            "validation.every_steps=0, or for phantoms add num_validation=N to data."
        ) from error
    if settings.keep_best is None:
        return
    known = [metric for task in settings.tasks for metric in METRICS_OF_TASK[task]]
    if settings.keep_best not in known:
        raise ValueError(
            f"{where}.keep_best is {settings.keep_best!r}; with the tasks {', '.join(settings.tasks)} it can be "
            f"{', '.join(known)}."
        )
    if settings.split == recipe.evaluation.split:
        raise ValueError(
            f"{where} chooses the best checkpoint on the split {settings.split!r}, on which the finished model is "
            "evaluated; its figures would flatter it. Choose on another split."
        )


class Validator:
    """Measures a model in training on the recipe's validation split; for the main process alone.

    Args:
        recipe: settled, without epochs.
        cache: folder for the split's frames, which are made here, once.
    """

    def __init__(self, recipe: Recipe, processor: RegionMedClipProcessor, cache: Path, device: torch.device):
        self._recipe = recipe
        self._processor = processor
        self._device = device
        split = recipe.validation.split
        self._examples: Sequence[KeptExample] = keep_prepared(
            stream_examples(recipe.data or "", split, decode_images=False),
            processor.image_processor,
            cache / f"{split}_frames.uint8",
            has_images=any(task in TASKS_OF_IMAGES for task in recipe.validation.tasks),
        )

    def measure(self, model: RegionMedClipModel, step: int, stage: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of validation.jsonl: every figure of the whole split after `step`, those that cannot be taken left out.

        The modes of all modules of `model` are afterwards as they were.
        """
        settings = self._recipe.validation
        context = RunContext(
            data_revision="",
            model_revision="",
            split=settings.split,
            split_sha256="",
            seed=self._recipe.seed,
            hardware="",
            command="",
        )
        with keeping_modes(model):
            outcome = run_tasks(
                model,
                self._processor,
                {settings.split: self._examples},
                model_name=self._recipe.name,
                context=context,
                tasks=tasks,
                batch_size=self._recipe.evaluation.batch_size,
                device=self._device,
                progress=False,
                is_brief=True,
            )
        return [
            {"step": step, "stage": stage}
            | {name: getattr(figure, name) for name in ("task", "metric", "value", "low", "high", "n")}
            for figure in outcome.measured
            if figure.source is None and figure.stratum is None and figure.value is not None
        ]


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """None; after the block every module of `model` is in training or evaluation mode as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def is_due(recipe: Recipe, plan: StagePlan, step: int) -> bool:
    """Whether a validation follows `step`: every `every_steps` steps, and at the end of a stage."""
    every_steps = recipe.validation.every_steps
    return every_steps > 0 and (step % every_steps == 0 or step == plan.last_step)


def figure_to_keep_by(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The figure of a validation by which the best checkpoint is kept; None without one."""
    found = [row["value"] for row in rows if row["metric"] == recipe.validation.keep_best]
    return found[0] if found else None
