"""The card's `model-index`: the figures of the whole split as the Hub reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import EvalResult

from regionmed_clip.eval.metric_titles import metric_place, metric_title
from regionmed_clip.eval.results import Result

NUM_DIGITS = 4
TASKS = {  # our task -> the Hub's id where it has one, else our own, and a title
    "retrieval": ("image-text-retrieval", "Image-text retrieval"),
    "zero_shot": ("zero-shot-image-classification", "Zero-shot image classification"),
    "region": ("region-classification", "Region-text matching and retrieval"),
    "proposals": ("object-detection", "Region proposals without a text"),
    "grounding": ("region-grounding", "Phrase grounding"),
    "vqa": ("visual-question-answering", "Visual question answering"),
}
PHANTOM_TITLE = "phantom (pictures drawn by a program)"
_SOURCE = re.compile(r"([\w.-]+)@")


def eval_results(results: Sequence[Result], evaluated_as: str) -> list[EvalResult]:
    """An entry for every computed figure of the model `evaluated_as` on a whole split, in the order of the tables.

    The interval and n stand in the metric's name, since the format has no place for them.
    """
    own = [r for r in results if r.model == evaluated_as and is_whole(r) and r.value is not None]
    return [_entry(result) for result in sorted(own, key=lambda r: (r.data_revision, metric_place(r.metric), r.metric))]


def is_whole(result: Result) -> bool:
    """Whether the figure is of the whole split, not of a source or stratum."""
    return result.source is None and result.stratum is None


def indexed_value(result: Result) -> float:
    """The figure as the model-index shows it."""
    assert result.value is not None
    return round(result.value, NUM_DIGITS)


def data_title(data_revision: str) -> str:
    """The names in a data revision for people: "bccd, ct_ich"; phantoms are called drawings."""
    names = dict.fromkeys(_SOURCE.findall(data_revision)) or {data_revision: None}
    return ", ".join(PHANTOM_TITLE if name == "phantom" else name for name in names)


def _entry(result: Result) -> EvalResult:
    task_type, task_name = TASKS.get(result.task, (result.task.replace("_", "-"), result.task.replace("_", " ")))
    names = dict.fromkeys(_SOURCE.findall(result.data_revision)) or {"data": None}
    title = metric_title(result.metric).replace("↓", "(lower is better)")
    return EvalResult(
        task_type=task_type,
        task_name=task_name,
        dataset_type="-".join(names),
        dataset_name=data_title(result.data_revision),
        dataset_split=result.protocol["split"],
        dataset_revision=result.data_revision,
        metric_type=result.metric,
        metric_value=indexed_value(result),
        metric_name=f"{title}; 95 % interval {result.low:.3f} to {result.high:.3f}, n = {result.n:,}",
    )
