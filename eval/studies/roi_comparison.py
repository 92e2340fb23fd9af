"""Arms of a study, pooled over their trainings: each arm's accuracy, and paired differences of two arms, as Results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import mean_interval, paired_difference_interval
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.studies.region_outcomes import RegionOutcomes
from regionmed_clip.eval.tasks.measured import Measured, RunContext

TASK = "roi_modes"
Key = tuple[str, str]  # metric, boxes


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One figure over all trainings of an arm, or the difference of two arms.

    Attributes:
        value, low, high: the mean over regions and trainings, and its 95 % interval.
        per_seed: the figure of each training alone.
        outcomes: (Q,) float, of each region the mean over the trainings; images: (Q,) int64, row of its image.
        protocol: what goes into the Result besides.
    """

    metric: str
    boxes: str
    value: float
    low: float
    high: float
    per_seed: list[float]
    outcomes: np.ndarray
    images: np.ndarray
    protocol: dict[str, Any]

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return self.protocol["chance"]

    def as_result(self, model_name: str, context: RunContext) -> Result:
        """The Result record of this figure; its stratum names the boxes."""
        measured = Measured(
            task=TASK,
            metric=self.metric,
            value=self.value,
            low=self.low,
            high=self.high,
            n=len(self.outcomes),
            stratum=f"{self.boxes} boxes",
            protocol={**self.protocol, "per_seed": self.per_seed},
        )
        return measured.as_result(model_name, context)


@dataclass(frozen=True)
class Arm:
    """Trainings that differ in their seed alone, in the order of the seeds; `train_noise` is the noise they saw."""

    mode: str
    train_noise: float
    runs: Sequence[RegionOutcomes]

    @property
    def name(self) -> str:
        """The model of its Results."""
        return f"{self.mode}, trained on noisy boxes" if self.train_noise else self.mode

    def figures(self) -> dict[Key, Pooled]:
        """Every figure over all trainings: the mean outcome of a region, images resampled; seeds are not resampled."""
        return {(figure.metric, figure.boxes): self._pool(place) for place, figure in enumerate(self.runs[0].figures)}

    def _pool(self, place: int) -> Pooled:
        figures = [run.figures[place] for run in self.runs]
        first = figures[0]
        outcomes = np.mean([figure.outcomes for figure in figures], axis=0)  # (Q,)
        images = np.array(first.images)
        low, high = mean_interval(outcomes, images)
        protocol = {
            "gallery": first.gallery,
            "unique_texts": first.unique_texts,
            "prompts_sha256": first.prompts_sha256,
            "chance": first.chance,
            "seeds": [run.seed for run in self.runs],
            "interval": "images resampled, trainings fixed",
            "train_noise": self.train_noise,
        }
        if first.boxes == "noisy":
            protocol["box_noise"] = self.runs[0].box_noise
            protocol["mean_iou_with_exact"] = float(np.mean([run.noisy_iou for run in self.runs]))
        return Pooled(
            metric=first.metric,
            boxes=first.boxes,
            value=float(outcomes.mean()),
            low=low,
            high=high,
            per_seed=[figure.accuracy for figure in figures],
            outcomes=outcomes,
            images=images,
            protocol=protocol,
        )

    def context(self, hardware: str, command: str) -> RunContext:
        """Where the numbers of the arm come from; one weights revision for each training."""
        run = self.runs[0]
        return RunContext(
            data_revision=run.data_revision,
            model_revision="+".join(run.model_revision for run in self.runs),
            split=run.split,
            split_sha256=run.split_sha256,
            seed=0,
            hardware=hardware,
            command=command,
        )


@dataclass(frozen=True)
class Comparison:
    """The arms, their pooled figures by arm name, and the paired differences by (first, second) name."""

    arms: Sequence[Arm]
    figures: Mapping[str, Mapping[Key, Pooled]]
    differences: Mapping[tuple[str, str], Mapping[Key, Pooled]]

    def results(self, hardware: str, command: str) -> list[Result]:
        """The Results of all arms, then those of the differences, whose model is "FIRST minus SECOND"."""
        contexts = {arm.name: arm.context(hardware, command) for arm in self.arms}
        named = [(name, contexts[name], pooled) for name, pooled in self.figures.items()]
        named += [(f"{one} minus {two}", contexts[one], pooled) for (one, two), pooled in self.differences.items()]
        return [figure.as_result(name, context) for name, context, pooled in named for figure in pooled.values()]


def compare_arms(arms: Sequence[Arm], reference: str) -> Comparison:
    """All figures, and the differences of each arm of mode `reference` and the arms of other modes trained alike.

    A mode whose training sees no box (it has no arm with noise) is compared with every arm of the reference.
    """
    _check_comparable(arms)
    figures = {arm.name: arm.figures() for arm in arms}
    has_noisy_arm = {arm.mode for arm in arms if arm.train_noise}
    differences = {}
    for first in (arm for arm in arms if arm.mode == reference):
        for second in (arm for arm in arms if arm.mode != reference):
            if second.train_noise == first.train_noise or second.mode not in has_noisy_arm:
                differences[first.name, second.name] = subtract(figures[first.name], figures[second.name])
    return Comparison(arms, figures, differences)


def subtract(first: Mapping[Key, Pooled], second: Mapping[Key, Pooled]) -> dict[Key, Pooled]:
    """Paired differences first - second of every figure, the same images drawn for both."""
    differences = {}
    for key, one in first.items():
        other = second[key]
        low, high = paired_difference_interval(one.outcomes, other.outcomes, one.images)
        differences[key] = replace(
            one,
            value=one.value - other.value,
            low=low,
            high=high,
            per_seed=[a - b for a, b in zip(one.per_seed, other.per_seed, strict=True)],
            outcomes=one.outcomes - other.outcomes,
            protocol={**one.protocol, "paired": True},
        )
    return differences


def _check_comparable(arms: Sequence[Arm]) -> None:
    """None; a ValueError where two trainings were evaluated on other regions, texts or noise, or seeds differ."""
    if not arms:
        raise ValueError("the study has no arm; ask for at least one mode and one seed.")
    first = arms[0].runs[0]
    for arm in arms:
        if [run.seed for run in arm.runs] != [run.seed for run in arms[0].runs]:
            raise ValueError(f"{arm.name} has other seeds than {arms[0].name}; all arms need the same.")
        for run in arm.runs:
            if _questions(run) != _questions(first):
                raise ValueError(
                    f"{arm.name}, seed {run.seed} was evaluated on other regions, texts or boxes than {arms[0].name}, "
                    f"seed {first.seed}; paired figures need the same. Delete their outcomes.json, and start again."
                )


def _questions(run: RegionOutcomes) -> tuple:
    """What the figures of a training ask; equal where they may be compared region by region."""
    asked = [(figure.metric, figure.boxes, figure.images, figure.prompts_sha256) for figure in run.figures]
    return run.data_revision, run.split_sha256, run.box_noise, asked
