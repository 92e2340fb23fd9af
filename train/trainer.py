"""One progressive run of a recipe: stages in order, a global contrastive batch a step, checkpoints and a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .adapters import begin_stage_adapters, settle_adapters
from .arguments import Recipe
from .augmented_samples import PositionedSamples, SampleSettings
from .checkpoint import (
    Best,
    CheckpointTensors,
    RunState,
    best_state,
    discard_teachers,
    find_checkpoint,
    load_average,
    load_model_weights,
    load_optimizer,
    save_best,
    save_checkpoint,
)
from .collator import Collator, load_batches
from .data_stores import SampleStore
from .distillation import build_distiller
from .gather import any_process
from .gradient_cache import MicroBatchCollator
from .interruption import Interrupted, Interruption
from .moving_average import MovingAverage, load_average_into
from .prepared import PreparedStage, full_optimizer_state, full_state_dict, load_full_optimizer_state
from .run_identity import identity_hash
from .sample_order import rank_positions
from .stage_model import eager_attention_on_cpu
from .stage_plan import StagePlan, plan_at, plan_stages
from .stages import build_optimizer, set_learning_rates, set_trained_parameters
from .training_step import Batch, TrainingStep, sample_ids
from .validation import Validator, figure_to_keep_by, is_due
from .watching import RunWatcher
from .whole_files import clean_up


class Trainer:
    """Trains `model` in place by a settled `recipe`; its log and checkpoints lie in `output_dir`.

    Args:
        stores: the training samples of each stage, by the stage's name.
        identity: of the run; see `run_identity`.
        interruption: tells whether the run is to end early; by default it never is.
        validator: on the main process, where the recipe has a validation.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: RegionMedClipModel,
        processor: RegionMedClipProcessor,
        stores: Mapping[str, SampleStore],
        output_dir: Path,
        accelerator: Accelerator,
        identity: Mapping[str, Any],
        interruption: Interruption | None = None,
        validator: Validator | None = None,
    ):
        self.recipe = recipe
        self.plans = plan_stages(recipe)
        self.model = model.to(accelerator.device)
        self.processor = processor
        self.stores = stores
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.checkpoints = output_dir / "checkpoints"
        self.identity = dict(identity)
        self.interruption = interruption or Interruption()
        self.validator = validator
        self.prepared: PreparedStage | None = None  # this and the average: of the stage that trains
        self.average: MovingAverage | None = None

    def train(self, resume: bool) -> None:
        """Runs the stages to the end, from the last checkpoint if `resume` and there is one.

        The model then has the weights that the last step left, or their moving average where the last stage has one.

        Raises:
            Interrupted: if the run was asked to end; the checkpoint of its last step is written.
        """
        checkpoint, step = self._find_start(resume)
        watcher = RunWatcher(self.recipe, self.accelerator, self.output_dir, step)
        with self.interruption.deferred(), watcher, eager_attention_on_cpu(self.model):
            while step < self.recipe.num_steps:
                step = self._train_stage(step, checkpoint, watcher)
                checkpoint = None
        if self.average is not None:
            load_average_into(self.model, self.average.state())
        elif checkpoint is not None and self.plans[-1].stage.ema_decay is not None:  # the run was at its end
            load_average_into(self.model, load_average(checkpoint))

    def _find_start(self, resume: bool) -> tuple[Path | None, int]:
        """The checkpoint to go on from, its weights loaded, and the steps already done."""
        if self.accelerator.is_main_process and self.checkpoints.is_dir():
            clean_up(self.checkpoints)
        found = find_checkpoint(self.checkpoints, self.identity) if resume else None
        step = 0 if found is None else found[1].step
        if self.accelerator.is_main_process:
            needed = self._teacher_path(plan_at(self.plans, step)) if step < self.recipe.num_steps else None
            discard_teachers(self.checkpoints, needed)
        if found is None:
            return None, 0
        path, _ = found
        settle_adapters(self.model, self.plans, step)
        load_model_weights(path, self.model)
        return path, step

    def _teacher_path(self, plan: StagePlan) -> Path:
        return self.checkpoints / f"teacher_{plan.first_step:08d}.safetensors"

    def _train_stage(self, step: int, checkpoint: Path | None, watcher: RunWatcher) -> int:
        """Trains from `step` to the end of its stage; gives the step after it."""
        plan = plan_at(self.plans, step)
        stage = plan.stage
        is_resumed = step > plan.first_step
        if not is_resumed:
            begin_stage_adapters(self.model, plan, self.recipe.seed)
        teacher_path = self._teacher_path(plan)
        distiller = build_distiller(
            self.model,
            stage,
            self.recipe,
            self.accelerator,
            teacher_path,
            identity=identity_hash(self.identity),
            is_resumed=is_resumed,
        )
        set_trained_parameters(self.model, stage)
        self.prepared = prepared = PreparedStage(self.model, self.accelerator)
        optimizer = build_optimizer(prepared.trained_parameters(), stage, self.recipe.optimizer)
        if checkpoint is not None and is_resumed:
            load_full_optimizer_state(optimizer, load_optimizer(checkpoint))
        runner = TrainingStep(prepared, plan, optimizer, self.accelerator, self.recipe.seed, distiller)
        self.average = None if stage.ema_decay is None else MovingAverage(prepared.model, stage.ema_decay)
        if self.average is not None and checkpoint is not None and is_resumed:
            self.average.load(load_average(checkpoint), num_updates=step - plan.first_step)
        prepared.model.train()
        with watcher.stage(prepared.model):
            for batches in watcher.timed(self._batches(plan, step)):
                set_learning_rates(optimizer, stage, step - plan.first_step)
                outcome = runner.run(batches, step)
                step += 1
                if self.average is not None:
                    self.average.update()
                watcher.record(step, plan, outcome, prepared.model, optimizer, sample_ids(batches))
                if is_due(self.recipe, plan, step):
                    self._validate(step, plan, optimizer, watcher)
                is_interrupted = any_process(self.interruption.is_asked, self.accelerator.device)
                if step % self.recipe.checkpoint_every_steps == 0 or step == plan.last_step or is_interrupted:
                    watcher.flush()
                    self._save(step, plan, optimizer)
                if is_interrupted:
                    raise Interrupted(self.interruption.signal_name, step, self.interruption.command)
        prepared.give_back()
        self.prepared = None
        self.accelerator.free_memory()
        if distiller is not None and self.accelerator.is_main_process:
            teacher_path.unlink()  # the checkpoint of the stage's end needs it no more
        return step

    def _batches(self, plan: StagePlan, step: int) -> Iterator[list[Batch]]:
        stage, store, accelerator = plan.stage, self.stores[plan.stage.name], self.accelerator
        positions = [
            rank_positions(plan.position(i), stage.global_batch_size, accelerator.process_index, self._num_processes)
            for i in range(step, plan.last_step)
        ]
        samples = PositionedSamples(store, store.order(self.recipe.seed), SampleSettings.of(stage))
        is_work = store.decodes_images or stage.augmentation.min_side < 1  # a crop takes milliseconds
        num_workers = self.recipe.preparation_workers if is_work else 0
        collator = MicroBatchCollator(Collator(self.processor, stage.num_negatives), stage.batch_size_per_device)
        return iter(load_batches(samples, positions, collator, num_workers))

    @property
    def _num_processes(self) -> int:
        return self.accelerator.num_processes

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model has the moving average for its weights where the stage has one."""
        with nullcontext() if self.average is None else self.average.applied():
            yield

    def _validate(self, step: int, plan: StagePlan, optimizer: torch.optim.Optimizer, watcher: RunWatcher) -> None:
        """Takes the figures of the model as it is after `step`, and keeps its checkpoint if they are the best."""
        assert self.prepared is not None
        with self.averaged():
            model = self.prepared.give_back()
            tasks = self.recipe.validation.tasks
            rows = [] if self.validator is None else self.validator.measure(model, step, plan.stage.name, tasks)
        if self.prepared.is_sharded:
            model.to("cpu")  # as it was: only the shards take the devices' memory
        if self.accelerator.is_main_process:
            watcher.record_validation(step, rows)
        if self.recipe.validation.keep_best is not None:
            self._keep_best(step, plan, optimizer, figure_to_keep_by(self.recipe, rows))
        self.accelerator.wait_for_everyone()

    def _save(self, step: int, plan: StagePlan, optimizer: torch.optim.Optimizer) -> None:
        tensors = self._checkpoint_tensors(optimizer)
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, tensors, self._state(step, plan), self.recipe.keep_checkpoints)

    def _keep_best(self, step: int, plan: StagePlan, optimizer: torch.optim.Optimizer, figure: float | None) -> None:
        """Keeps the checkpoint of `step` as the best one if `figure`, given on the main process, is the highest."""
        tensors = self._checkpoint_tensors(optimizer)
        if figure is None or not self.accelerator.is_main_process:
            return
        settings, last = self.recipe.validation, best_state(self.checkpoints)
        found = Best(settings.keep_best, figure, settings.split)
        is_ours = last is not None and last.best is not None and last.identity == self.identity
        if not is_ours or replace(last.best, value=figure) != found or figure > last.best.value:
            save_best(self.checkpoints, tensors, self._state(step, plan, found))

    def _checkpoint_tensors(self, optimizer: torch.optim.Optimizer) -> CheckpointTensors:
        average = None if self.average is None else self.average.state()
        return CheckpointTensors(full_state_dict(self.prepared.model), full_optimizer_state(optimizer), average)

    def _state(self, step: int, plan: StagePlan, best: Best | None = None) -> RunState:
        position = plan.position(step)
        epoch = position // len(self.stores[plan.stage.name])
        return RunState(step, plan.stage.name, epoch, position, self.recipe.seed, self.identity, best)
