"""Figures pooled over the trainings of an arm, and paired differences of two arms, as Results.

Every training is evaluated on the same queries, resampled by the same draws of images (of texts, where a text is the
query). So an arm's figure in a draw is the mean over its trainings, the difference of two arms in a draw is the
difference of these, and intervals are their percentiles: images are resampled, trainings are not. Where every draw
gives one and the same figure (all of eleven regions named right), percentiles would claim certainty: then the interval
reaches to the outermost ends of the trainings' own, and that of the difference of two such arms as far as these allow.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import percentile_interval
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tasks.measured import Measured, RunContext

WIDENED_RULE = "outermost ends of the trainings' own intervals: no draw gives another figure"


@dataclass(frozen=True, kw_only=True)
class RunFigure:
    """One figure of one training; `resampled` (NUM_RESAMPLES): it in every draw, None or NaN where it is undefined.

    `low` and `high` bound its own 95 % interval; None where that is not known.
    """

    task: str
    metric: str
    value: float
    n: int
    resampled: Sequence[float | None]
    low: float | None = None
    high: float | None = None
    source: str | None = None
    stratum: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One figure over all trainings of an arm, or the difference of two arms.

    Attributes:
        value, low, high: the mean over the trainings, and its 95 % interval.
        n: number of queries.
        per_seed: the figure of each training alone.
        resampled: (NUM_RESAMPLES,) float64, the figure in every draw.
        protocol: what goes into the Result besides.
    """

    task: str
    metric: str
    source: str | None
    stratum: str | None
    value: float
    low: float
    high: float
    n: int
    per_seed: list[float]
    resampled: np.ndarray
    protocol: dict[str, Any]

    @property
    def chance(self) -> float | None:
        """Expected figure of guessing, None where it is not known."""
        return self.protocol.get("chance")

    def as_result(self, model_name: str, context: RunContext) -> Result:
        """The Result record of this figure."""
        names = ("task", "metric", "value", "low", "high", "n", "source", "stratum")
        measured = Measured(
            **{name: getattr(self, name) for name in names}, protocol={**self.protocol, "per_seed": self.per_seed}
        )
        return measured.as_result(model_name, context)


def pool(figures: Sequence[RunFigure], seeds: Sequence[int], protocol: Mapping[str, Any]) -> Pooled:
    """One figure of several trainings as one; `protocol` is added to what pooling itself states."""
    first = figures[0]
    resampled = np.array([figure.resampled for figure in figures], dtype=np.float64).mean(axis=0)  # None becomes NaN
    low, high = percentile_interval(resampled)
    ends = [end for figure in figures for end in (figure.low, figure.high)]
    is_widened = low == high and None not in ends
    if is_widened:
        low, high = min(ends), max(ends)
    per_seed = [figure.value for figure in figures]
    return Pooled(
        task=first.task,
        metric=first.metric,
        source=first.source,
        stratum=first.stratum,
        value=float(np.mean(per_seed)),
        low=low,
        high=high,
        n=first.n,
        per_seed=per_seed,
        resampled=resampled,
        protocol={
            **protocol,
            "seeds": list(seeds),
            "interval": WIDENED_RULE if is_widened else f"{_resampled_units(first)} resampled, trainings fixed",
        },
    )


def _resampled_units(figure: RunFigure) -> str:
    """What is drawn for the interval of a figure: of retrieval by text the texts, which are its queries."""
    return "texts" if figure.metric.startswith("text_to_") else "images"


def context_of(runs: Sequence[Any], hardware: str, command: str) -> RunContext:
    """Where the numbers of an arm come from; one weights revision for each of its trainings."""
    run = runs[0]
    return RunContext(
        data_revision=run.data_revision,
        model_revision="+".join(run.model_revision for run in runs),
        split=run.split,
        split_sha256=run.split_sha256,
        seed=0,
        hardware=hardware,
        command=command,
    )


def subtract(first: Mapping[Hashable, Pooled], second: Mapping[Hashable, Pooled]) -> dict[Any, Pooled]:
    """Paired differences first - second of every figure, the same images drawn for both."""
    differences = {}
    for key, one in first.items():
        other = second[key]
        resampled = one.resampled - other.resampled
        low, high = percentile_interval(resampled)
        rule = one.protocol["interval"]
        if one.protocol["interval"] == other.protocol["interval"] == WIDENED_RULE:
            low, high, rule = one.low - other.high, one.high - other.low, WIDENED_RULE
        differences[key] = replace(
            one,
            value=one.value - other.value,
            low=low,
            high=high,
            per_seed=[a - b for a, b in zip(one.per_seed, other.per_seed, strict=True)],
            resampled=resampled,
            protocol={**one.protocol, "interval": rule, "paired": True},
        )
    return differences


def judge(first: Pooled, second: Pooled, difference: Pooled) -> str:
    """What the intervals say: above or below by the paired one, and whether the two own intervals are apart."""
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    is_apart = first.low > second.high or first.high < second.low
    return f"{'above' if difference.low > 0 else 'below'}, {'intervals apart' if is_apart else 'paired only'}"


@dataclass(frozen=True)
class Comparison:
    """The arms, their pooled figures by arm name, and the paired differences by (first, second) name."""

    arms: Sequence[Any]  # each has `name`, `runs` and `context(hardware, command)`
    figures: Mapping[str, Mapping[Any, Pooled]]
    differences: Mapping[tuple[str, str], Mapping[Any, Pooled]]

    def results(self, hardware: str, command: str) -> list[Result]:
        """The Results of all arms, then those of the differences, whose model is "FIRST minus SECOND"."""
        contexts = {arm.name: arm.context(hardware, command) for arm in self.arms}
        named = [(name, contexts[name], pooled) for name, pooled in self.figures.items()]
        named += [(f"{one} minus {two}", contexts[one], pooled) for (one, two), pooled in self.differences.items()]
        return [figure.as_result(name, context) for name, context, pooled in named for figure in pooled.values()]
