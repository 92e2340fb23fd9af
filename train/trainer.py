"""One progressive run of a recipe: stages in order, a global contrastive batch a step, checkpoints and a log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from modeling_regionmed_clip import RegionMedClipModel, RegionMedClipOutput
from modeling_regionmed_clip.loss_regionmed_clip import (
    DISTILLATION_INPUTS,
    LossTerm,
    loss_inputs,
    region_distillation_loss,
)
from modeling_regionmed_clip.region_pooling import box_coverage
from modeling_regionmed_clip.towers import grid_of, read_patches
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import REGION_TERMS, TEXT_TERMS, Recipe, Stage
from .checkpoint import RunState, list_checkpoints, load_model_weights, load_optimizer, read_state, save_checkpoint
from .collator import Collator, PositionedSamples, load_batches
from .data_stores import SampleStore
from .distillation import Distiller, build_distiller
from .gather import gather_loss_inputs, text_fingerprints
from .metrics_log import MetricsLog
from .sample_order import rank_positions, step_seed
from .stages import build_optimizer, learning_rate_at, set_trained_parameters, stage_at

Batch = dict[str, Any]
IMAGE_TENSORS = ("pixel_values", "region_boxes", "region_mask")
BOOKKEEPING_TENSORS = ("region_text_index", "text_index", "text_keys", "region_text_keys")  # for the loss alone


@contextmanager
def eager_attention_on_cpu(model: RegionMedClipModel) -> Iterator[None]:
    """Plain attention in the towers inside the block, on a CPU: the fused one is slow backwards (docs/decisions.md)."""
    if model.device.type != "cpu":
        yield
        return
    parts = {name: getattr(model.config, name)._attn_implementation for name in model.config.sub_configs}
    model.set_attn_implementation(dict.fromkeys(parts, "eager"))
    try:
        yield
    finally:
        model.set_attn_implementation(parts)


@dataclass
class StageOutput(RegionMedClipOutput):
    """What the model gives, and `distilled_embeds` (B, R, D) float, embeddings of a label-free stage's boxes."""

    distilled_embeds: Tensor | None = None


class StageModel(nn.Module):
    """The model as one stage trains it: Accelerate patches this shell's forward and leaves the model's own alone.

    (Preparing the model itself stage after stage, with an unwrap between, silently lost the autocast.)
    """

    def __init__(self, model: RegionMedClipModel):
        super().__init__()
        self.model = model

    def forward(self, distilled_boxes: Tensor | None = None, **tensors: Tensor) -> StageOutput:
        """What the model gives, in float32; and embeddings of `distilled_boxes` (B, R, 4), fused nowhere."""
        output = self.model(**tensors)
        if distilled_boxes is None:
            return StageOutput(**output)
        config, tower = self.model.config, self.model.vision_model
        grid = grid_of(config.vision_config, tensors["pixel_values"])
        patches, _ = read_patches(tower, output.vision_model_output, grid, config.image_pooling)
        coverage = box_coverage(distilled_boxes, grid).flatten(2)
        embeds = self.model.roi_processor(patches, distilled_boxes, coverage, grid)
        return StageOutput(**output, distilled_embeds=embeds)


class Trainer:
    """Trains `model` in place by `recipe`; its log and checkpoints lie in `output_dir`."""

    def __init__(
        self,
        recipe: Recipe,
        model: RegionMedClipModel,
        processor: RegionMedClipProcessor,
        store: SampleStore,
        output_dir: Path,
        accelerator: Accelerator,
        identity: str,
    ):
        self.recipe = recipe
        self.model = model.to(accelerator.device)
        self.store = store
        self.accelerator = accelerator
        self.checkpoints = output_dir / "checkpoints"
        self.metrics_path = output_dir / "metrics.jsonl"
        self.collator = Collator(processor)
        self.samples = PositionedSamples(store, store.order(recipe.seed), recipe.max_regions, recipe.box_noise)
        self.fingerprint = identity
        self.distiller: Distiller | None = None  # of the stage that is running

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
        index, first_step = stage_at(self.recipe, step)
        stage = self.recipe.stages[index]
        teacher_path = self.checkpoints / f"teacher_{first_step:08d}.safetensors"
        is_resumed = step > first_step
        self.distiller = build_distiller(
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
        wrapped = self.accelerator.prepare_model(StageModel(self.model))
        self.model.train()
        last_step = first_step + stage.steps
        started_at = time.monotonic()
        for batch in self._batches(step, last_step):
            rate = learning_rate_at(stage, step - first_step)
            terms, loss, gradient_norm = self._optimise(wrapped, optimizer, stage, batch, rate, step)
            step += 1
            now = time.monotonic()
            row = self._row(step, stage, terms, loss, rate, gradient_norm, batch, now - started_at)
            started_at = now
            if log is not None:
                log.append(row)
            progress.set_postfix(stage=stage.name, loss=f"{row['loss']:.3f}", refresh=False)
            progress.update()
            if step % self.recipe.checkpoint_every_steps == 0 or step == last_step:
                self._save(step, stage, optimizer)
        self.accelerator.free_memory()
        if self.distiller is not None and self.accelerator.is_main_process:
            teacher_path.unlink()  # the checkpoint of the stage's end needs it no more
        return step

    def _batches(self, step: int, last_step: int) -> Iterator[Batch]:
        positions = [
            rank_positions(i, self.recipe.global_batch_size, self._rank, self._num_processes)
            for i in range(step, last_step)
        ]
        num_workers = self.recipe.preparation_workers if self.store.decodes_images else 0
        return iter(load_batches(self.samples, positions, self.collator, num_workers))

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    @property
    def _num_processes(self) -> int:
        return self.accelerator.num_processes

    def _optimise(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        stage: Stage,
        batch: Batch,
        rate: float,
        step: int,
    ) -> tuple[dict[str, LossTerm], Tensor, Tensor]:
        """One optimiser step; gives its terms, weighted loss () and gradient norm ()."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.recipe.seed, step, self._rank))
        terms = self._global_terms(wrapped, stage, batch, step)
        loss = torch.stack([stage.loss_weights[name] * term.loss for name, term in terms.items()]).sum()
        self._refuse_non_finite({f"loss term {name}": term.loss for name, term in terms.items()}, stage, batch, step)
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_grad_norm)
        self._refuse_non_finite({"gradient norm": gradient_norm}, stage, batch, step)
        optimizer.step()
        self.model.temperatures.clamp_()
        return terms, loss.detach(), gradient_norm

    def _global_terms(self, wrapped: nn.Module, stage: Stage, batch: Batch, step: int) -> dict[str, LossTerm]:
        """The stage's loss terms over the batches of all processes."""
        terms = stage.loss_weights
        tensors = {key: value.to(self.accelerator.device) for key, value in batch.items() if key != "sample_id"}
        is_complete = tensors.pop("region_is_complete")
        if not any(term in terms for term in REGION_TERMS):
            tensors = {key: value for key, value in tensors.items() if not key.startswith("region_")}
        if not any(term in terms for term in TEXT_TERMS):
            tensors = {key: value for key, value in tensors.items() if key in IMAGE_TENSORS}
        bookkeeping = {name: tensors.pop(name, None) for name in BOOKKEEPING_TENSORS}
        drawn = None if self.distiller is None else self.distiller.boxes(step)
        output = wrapped(**tensors, distilled_boxes=drawn)
        local, fingerprints = {}, {}
        if output.text_embeds is not None:
            local = loss_inputs(output, tensors.get("region_mask"), **bookkeeping)
            fingerprints["text"] = text_fingerprints(tensors["input_ids"], tensors["attention_mask"])
        if output.region_text_embeds is not None:
            fingerprints["region_text"] = text_fingerprints(
                tensors["region_input_ids"], tensors["region_attention_mask"]
            )
        if "proposals" in terms:
            regions = tensors["region_boxes"], tensors["region_mask"]
            local |= self.model.proposal_inputs(output, tensors["pixel_values"], *regions, is_complete)
        if self.distiller is not None:
            targets = self.distiller.targets(tensors["pixel_values"], drawn)
            local |= dict(zip(DISTILLATION_INPUTS, (output.distilled_embeds, *targets)))
        gathered = gather_loss_inputs(local, fingerprints)
        found = self.model.compute_terms(gathered, tuple(term for term in terms if term != "region_distillation"))
        if self.distiller is not None:
            found["region_distillation"] = region_distillation_loss(*(gathered[name] for name in DISTILLATION_INPUTS))
        return found

    def _refuse_non_finite(self, values: dict[str, Tensor], stage: Stage, batch: Batch, step: int) -> None:
        for name, value in values.items():
            if not torch.isfinite(value):
                raise ValueError(
                    f"step {step + 1} of stage {stage.name!r}: the {name} is {value.item()}; it must be finite. "
                    f"Samples of this process: {', '.join(batch['sample_id'])}. Lower the learning rate or look at "
                    f"these samples; checkpoints of earlier steps lie in {self.checkpoints}."
                )

    def _row(
        self,
        step: int,
        stage: Stage,
        terms: dict[str, LossTerm],
        loss: Tensor,
        rate: float,
        gradient_norm: Tensor,
        batch: Batch,
        elapsed_s: float,
    ) -> dict[str, Any]:
        """The row of metrics.jsonl of one step."""
        row = {"step": step, "stage": stage.name, "loss": loss.item(), "lr": rate, "grad_norm": gradient_norm.item()}
        row["samples_per_s"] = round(self.recipe.global_batch_size / elapsed_s, 2)
        for name, term in terms.items():
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

    def _save(self, step: int, stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        if not self.accelerator.is_main_process:
            return
        position = step * self.recipe.global_batch_size
        state = RunState(step, stage.name, position // len(self.store), position, self.fingerprint)
        save_checkpoint(self.checkpoints, self.model, optimizer, state, self.recipe.keep_checkpoints)
