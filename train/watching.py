"""Watching a run: a row of metrics.jsonl and the trackers for every step, validation.jsonl, and the progress shown.

Every process calls the same methods, for some hold collectives; only the main one writes and shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from modeling_regionmed_clip import RegionMedClipModel

from .arguments import Recipe
from .metrics_log import MetricsLog
from .progress import RunProgress, ShownStep
from .stage_plan import StagePlan, plan_stages
from .step_rows import (
    GateMeter,
    Item,
    StepClock,
    learning_rates,
    peak_memory,
    read_scalars,
    sample_ids_hash,
    step_scalars,
)
from .trackers import FOLDER, TrackedRecipe, Trackers
from .training_step import StepOutcome

METRICS_NAME, VALIDATION_NAME = "metrics.jsonl", "validation.jsonl"
Watcher = TypeVar("Watcher", bound="RunLogs")


class RunLogs:
    """The logs, trackers and progress of a run; a context manager around its steps. The main process alone has them.

    Args:
        recipe: settled, without epochs; `plans` are its stages.
        output_dir: of the run, which holds its logs and trackers.
        first_step: steps done before; the logs are cut back to it.
    """

    def __init__(
        self,
        recipe: TrackedRecipe,
        plans: Sequence[StagePlan],
        accelerator: Accelerator,
        output_dir: Path,
        first_step: int,
    ):
        self._recipe = recipe
        self._plans = plans
        self._accelerator = accelerator
        self._output_dir = output_dir
        self._first_step = first_step

    def __enter__(self: Watcher) -> Watcher:
        if self._accelerator.is_main_process:
            self._metrics = MetricsLog(self._output_dir / METRICS_NAME, self._first_step)
            self._validation = MetricsLog(self._output_dir / VALIDATION_NAME, self._first_step)
            self._trackers = Trackers(self._accelerator, self._recipe, self._output_dir / FOLDER, self._first_step)
            self._progress = RunProgress(self._recipe.name, self._plans, self._first_step)
        self._accelerator.wait_for_everyone()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._accelerator.is_main_process:
            self._progress.close()
            self._trackers.finish()

    def flush(self) -> None:
        """Puts all that was recorded on disk; before a checkpoint, which must not be ahead of it."""
        if self._accelerator.is_main_process:
            self._trackers.flush()

    def record_validation(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the figures of a validation after `step`, rows of validation.jsonl; on the main process alone."""
        self._validation.append(*rows)
        self._trackers.log({f"val/{row['metric']}": row["value"] for row in rows}, step)

    def _record_row(self, row: dict[str, Any], samples_per_s: float, wait_share: float) -> None:
        """Writes and shows the row of a step; on the main process alone."""
        self._metrics.append(row)
        self._trackers.log({f"train/{name}": value for name, value in row.items() if name != "step"}, row["step"])
        self._progress.show(ShownStep(row["step"], row["stage"], row["loss"], samples_per_s, wait_share))


class RunWatcher(RunLogs):
    """Writes and shows how a run of stages goes."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, output_dir: Path, first_step: int):
        super().__init__(recipe, plan_stages(recipe), accelerator, output_dir, first_step)
        self._log_sample_ids = recipe.log_sample_ids
        self._gate = GateMeter()
        self._clock = StepClock()

    @contextmanager
    def stage(self, model: RegionMedClipModel) -> Iterator[None]:
        """None; around the steps of a stage that trains `model`."""
        with self._gate.listening(model):
            yield

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches, with the time from asking for one until `record` measured."""
        return self._clock.timed(batches)

    def record(
        self,
        step: int,
        plan: StagePlan,
        outcome: StepOutcome,
        model: RegionMedClipModel,
        optimizer: torch.optim.Optimizer,
        sample_ids: Sequence[str],
    ) -> None:
        """Writes and shows `step`, which has just been taken.

        Args:
            sample_ids: of this process's share of the global batch.
        """
        scalars = step_scalars(model, outcome, self._gate.take(self._accelerator))
        ids_hash = sample_ids_hash(sample_ids) if self._log_sample_ids else None
        numbers = read_scalars(scalars, is_needed=self._accelerator.is_main_process)
        if not self._accelerator.is_main_process:
            return
        elapsed_s, wait_share = self._clock.read()
        samples_per_s = (plan.stage.global_batch_size or 0) / elapsed_s
        row: dict[str, Any] = {"step": step, "stage": plan.stage.name, "loss": numbers.pop("loss")}
        row |= learning_rates(optimizer, plan) | {"grad_norm": numbers.pop("grad_norm")}
        row |= {"samples_per_s": round(samples_per_s, 2), "data_wait_share": round(wait_share, 4)}
        row |= numbers | peak_memory(self._accelerator.device)
        if ids_hash is not None:
            row["sample_ids_sha256"] = ids_hash
        self._record_row(row, samples_per_s, wait_share)
