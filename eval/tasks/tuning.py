"""The split on which thresholds, temperatures and penalties are chosen, and never that under test."""

from __future__ import annotations

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.task_inputs import TaskInputs
from regionmed_clip.processing.corpus.data_spec import TRAINING_SPLIT

MIN_TUNING_ITEMS = 10  # on fewer nothing is chosen: it would be chance


def find_tuning(inputs: TaskInputs) -> tuple[EmbeddedSplit | None, str]:
    """(the embedded tuning split, ""), or (None, why nothing can be chosen): the reason of skipped figures."""
    try:
        tuning = inputs.embed_split(inputs.tuning_split)
    except ValueError as error:
        return None, f"nothing to choose on: {error}"
    reason = _shared_images(inputs.tuning_split, tuning, inputs.embedded)
    return (None, f"nothing to choose on: {reason}") if reason else (tuning, "")


def tuned_on(inputs: TaskInputs, num_images: int) -> dict[str, str | int]:
    """What a protocol says of a choice: the split and how many of its images had a say in it."""
    return {"split": inputs.tuning_split, "n": num_images}


def find_training(inputs: TaskInputs) -> tuple[EmbeddedSplit | None, str]:
    """(the embedded training images that probes may learn from, ""), or (None, why there are none)."""
    try:
        training = inputs.embed_split(TRAINING_SPLIT)
    except ValueError as error:
        return None, f"nothing to learn from: {error}"
    reason = _shared_images(TRAINING_SPLIT, training, inputs.embedded)
    return (None, f"nothing to learn from: {reason}") if reason else (training, "")


def _shared_images(split: str, other: EmbeddedSplit, tested: EmbeddedSplit) -> str:
    """Why a split is of no use where it has images of the one under test, by source and name; else ""."""
    named = [set(zip(one.image_sources.tolist(), one.image_ids, strict=True)) for one in (other, tested)]
    num_shared = len(named[0] & named[1])
    return f"the split {split!r} shares {num_shared} images with the split under test" if num_shared else ""
