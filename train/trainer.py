"""One progressive run of a recipe: stages in order, a global contrastive batch a step, checkpoints and a log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import Recipe
from .checkpoint import RunState, list_checkpoints, load_model_weights, load_optimizer, read_state, save_checkpoint
from .collator import Collator, PositionedSamples, load_batches
from .data_stores import SampleStore
from .distillation import build_distiller
from .metrics_log import MetricsLog
from .recipe_parts import TEXT_TERMS
from .sample_order import rank_positions
from .stage_plan import StagePlan, plan_at, plan_stages
from .stages import build_optimizer, set_learning_rates, set_trained_parameters
from .training_step import Batch, StepOutcome, TrainingStep, eager_attention_on_cpu


class Trainer:
    """Trains `model` in place by a settled `recipe`; its log and checkpoints lie in `output_dir`.

    Args:
        stores: the training samples of each stage, by the stage's name.
        identity: of the run; see `read_state`.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: RegionMedClipModel,
        processor: RegionMedClipProcessor,
        stores: Mapping[str, SampleStore],
        output_dir: Path,
        accelerator: Accelerator,
        identity: str,
    ):
        self.recipe = recipe
        self.plans = plan_stages(recipe)
        self.model = model.to(accelerator.device)
        self.processor = processor
        self.stores = stores
        self.accelerator = accelerator
        self.checkpoints = output_dir / "checkpoints"
        self.metrics_path = output_dir / "metrics.jsonl"
        self.fingerprint = identity

    def train(self, resume: bool) -> None:
        """Runs the stages to the end, from the last checkpoint if `resume` and there is one."""
        checkpoint, step = self._find_start(resume)
        log = MetricsLog(self.metrics_path, step) if self.accelerator.is_main_process else None
        self.accelerator.wait_for_everyone()
        progress = tqdm(
            total=self.recipe.num_steps,
            initial=step,
            desc=self.recipe.name,
            unit="step",
            mininterval=1.0,
            disable=not self.accelerator.is_main_process,
        )
        with progress, eager_attention_on_cpu(self.model):
            while step < self.recipe.num_steps:
                step = self._train_stage(step, checkpoint, log, progress)
                checkpoint = None

    def _find_start(self, resume: bool) -> tuple[Path | None, int]:
        """The checkpoint to go on from, its weights loaded, and the steps already done."""
        checkpoints = list_checkpoints(self.checkpoints)
        if not resume or not checkpoints:
            return None, 0
        state = read_state(checkpoints[-1], self.fingerprint)
        load_model_weights(checkpoints[-1], self.model)
        return checkpoints[-1], state.step

    def _train_stage(self, step: int, checkpoint: Path | None, log: MetricsLog | None, progress: tqdm) -> int:
        """Trains from `step` to the end of its stage; gives the step after it."""
        plan = plan_at(self.plans, step)
        stage = plan.stage
        is_resumed = step > plan.first_step
        teacher_path = self.checkpoints / f"teacher_{plan.first_step:08d}.safetensors"
        distiller = build_distiller(
            self.model,
            stage,
            self.recipe,
            self.accelerator,
            teacher_path,
            identity=self.fingerprint,
            is_resumed=is_resumed,
        )
        trained = set_trained_parameters(self.model, stage)
        optimizer = build_optimizer(trained, stage, self.recipe.optimizer)
        if checkpoint is not None and is_resumed:
            load_optimizer(checkpoint, optimizer)
        runner = TrainingStep(self.model, plan, optimizer, self.accelerator, self.recipe.seed, distiller)
        self.model.train()
        started_at = time.monotonic()
        for batch in self._batches(plan, step):
            set_learning_rates(optimizer, stage, step - plan.first_step)
            outcome = runner.run(batch, step)
            step += 1
            now = time.monotonic()
            row = self._row(step, plan, outcome, optimizer, batch, now - started_at)
            started_at = now
            if log is not None:
                log.append(row)
            progress.set_postfix(stage=stage.name, loss=f"{row['loss']:.3f}", refresh=False)
            progress.update()
            if step % self.recipe.checkpoint_every_steps == 0 or step == plan.last_step:
                self._save(step, plan, optimizer)
        self.accelerator.free_memory()
        if distiller is not None and self.accelerator.is_main_process:
            teacher_path.unlink()  # the checkpoint of the stage's end needs it no more
        return step

    def _batches(self, plan: StagePlan, step: int) -> Iterator[Batch]:
        stage, store, accelerator = plan.stage, self.stores[plan.stage.name], self.accelerator
        positions = [
            rank_positions(plan.position(i), stage.global_batch_size, accelerator.process_index, self._num_processes)
            for i in range(step, plan.last_step)
        ]
        samples = PositionedSamples(store, store.order(self.recipe.seed), stage.max_regions, stage.box_noise)
        num_workers = self.recipe.preparation_workers if store.decodes_images else 0
        return iter(load_batches(samples, positions, Collator(self.processor), num_workers))

    @property
    def _num_processes(self) -> int:
        return self.accelerator.num_processes

    def _row(
        self,
        step: int,
        plan: StagePlan,
        outcome: StepOutcome,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        elapsed_s: float,
    ) -> dict[str, Any]:
        """The row of metrics.jsonl of one step."""
        row = {"step": step, "stage": plan.stage.name, "loss": outcome.loss.item()}
        row |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": outcome.gradient_norm.item()}
        row["samples_per_s"] = round(plan.stage.global_batch_size / elapsed_s, 2)
        for name, term in outcome.terms.items():
            row[f"loss_{name}"] = term.loss.item()
            row[f"num_positives_{name}"] = int(term.num_positives)
            row[f"num_negatives_{name}"] = int(term.num_negatives)
            if name in TEXT_TERMS:
                row[f"logit_scale_{name}"] = self.model.temperatures(name).item()
        row["fusion_alpha"] = self.model.region_fusion.alpha.item()
        if self.recipe.log_sample_ids:
            joined = "\n".join(gather_object(batch["sample_id"]))  # rank order is the order of the global batch
            row["sample_ids_sha256"] = hashlib.sha256(joined.encode()).hexdigest()
        return row

    def _save(self, step: int, plan: StagePlan, optimizer: torch.optim.Optimizer) -> None:
        if not self.accelerator.is_main_process:
            return
        position = plan.position(step)
        store = self.stores[plan.stage.name]
        state = RunState(step, plan.stage.name, position // len(store), position, self.fingerprint)
        save_checkpoint(self.checkpoints, self.model, optimizer, state, self.recipe.keep_checkpoints)
