"""What a study keeps of one evaluated model: its figures by the tasks of every evaluation, with their resamples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from regionmed_clip.eval.metric_titles import metric_title
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.studies.pooling import RunFigure
from regionmed_clip.eval.studies.splits import read_split
from regionmed_clip.eval.studies.trainings import Training, write_json
from regionmed_clip.eval.tasks.leaks import check_leaks
from regionmed_clip.eval.tasks.measured import Measured, RunContext
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.runner import run_plain_clip, run_tasks
from regionmed_clip.processing.corpus.data_spec import hash_images
from regionmed_clip.processing.corpus.fingerprints import Part, part_of_examples

OUTCOMES = "outcomes.json"
TASKS = ("retrieval", "zero_shot", "region")
RESAMPLING_SEED = 0  # of every training, so that all are resampled by the same draws


@dataclass(frozen=True, kw_only=True)
class MeasuredFigure(RunFigure):
    """A figure with its protocol."""

    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str | None]:
        """(metric, source): what identifies the figure within a training."""
        return self.metric, self.source


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """Everything measured of one trained model; a file of its own, so that a study goes on where it stopped.

    `leaks`: what the protocol of every figure says of test images that were trained on, see `LeakCheck.protocol`.
    """

    arm: str
    seed: int
    model_revision: str
    data_revision: str
    split: str
    split_sha256: str
    training: dict[str, Any]
    metrics: list[str]
    figures: list[MeasuredFigure]
    leaks: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """None; `path` then holds the run, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> MeasuredRun:
        """The run of a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "figures": [MeasuredFigure(**figure) for figure in values["figures"]]})

    def in_short(self) -> str:
        """The figures of the whole split in a line."""
        return ", ".join(f"{metric_title(f.metric)} {f.value:.3f}" for f in self.figures if f.source is None)


@dataclass(frozen=True)
class PlannedRun:
    """A training, which arm and seed of the study it is, and what of its model is measured: `metrics`, by `tasks`.

    Of a plain one regions are read without training.
    """

    arm: str
    seed: int
    training: Training
    metrics: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    is_plain: bool = False


def measure_run(run: PlannedRun, device: str) -> MeasuredRun:
    """The figures of a finished training, from its outcomes.json where that was made of it.

    Kept are the run's metrics of the whole split and of each source; one that was skipped is not among them. Of a plain
    run each region figure is the better of the two training-free readings.
    """
    folder, facts = run.training.folder, run.training.facts()
    path = folder / OUTCOMES
    if path.is_file():
        kept = MeasuredRun.read(path)
        if kept.training == facts and kept.metrics == list(run.metrics):
            return kept
    split, examples = facts["split"], read_split(facts["data"], facts["split"])
    model, processor = load_model(folder / "final", device)
    context = RunContext(
        data_revision=facts["data_revision"],
        model_revision=weights_revision(model),
        split=split,
        split_sha256=hash_images((example["image_id"], example["sha256"]) for example in examples),
        seed=RESAMPLING_SEED,
        hardware="kept with the study's results",
        command="kept with the study's results",
    )
    options: dict[str, Any] = {"context": context, "tasks": run.tasks, "device": device}
    if run.is_plain:
        outcome = run_plain_clip(model, processor, {split: examples}, **options)
    else:
        outcome = run_tasks(model, processor, {split: examples}, model_name=run.arm, **options)
    measured = MeasuredRun(
        arm=run.arm,
        seed=run.seed,
        model_revision=context.model_revision,
        data_revision=context.data_revision,
        split=split,
        split_sha256=context.split_sha256,
        training=facts,
        metrics=list(run.metrics),
        figures=[_keep(figure) for figure in outcome.measured if _is_kept(figure, run.metrics)],
        leaks=check_leaks(folder / "final", _fingerprints(facts["data"], split)).protocol,
    )
    measured.write(path)
    return measured


@lru_cache(maxsize=1)
def _fingerprints(data: str, split: str) -> Part:
    """Those of the images under test, taken once for all trainings."""
    return part_of_examples(split, read_split(data, split))


def _is_kept(figure: Measured, metrics: Sequence[str]) -> bool:
    """Whether the figure was asked for, and computed, for the whole split or a whole source."""
    return figure.metric in metrics and figure.stratum is None and figure.resampled is not None


def _keep(figure: Measured) -> MeasuredFigure:
    """What of the figure is kept."""
    return MeasuredFigure(
        task=figure.task,
        metric=figure.metric,
        source=figure.source,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        n=figure.n,
        resampled=[value if isfinite(value) else None for value in figure.resampled.tolist()],
        protocol=figure.protocol,
    )
