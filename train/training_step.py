"""One optimiser step: this process's share through the model, global loss terms, gradients, clipping, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from modeling_regionmed_clip.loss_regionmed_clip import DISTILLATION_INPUTS, LossTerm, batch_terms, loss_inputs

from .distillation import Distiller
from .gather import join_loss_inputs, text_fingerprints, whole_tensor
from .gradient_cache import LossInputs, cached_backward
from .gradient_norms import clip_gradients
from .prepared import PreparedStage
from .recipe_parts import REGION_TERMS, TEXT_TERMS
from .sample_order import step_seed
from .stage_plan import StagePlan

Batch = dict[str, Any]
IMAGE_TENSORS = ("pixel_values", "region_boxes", "region_mask")
BOOKKEEPING_TENSORS = (  # for the loss alone
    *("region_text_index", "text_index", "text_keys", "region_text_keys", "text_facts", "region_text_facts"),
    *("negative_text_index", "image_region_keys", "image_region_facts"),
)


def sample_ids(batches: Sequence[Batch]) -> list[str]:
    """The names of the samples of all micro-batches, in order."""
    return [sample for batch in batches for sample in batch["sample_id"]]


@dataclass(frozen=True)
class StepOutcome:
    """What one optimiser step gives to the log; tensors of shape (). The norms are those before clipping."""

    terms: dict[str, LossTerm]
    loss: Tensor
    gradient_norm: Tensor
    group_norms: dict[str, Tensor] = field(default_factory=dict)  # by group of `RATE_GROUPS`


class TrainingStep:
    """The optimiser steps of one stage.

    Args:
        stage_model: of the stage, in training mode; `optimizer` moves its parameters.
    """

    def __init__(
        self,
        stage_model: PreparedStage,
        plan: StagePlan,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        seed: int,
        distiller: Distiller | None,
    ):
        self.stage_model = stage_model
        self.stage = plan.stage
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.seed = seed
        self.distiller = distiller

    def run(self, batches: Sequence[Batch], step: int) -> StepOutcome:
        """The outcome of `step` on this process's share of the global batch; the learning rates are set before.

        Args:
            batches: the share in micro-batches; of several, the gradients are those of one batch (gradient_cache.py).

        Raises:
            ValueError: for a loss or gradient that is not finite; it names step, stage, term and samples.
        """
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self._backward(batches, step)
        norms = clip_gradients(self.stage_model.trained_parameters(), self.stage.max_grad_norm)
        total, *by_group = (whole_tensor(norm) for norm in (norms.total, *norms.by_group.values()))
        outcome = replace(outcome, gradient_norm=total, group_norms=dict(zip(norms.by_group, by_group)))
        self._refuse_non_finite(outcome, batches, step)
        self.optimizer.step()
        self.stage_model.model.temperatures.clamp_()
        return outcome

    def _backward(self, batches: Sequence[Batch], step: int) -> StepOutcome:
        """The loss and its terms over the batches of all processes; the parameters then have its gradients."""
        drawn = self._drawn_boxes(batches, step)
        computations = [
            partial(self._loss_inputs, batch, boxes, step, place)
            for place, (batch, boxes) in enumerate(zip(batches, drawn))
        ]
        targets = [self._targets(batch, boxes) for batch, boxes in zip(batches, drawn)]
        objective = partial(self._objective, targets)
        if len(batches) == 1:
            loss, outcome = objective([compute() for compute in computations])
            self.accelerator.backward(loss)
            return outcome
        return cached_backward(computations, objective, self.accelerator.backward, self.stage_model.without_sync)

    def _drawn_boxes(self, batches: Sequence[Batch], step: int) -> Sequence[Tensor | None]:
        """The boxes (B, R, 4) of a label-free stage for each micro-batch."""
        if self.distiller is None:
            return [None] * len(batches)
        return self.distiller.boxes(step).split([len(batch["sample_id"]) for batch in batches])

    def _targets(self, batch: Batch, drawn: Tensor | None) -> dict[str, Tensor]:
        """What the loss compares with and no gradient passes through: what the teacher sees in the drawn boxes."""
        if self.distiller is None:
            return {}
        targets = self.distiller.targets(batch["pixel_values"].to(self.accelerator.device), drawn)
        return dict(zip(DISTILLATION_INPUTS[1:], targets))

    def _loss_inputs(self, batch: Batch, drawn: Tensor | None, step: int, place: int) -> LossInputs:
        """What micro-batch number `place` gives to the loss; the same random numbers at every call."""
        torch.manual_seed(step_seed(self.seed, step, self.accelerator.process_index, place))
        terms = self.stage.loss_weights
        tensors = {key: value.to(self.accelerator.device) for key, value in batch.items() if key != "sample_id"}
        is_complete = tensors.pop("region_is_complete")
        bookkeeping = {name: tensors.pop(name, None) for name in BOOKKEEPING_TENSORS}
        if not any(term in terms for term in REGION_TERMS):
            tensors = {key: value for key, value in tensors.items() if not key.startswith("region_")}
        if not any(term in terms for term in TEXT_TERMS):
            tensors = {key: value for key, value in tensors.items() if key in IMAGE_TENSORS}
        output = self.stage_model(**tensors, distilled_boxes=drawn)
        rows = {}
        if output.text_embeds is not None:
            rows = loss_inputs(output, tensors.get("region_mask"), **bookkeeping)
            rows["text_fingerprints"] = text_fingerprints(tensors["input_ids"], tensors["attention_mask"])
        if output.region_text_embeds is not None:
            ids = tensors["region_input_ids"], tensors["region_attention_mask"]
            rows["region_text_fingerprints"] = text_fingerprints(*ids)
        if "proposals" in terms:
            regions = tensors["region_boxes"], tensors["region_mask"]
            rows |= self.stage_model.model.proposal_inputs(output, tensors["pixel_values"], *regions, is_complete)
        if self.distiller is not None:
            rows["student"] = output.distilled_embeds
        scales = {f"{name}_scale": scale for name, scale in output.logit_scales.items()}
        return LossInputs(rows, scales | {f"{name}_bias": bias for name, bias in output.logit_biases.items()})

    def _objective(
        self, targets: Sequence[dict[str, Tensor]], found: Sequence[LossInputs]
    ) -> tuple[Tensor, StepOutcome]:
        """The weighted loss, and what the log wants of it, over the micro-batches of all processes."""
        stage, values = self.stage, found[0].shared
        weights = stage.loss_weights
        rows = join_loss_inputs([inputs.rows | own for inputs, own in zip(found, targets)])
        scale_and_bias = (lambda name: values[f"{name}_scale"]), (lambda name: values.get(f"{name}_bias"))
        terms = batch_terms(rows, *scale_and_bias, tuple(weights), stage.loss_kinds, stage.similarity_filter)
        loss = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
        detached = {name: replace(term, loss=term.loss.detach()) for name, term in terms.items()}
        return loss, StepOutcome(detached, loss.detach(), gradient_norm=loss.new_zeros(()))

    def _refuse_non_finite(self, outcome: StepOutcome, batches: Sequence[Batch], step: int) -> None:
        """Raises on every process alike: loss and norm are those of the global batch."""
        values = {f"loss term {name}": term.loss for name, term in outcome.terms.items()}
        values["gradient norm"] = outcome.gradient_norm
        is_finite = torch.stack([value.reshape(()).float() for value in values.values()]).isfinite().tolist()
        if all(is_finite):
            return
        name = next(name for name, is_fine in zip(values, is_finite) if not is_fine)
        samples = gather_object(sample_ids(batches))
        raise ValueError(
            f"step {step + 1} of stage {self.stage.name!r}: the {name} is {values[name].item()}; it must be finite. "
            f"Samples of the global batch: {', '.join(samples)}. Lower the learning rate or look at these samples; the "
            "last checkpoint of the run holds what was before."
        )
