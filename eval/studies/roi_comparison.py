"""Arms of a study, pooled over their trainings: each arm's accuracy, and paired differences of two arms, as Results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.intervals import resample_mean
from regionmed_clip.eval.studies.pooling import Comparison, Pooled, RunFigure, context_of, pool, subtract
from regionmed_clip.eval.studies.region_outcomes import Figure, RegionOutcomes
from regionmed_clip.eval.tasks.measured import RunContext

TASK = "roi_modes"
Key = tuple[str, str]  # metric, boxes


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
        """Every figure over all trainings."""
        return {(figure.metric, figure.boxes): self._pool(place) for place, figure in enumerate(self.runs[0].figures)}

    def _pool(self, place: int) -> Pooled:
        figures = [run.figures[place] for run in self.runs]
        first = figures[0]
        protocol = {
            "gallery": first.gallery,
            "unique_texts": first.unique_texts,
            "prompts_sha256": first.prompts_sha256,
            "chance": first.chance,
            "train_noise": self.train_noise,
        }
        if first.boxes == "noisy":
            protocol["box_noise"] = self.runs[0].box_noise
            protocol["mean_iou_with_exact"] = float(np.mean([run.noisy_iou for run in self.runs]))
        return pool([_as_run_figure(figure) for figure in figures], [run.seed for run in self.runs], protocol)

    def context(self, hardware: str, command: str) -> RunContext:
        """Where the numbers of the arm come from; one weights revision for each training."""
        return context_of(self.runs, hardware, command)


def _as_run_figure(figure: Figure) -> RunFigure:
    """The figure of one training with its resamples; its stratum names the boxes."""
    return RunFigure(
        task=TASK,
        metric=figure.metric,
        stratum=f"{figure.boxes} boxes",
        value=figure.accuracy,
        n=len(figure.outcomes),
        resampled=resample_mean(np.array(figure.outcomes), np.array(figure.images)),
    )


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
