"""Arms of a study, each pooled over its trainings, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regionmed_clip.eval.studies.measured_runs import OUTCOMES, MeasuredRun, PlannedRun
from regionmed_clip.eval.studies.pooling import Comparison, Pooled, context_of, pool, subtract
from regionmed_clip.eval.tasks.measured import RunContext

OF_THE_MODEL = ("per_finding", "reading", "readings", "of_the_model")  # protocol keys in which models differ
Key = tuple[str, str | None]  # metric, source


@dataclass(frozen=True)
class MeasuredArm:
    """Trainings that differ in their seed alone, in the order of the seeds."""

    name: str
    runs: Sequence[MeasuredRun]

    def figures(self, metrics: Sequence[str]) -> dict[Key, Pooled]:
        """The figures of the given metrics over all trainings, the whole split first, then by source."""
        places = {figure.key: place for place, figure in enumerate(self.runs[0].figures) if figure.metric in metrics}
        keys = sorted(places, key=lambda key: (key[1] is not None, key[1] or "", metrics.index(key[0])))
        return {key: self._pool(places[key]) for key in keys}

    def _pool(self, place: int) -> Pooled:
        figures = [run.figures[place] for run in self.runs]
        protocol = {key: value for key, value in figures[0].protocol.items() if key not in OF_THE_MODEL}
        if "readings" in figures[0].protocol:
            protocol["readings_per_seed"] = [figure.protocol["readings"] for figure in figures]
        return pool(figures, [run.seed for run in self.runs], protocol)

    def context(self, hardware: str, command: str) -> RunContext:
        """Where the numbers of the arm come from; one weights revision for each training."""
        found = [run.leaks for run in self.runs]  # alike where the trainings differ in nothing but their seed
        leaks = found[0] if all(one == found[0] for one in found) else {"leaks_per_seed": found}
        return replace(context_of(self.runs, hardware, command), protocol=leaks)


def gather_arms(planned: Sequence[PlannedRun], measured: Sequence[MeasuredRun]) -> list[MeasuredArm]:
    """The arms in their order, each with its trainings in the order of the seeds."""
    runs: dict[str, list[MeasuredRun]] = {}
    for item, run in zip(planned, measured, strict=True):
        runs.setdefault(item.arm, []).append(run)
    return [MeasuredArm(name, of_arm) for name, of_arm in runs.items()]


def compare(arms: Sequence[MeasuredArm], pairs: Sequence[tuple[str, str]], metrics: Sequence[str]) -> Comparison:
    """All figures of the given metrics, and the paired differences first - second of the pairs whose arms exist.

    Raises:
        ValueError: two arms were evaluated on other questions, or the two of a pair trained for other numbers of steps.
    """
    by_name = {arm.name: arm for arm in arms}
    _check_comparable(arms)
    figures = {arm.name: arm.figures(metrics) for arm in arms}
    differences = {}
    for first, second in pairs:
        if first in by_name and second in by_name:
            _check_equal_steps(by_name[first], by_name[second])
            differences[first, second] = subtract(figures[first], figures[second])
    return Comparison(arms, figures, differences)


def _check_comparable(arms: Sequence[MeasuredArm]) -> None:
    """None; a ValueError where two trainings were evaluated on other queries, or computed with other threads."""
    first = arms[0].runs[0]
    for arm in arms:
        for run in arm.runs:
            if _questions(run) != _questions(first):
                raise ValueError(
                    f"{run.arm}, seed {run.seed} was evaluated on other queries or texts than {first.arm}, seed "
                    f"{first.seed}; paired figures need the same. Delete their {OUTCOMES}, and start again."
                )
            if run.training.get("threads") != first.training.get("threads"):
                raise ValueError(
                    f"{run.arm}, seed {run.seed} was trained with {run.training.get('threads')} thread(s) and "
                    f"{first.arm}, seed {first.seed} with {first.training.get('threads')}; all arms need the same "
                    "number. Delete the folders of one of them, and start again."
                )


def _questions(run: MeasuredRun) -> tuple:
    """What the figures of a training ask; equal where they may be compared query by query."""
    asked = {figure.key: (figure.n, _of_the_question(figure.protocol)) for figure in run.figures}
    return run.data_revision, run.split_sha256, asked


def _of_the_question(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a protocol that is equal for all models."""
    return {key: value for key, value in protocol.items() if key not in OF_THE_MODEL}


def _check_equal_steps(first: MeasuredArm, second: MeasuredArm) -> None:
    """None; a ValueError where two arms that are compared took another number of steps."""
    steps = {arm.name: sorted({run.training["steps"] for run in arm.runs}) for arm in (first, second)}
    if len({tuple(found) for found in steps.values()}) > 1 or len(steps[first.name]) > 1:
        raise ValueError(f"the arms took these numbers of steps: {steps}; only equal numbers are compared.")
