"""The row of metrics.jsonl that one optimiser step gives, read from the device at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from modeling_regionmed_clip import RegionMedClipModel

from .gather import whole_tensor
from .recipe_parts import TEXT_TERMS
from .stage_plan import StagePlan
from .training_step import StepOutcome

COUNTS = ("num_positives", "num_negatives", "num_masked")
BYTES_PER_MIB = 1 << 20
Item = TypeVar("Item")


class GateMeter:
    """The mean of the prompter's gate over the real regions that a model embeds while it trains.

    It listens to the model from outside, by hooks that `listening` puts on and takes off again.
    """

    def __init__(self) -> None:
        self._is_real: Tensor | None = None  # (B, R) bool, of the regions that the ROI processor is embedding
        self._sum: Tensor | float = 0.0
        self._num_regions: Tensor | float = 0.0

    @contextmanager
    def listening(self, model: RegionMedClipModel) -> Iterator[None]:
        """None; inside the block every gate of `model` in training mode counts."""
        prompter = model.roi_processor.prompter
        if prompter is None:
            yield
            return
        handles = (
            model.roi_processor.register_forward_pre_hook(self._note_regions),
            prompter.gate.register_forward_hook(self._add),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_regions(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        boxes = inputs[1]  # (B, R, 4); the model sets those of padding to zero
        self._is_real = boxes[..., 2] > boxes[..., 0]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        is_real, self._is_real = self._is_real, None
        if is_real is None or not module.training:
            return
        gates = torch.sigmoid(output.detach().float()).mean(dim=-1)  # (B, R, C) -> (B, R)
        self._sum = self._sum + (gates * is_real).sum()
        self._num_regions = self._num_regions + is_real.sum()

    def take(self, accelerator: Accelerator) -> Tensor | None:
        """The mean over all processes since the last call, of shape (); None if no region was embedded at all.

        It holds a collective where processes have embedded regions.
        """
        total, number = self._sum, self._num_regions
        self._sum = self._num_regions = 0.0
        if not isinstance(total, Tensor):
            return None
        both = accelerator.reduce(torch.stack([total, number.to(total.dtype)]), reduction="sum")
        return both[0] / both[1]  # NaN where all regions were padding


class StepClock:
    """How long steps take, and how much of that they wait for their batch; pauses between steps do not count."""

    def __init__(self) -> None:
        self._asked_at = self._got_at = time.monotonic()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; a step begins where its batch is asked for."""
        batches = iter(batches)
        while True:
            self._asked_at = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._got_at = time.monotonic()
            yield batch

    def read(self) -> tuple[float, float]:
        """(seconds since the step began, the share of them that it waited for its batch)."""
        elapsed_s = max(time.monotonic() - self._asked_at, 1e-9)
        return elapsed_s, (self._got_at - self._asked_at) / elapsed_s


def sample_ids_hash(sample_ids: Sequence[str]) -> str:
    """SHA-256 (hex) of the sample ids of the global batch in order; every process gives its own."""
    joined = "\n".join(gather_object(list(sample_ids)))  # rank order is the order of the global batch
    return hashlib.sha256(joined.encode()).hexdigest()


def step_scalars(model: RegionMedClipModel, outcome: StepOutcome, gate_mean: Tensor | None) -> dict[str, Tensor]:
    """By column, what a step leaves on the device: tensors of one element.

    Args:
        model: after the step; temperatures, biases and alpha are those that the next step begins with.
    """
    found = {"loss": outcome.loss, "grad_norm": outcome.gradient_norm}
    found |= {f"grad_norm_{group}": norm for group, norm in outcome.group_norms.items()}
    for name, term in outcome.terms.items():
        found[f"loss_{name}"] = term.loss
        found |= {f"{count}_{name}": getattr(term, count) for count in COUNTS}
        if name in TEXT_TERMS:
            found[f"logit_scale_{name}"] = model.temperatures(name)
            bias = getattr(model.temperatures, f"{name}_bias", None)
            if bias is not None:
                found[f"logit_bias_{name}"] = bias
    found["fusion_alpha"] = model.region_fusion.alpha
    if gate_mean is not None:
        found["gate_mean"] = gate_mean
    return found


@torch.no_grad()
def read_scalars(scalars: dict[str, Tensor], is_needed: bool = True) -> dict[str, float | int | None]:
    """The numbers, by one transfer from the device; counts as integers, what is not finite as None.

    Args:
        is_needed: False on a process that only takes its part in gathering sharded values; it gets nothing.
    """
    values = [whole_tensor(value) for value in scalars.values()]
    if not is_needed:
        return {}
    numbers = torch.stack([value.detach().reshape(()).to(torch.float64) for value in values]).tolist()
    row: dict[str, float | int | None] = {}
    for name, number in zip(scalars, numbers):
        if number != number or abs(number) == float("inf"):
            row[name] = None
        else:
            row[name] = int(number) if name.startswith("num_") else number
    return row


def learning_rates(optimizer: torch.optim.Optimizer, plan: StagePlan) -> dict[str, float]:
    """`lr`, the rate of the groups that have none of their own, and `lr_<group>` of all where they differ."""
    by_group = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
    common = [rate for group, rate in by_group.items() if group not in plan.stage.learning_rates]
    rates = {"lr": common[0] if common else max(by_group.values())}
    if len(set(by_group.values())) > 1:
        rates |= {f"lr_{group}": rate for group, rate in by_group.items()}
    return rates


def peak_memory(device: torch.device) -> dict[str, Any]:
    """`peak_memory_mib` of a GPU, what tensors held at most so far; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"peak_memory_mib": round(torch.cuda.max_memory_allocated(device) / BYTES_PER_MIB, 1)}
