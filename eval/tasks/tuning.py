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
    num_shared = len(set(tuning.image_ids) & set(inputs.embedded.image_ids))
    if num_shared:
        reason = f"the split {inputs.tuning_split!r} shares {num_shared} images with the split under test"
        return None, f"nothing to choose on: {reason}"
    return tuning, ""


def tuned_on(inputs: TaskInputs, num_images: int) -> dict[str, str | int]:
    """What a protocol says of a choice: the split and how many of its images had a say in it."""
    return {"split": inputs.tuning_split, "n": num_images}


def find_training(inputs: TaskInputs) -> tuple[EmbeddedSplit | None, str]:
    """(the embedded training images that probes may learn from, ""), or (None, why there are none)."""
    try:
        return inputs.embed_split(TRAINING_SPLIT), ""
    except ValueError as error:
        return None, f"nothing to learn from: {error}"
