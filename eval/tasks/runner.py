"""Runs tasks over a model and a split and hands back Results: the model, the plain-clip baseline, the colour probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regionmed_clip.eval.intervals import percentile_interval
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tasks.colour_probe import measure_colour_probe
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import embed_examples, embed_readings, embed_texts
from regionmed_clip.eval.tasks.measured import Measured, RunContext, choose_better
from regionmed_clip.eval.tasks.proposals import measure_proposals, propose_examples
from regionmed_clip.eval.tasks.region import measure_region
from regionmed_clip.eval.tasks.retrieval import measure_retrieval
from regionmed_clip.eval.tasks.robustness import embed_jittered, measure_robustness
from regionmed_clip.eval.tasks.zero_shot import measure_zero_shot

__all__ = [
    "TASKS",
    "Result",
    "RunContext",
    "TaskOutcome",
    "compare_outcomes",
    "run_colour_probe",
    "run_plain_clip",
    "run_tasks",
]

TASKS = ("retrieval", "zero_shot", "region", "proposals", "robustness")
TASKS_WITH_OWN_PASS = ("proposals", "robustness")
PLAIN_READINGS = ("dense_mean", "crop")
Examples = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class TaskOutcome:
    """What a run gives: the Results, the embedded split they came from, and the figures with their resamples."""

    results: list[Result]
    embedded: EmbeddedSplit
    measured: list[Measured]
    model_name: str
    context: RunContext


def run_tasks(
    model: Any,
    processor: Any,
    examples_by_split: Mapping[str, Examples],
    *,
    model_name: str,
    context: RunContext,
    tasks: Sequence[str] = TASKS,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TaskOutcome:
    """The outcome of `tasks` on the split `context.split`; regions are read by the ROI processor."""
    examples = _examples(examples_by_split, context, tasks)
    embedded = embed_examples(model, processor, examples, batch_size=batch_size, device=device, progress=progress)
    measured = _measure_global(model, processor, embedded, tasks, context.seed, device)
    if "region" in tasks:
        measured.extend(measure_region(embedded, seed=context.seed))
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    if "robustness" in tasks and embedded.num_regions:
        jittered = embed_jittered(model, processor, examples, seed=context.seed, **options)
        measured.extend(measure_robustness(embedded, jittered, seed=context.seed))
    if "proposals" in tasks:
        proposed = propose_examples(model, processor, examples, **options)
        measured.extend(measure_proposals(proposed, seed=context.seed))
    return _outcome(measured, embedded, model_name, context)


def run_plain_clip(
    model: Any,
    processor: Any,
    examples_by_split: Mapping[str, Examples],
    *,
    context: RunContext,
    tasks: Sequence[str] = TASKS,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TaskOutcome:
    """The outcome of `plain-clip`: a model whose region path is untrained, so each region figure is the better of two
    training-free readings, the coverage mean of its dense features and crop-and-encode; both stand in the protocol.
    """
    examples = _examples(examples_by_split, context, tasks)
    readings = embed_readings(
        model,
        processor,
        examples,
        readings=PLAIN_READINGS if "region" in tasks else PLAIN_READINGS[:1],
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    embedded = next(iter(readings.values()))
    measured = _measure_global(model, processor, embedded, tasks, context.seed, device)
    if "region" in tasks:
        by_reading = {name: measure_region(split, seed=context.seed) for name, split in readings.items()}
        chosen, winner = choose_better(by_reading, "region_to_text_accuracy")
        measured.extend(chosen)
        embedded = readings[winner]
    return _outcome(measured, embedded, "plain-clip", context)


def run_colour_probe(
    processor: Any,
    train_examples: Examples,
    embedded: EmbeddedSplit,
    *,
    context: RunContext,
    max_train_images: int = 3000,
    progress: bool = True,
) -> list[Result]:
    """The Results of the colour-and-size control, trained on at most `max_train_images` of the training split."""
    measured = measure_colour_probe(
        processor,
        train_examples,
        embedded,
        max_train_images=max_train_images,
        seed=context.seed,
        progress=progress,
    )
    return [figure.as_result("colour-size-probe", context) for figure in measured]


def compare_outcomes(first: TaskOutcome, second: TaskOutcome) -> list[Result]:
    """Paired differences first - second of every figure of the same queries, with paired intervals."""
    others = {figure.key: figure for figure in second.measured}
    name = f"{first.model_name} minus {second.model_name}"
    if first.context.seed != second.context.seed:
        raise ValueError(
            f"{name}: resampled with seeds {first.context.seed} and {second.context.seed}; paired intervals need equal "
            "draws. Evaluate both with one seed."
        )
    results = []
    for figure in first.measured:
        other = others.get(figure.key)
        if other is None or figure.resampled is None or other.resampled is None:
            continue
        if not np.array_equal(figure.clusters, other.clusters):
            raise ValueError(
                f"{name}: {figure.metric} was measured on different queries; both models must run on one split. "
                "Evaluate them on the same examples in the same order."
            )
        low, high = percentile_interval(figure.resampled - other.resampled)
        difference = Measured(
            task=figure.task,
            metric=figure.metric,
            value=figure.value - other.value,
            low=low,
            high=high,
            n=figure.n,
            source=figure.source,
            stratum=figure.stratum,
            protocol={key: value for key, value in figure.protocol.items() if key != "per_finding"} | {"paired": True},
        )
        results.append(difference.as_result(name, first.context))
    return results


def _measure_global(
    model: Any, processor: Any, embedded: EmbeddedSplit, tasks: Sequence[str], seed: int, device: Any
) -> list[Measured]:
    """The figures of the global, box-free embedding."""
    measured = []
    if "retrieval" in tasks:
        measured.extend(measure_retrieval(embedded, seed=seed))
    if "zero_shot" in tasks:
        measured.extend(
            measure_zero_shot(embedded, lambda texts: embed_texts(model, processor, texts, device=device), seed=seed)
        )
    return measured


def _examples(examples_by_split: Mapping[str, Examples], context: RunContext, tasks: Sequence[str]) -> Examples:
    """The examples of the context's split; ValueError for a split or task that does not exist, or too few passes."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"tasks {unknown} are not known; choose from {', '.join(TASKS)}.")
    if context.split not in examples_by_split:
        raise ValueError(
            f"split {context.split!r} was asked for, given are {sorted(examples_by_split)}; pass its examples or "
            "name another split."
        )
    examples = examples_by_split[context.split]
    repeated = [task for task in tasks if task in TASKS_WITH_OWN_PASS]
    if repeated and iter(examples) is examples:
        raise ValueError(
            f"the examples of split {context.split!r} can be gone through once, and {' and '.join(repeated)} need a "
            "pass of their own; give a list or a Dataset, or leave those tasks out."
        )
    return examples


def _outcome(measured: list[Measured], embedded: EmbeddedSplit, model_name: str, context: RunContext) -> TaskOutcome:
    """The figures as Results beside what they came from."""
    results = [figure.as_result(model_name, context) for figure in measured]
    return TaskOutcome(results, embedded, measured, model_name, context)
