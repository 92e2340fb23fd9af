"""One optimiser step: the batch of this process through the model, global loss terms, gradients, clipping, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling_regionmed_clip import RegionMedClipModel, RegionMedClipOutput
from modeling_regionmed_clip.loss_regionmed_clip import (
    DISTILLATION_INPUTS,
    LossTerm,
    loss_inputs,
    region_distillation_loss,
)
from modeling_regionmed_clip.region_pooling import box_coverage
from modeling_regionmed_clip.towers import grid_of, read_patches

from .distillation import Distiller
from .gather import gather_loss_inputs, text_fingerprints
from .recipe_parts import REGION_TERMS, TEXT_TERMS
from .sample_order import step_seed
from .stage_plan import StagePlan

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


@dataclass(frozen=True)
class StepOutcome:
    """What one optimiser step gives to the log; tensors of shape ()."""

    terms: dict[str, LossTerm]
    loss: Tensor
    gradient_norm: Tensor


class TrainingStep:
    """The optimiser steps of one stage."""

    def __init__(
        self,
        model: RegionMedClipModel,
        plan: StagePlan,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        seed: int,
        distiller: Distiller | None,
    ):
        self.model = model
        self.stage = plan.stage
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.seed = seed
        self.distiller = distiller
        self.wrapped = accelerator.prepare_model(StageModel(model))

    def run(self, batch: Batch, step: int) -> StepOutcome:
        """The outcome of `step` on this process's share of the global batch; the learning rates are set before.

        Raises:
            ValueError: for a loss or gradient that is not finite; it names step, stage, term and samples.
        """
        torch.manual_seed(step_seed(self.seed, step, self.accelerator.process_index))
        terms = self._global_terms(batch, step)
        weights = self.stage.loss_weights
        loss = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
        self._refuse_non_finite({f"loss term {name}": term.loss for name, term in terms.items()}, batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.max_grad_norm)
        self._refuse_non_finite({"gradient norm": gradient_norm}, batch, step)
        self.optimizer.step()
        self.model.temperatures.clamp_()
        return StepOutcome(terms, loss.detach(), gradient_norm)

    def _global_terms(self, batch: Batch, step: int) -> dict[str, LossTerm]:
        """The stage's loss terms over the batches of all processes."""
        terms = self.stage.loss_weights
        tensors = {key: value.to(self.accelerator.device) for key, value in batch.items() if key != "sample_id"}
        is_complete = tensors.pop("region_is_complete")
        if not any(term in terms for term in REGION_TERMS):
            tensors = {key: value for key, value in tensors.items() if not key.startswith("region_")}
        if not any(term in terms for term in TEXT_TERMS):
            tensors = {key: value for key, value in tensors.items() if key in IMAGE_TENSORS}
        bookkeeping = {name: tensors.pop(name, None) for name in BOOKKEEPING_TENSORS}
        drawn = None if self.distiller is None else self.distiller.boxes(step)
        output = self.wrapped(**tensors, distilled_boxes=drawn)
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

    def _refuse_non_finite(self, values: dict[str, Tensor], batch: Batch, step: int) -> None:
        for name, value in values.items():
            if not torch.isfinite(value):
                raise ValueError(
                    f"step {step + 1} of stage {self.stage.name!r}: the {name} is {value.item()}; it must be finite. "
                    f"Samples of this process: {', '.join(batch['sample_id'])}. Lower the learning rate or look at "
                    "these samples; the last checkpoint of the run holds what was before."
                )
