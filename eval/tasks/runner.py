"""Runs tasks over a model and a split and hands back Results: the model, the plain-clip baseline, the colour probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tasks.colour_probe import measure_colour_probe
from regionmed_clip.eval.tasks.differences import in_common, subtract
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding_cache import EmbeddingCache
from regionmed_clip.eval.tasks.measured import Measured, RunContext, choose_better
from regionmed_clip.eval.tasks.region import measure_region
from regionmed_clip.eval.tasks.registry import (
    GLOBAL_TASKS,
    OWN_PASS_TASKS,
    TASKS,
    TRAINED_REGION_TASKS,
    check_tasks,
    find_task,
)
from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.eval.tasks.split_embedder import SplitEmbedder
from regionmed_clip.eval.tasks.task_inputs import Task, TaskInputs
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice

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

PLAIN_READINGS = ("dense_mean", "crop")
TUNING_SPLITS = ("validation", "tuning")  # where thresholds are chosen: the first that the data has
Examples = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class TaskOutcome:
    """What a run gives: the Results, the embedded split they came from, and the figures with their resamples.

    `details` has by task what a report shows beside the figures; see `TaskFindings`.
    """

    results: list[Result]
    embedded: EmbeddedSplit
    measured: list[Measured]
    model_name: str
    context: RunContext
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_protocol(self, said: Mapping[str, Any]) -> TaskOutcome:
        """The outcome with `said` in the protocol of every Result."""
        context = replace(self.context, protocol={**self.context.protocol, **said})
        results = [figure.as_result(self.model_name, context) for figure in self.measured]
        return replace(self, results=results, context=context)


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
    region_reading: str = "roi",
    share: Share = ALONE,
    cache: EmbeddingCache | None = None,
    is_brief: bool = False,
    answering: Answering | None = None,
    question_choice: QuestionChoice | None = None,
) -> TaskOutcome:
    """The outcome of `tasks` on the split `context.split`.

    Args:
        examples_by_split: the split under test, and those to tune and to train probes on; what is chosen on others is
            skipped where they are absent.
        region_reading: how the model reads a region; see `embedding.READINGS`.
        share, cache: see `SplitEmbedder`. is_brief, answering: see `TaskInputs`.
        question_choice: see `TaskInputs`; None: as the answering model was trained.
    """
    chosen = check_tasks(tasks)
    _check_examples(examples_by_split, context, chosen)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress, "share": share}
    embedder = SplitEmbedder(model, processor, examples_by_split, readings=[region_reading], cache=cache, **options)
    measures = {name: find_task(name) for name in chosen}  # before any work: what a task needs may be missing
    inputs = _make_inputs(model, processor, embedder, region_reading, examples_by_split, context, options, is_brief)
    choice = question_choice or (QuestionChoice() if answering is None else answering.facts.choice)
    inputs = replace(inputs, answering=answering, question_choice=choice)
    measured, details = _measure(inputs, measures)
    return _outcome(measured, inputs.embedded, model_name, context, details)


def run_plain_clip(
    model: Any,
    processor: Any,
    examples_by_split: Mapping[str, Examples],
    *,
    context: RunContext,
    model_name: str = "plain-clip",
    tasks: Sequence[str] = TASKS,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
    cache: EmbeddingCache | None = None,
    is_brief: bool = False,
) -> TaskOutcome:
    """The outcome of a model whose region path is untrained: regions are read without training.

    Each figure of the task `region` is the better of two readings, the coverage mean of its dense features and
    crop-and-encode; both stand in the protocol. Other tasks read regions in the way that wins there. Tasks that need a
    trained region path are left out.
    """
    chosen = check_tasks(tasks)
    _check_examples(examples_by_split, context, chosen)
    readings = PLAIN_READINGS if set(chosen) - GLOBAL_TASKS else PLAIN_READINGS[:1]
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress, "share": share}
    embedder = SplitEmbedder(model, processor, examples_by_split, readings=readings, cache=cache, **options)
    by_reading = {
        name: measure_region(split, seed=context.seed, is_brief=is_brief)
        for name, split in embedder.readings_of(context.split).items()
        if len(readings) > 1
    }
    of_regions, winner = choose_better(by_reading, "region_to_text_accuracy") if by_reading else ([], readings[0])
    inputs = _make_inputs(model, processor, embedder, winner, examples_by_split, context, options, is_brief)
    others = [name for name in chosen if name != "region" and name not in TRAINED_REGION_TASKS]
    measured, details = _measure(inputs, {name: find_task(name) for name in others})
    if "region" in chosen:
        measured += of_regions
    return _outcome(measured, inputs.embedded, model_name, context, details)


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
    """Paired differences first - second of every figure that both have, "A minus B", with paired intervals.

    The protocol has `p_value`, two-sided, and the `test` it is of. A figure whose queries or candidates differ (a
    geometry that crops loses regions) is skipped. Of the models' protocols it keeps what they have in common.
    """
    others = {figure.key: figure for figure in second.measured}
    name = f"{first.model_name} minus {second.model_name}"
    if first.context.seed != second.context.seed:
        raise ValueError(
            f"{name}: resampled with seeds {first.context.seed} and {second.context.seed}; paired intervals need equal "
            "draws. Evaluate both with one seed."
        )
    context = replace(first.context, protocol=in_common(first.context.protocol, second.context.protocol))
    results = []
    for figure in first.measured:
        other = others.get(figure.key)
        if other is not None and figure.resampled is not None and other.resampled is not None:
            results.append(subtract(figure, other, context.seed).as_result(name, context))
    return results


def _make_inputs(
    model: Any,
    processor: Any,
    embedder: SplitEmbedder,
    reading: str,
    examples_by_split: Mapping[str, Examples],
    context: RunContext,
    options: Mapping[str, Any],
    is_brief: bool = False,
) -> TaskInputs:
    """What the tasks are given."""
    others = [name for name in TUNING_SPLITS if name in examples_by_split and name != context.split]
    return TaskInputs(
        model=model,
        processor=processor,
        region_reading=reading,
        embedded=embedder.readings_of(context.split)[reading],
        examples=embedder.examples_of(context.split),
        embed_split=lambda split: embedder.readings_of(split)[reading],
        splits=tuple(examples_by_split),
        tuning_split=next(iter(others), TUNING_SPLITS[0]),
        examples_of=embedder.examples_of,
        seed=context.seed,
        batch_size=options["batch_size"],
        device=options["device"],
        is_shown=options["progress"],
        share=options["share"],
        is_brief=is_brief,
    )


def _measure(inputs: TaskInputs, measures: Mapping[str, Task]) -> tuple[list[Measured], dict[str, dict[str, Any]]]:
    """The figures of the tasks, given by name, and by task what a report shows beside them."""
    measured: list[Measured] = []
    details: dict[str, dict[str, Any]] = {}
    for name, measure in measures.items():
        findings = measure(inputs)
        measured.extend(findings.measured)
        if findings.details:
            details[name] = findings.details
    return measured, details


def _check_examples(examples_by_split: Mapping[str, Examples], context: RunContext, tasks: Sequence[str]) -> None:
    """None; ValueError where the context's split is not given, or can be gone through too few times."""
    if context.split not in examples_by_split:
        raise ValueError(
            f"split {context.split!r} was asked for, given are {sorted(examples_by_split)}; pass its examples or "
            "name another split."
        )
    examples = examples_by_split[context.split]
    repeated = [task for task in tasks if task in OWN_PASS_TASKS]
    if repeated and iter(examples) is examples:
        raise ValueError(
            f"the examples of split {context.split!r} can be gone through once, and {' and '.join(repeated)} need a "
            "pass of their own; give a list or a Dataset, or leave those tasks out."
        )


def _outcome(
    measured: list[Measured],
    embedded: EmbeddedSplit,
    model_name: str,
    context: RunContext,
    details: dict[str, dict[str, Any]],
) -> TaskOutcome:
    """The figures as Results beside what they came from."""
    results = [figure.as_result(model_name, context) for figure in measured]
    return TaskOutcome(results, embedded, measured, model_name, context, details)
