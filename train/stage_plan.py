"""Where each stage of a run begins and ends, in optimiser steps and in global sample positions of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import Recipe
from .recipe_parts import Stage


@dataclass(frozen=True)
class StagePlan:
    """A settled stage with its place in the run.

    `first_position` counts the samples that earlier stages have taken from the same data: a stage goes on where the
    last one stopped.
    """

    index: int
    stage: Stage
    first_step: int
    first_position: int

    @property
    def last_step(self) -> int:
        """The step after the stage's last."""
        assert self.stage.steps is not None  # epochs have been turned into steps
        return self.first_step + self.stage.steps

    def position(self, step: int) -> int:
        """The first global position of `step`."""
        assert self.stage.global_batch_size is not None  # settled
        return self.first_position + (step - self.first_step) * self.stage.global_batch_size


def plan_stages(recipe: Recipe) -> list[StagePlan]:
    """The stages of a settled recipe without epochs, in order."""
    plans: list[StagePlan] = []
    taken: dict[str | None, int] = {}  # samples by data
    first_step = 0
    for index, stage in enumerate(recipe.stages):
        plans.append(StagePlan(index, stage, first_step, taken.get(stage.data, 0)))
        first_step = plans[-1].last_step
        taken[stage.data] = plans[-1].position(first_step)
    return plans


def plan_at(plans: Sequence[StagePlan], step: int) -> StagePlan:
    """The plan of the stage that holds global `step`; past the end, the last."""
    return next((plan for plan in plans if step < plan.last_step), plans[-1])
