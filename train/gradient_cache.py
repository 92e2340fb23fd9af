"""A global contrastive batch beyond what memory holds at once: two passes over micro-batches, the gradients of one.

The loss of a contrastive batch needs all its embeddings, but its gradient goes back into each micro-batch apart: pass 1
computes the embeddings without gradients, the loss gives gradients on them, and pass 2 computes each micro-batch anew,
with the same random numbers, and sends its embeddings' gradients on. Source: GradCache, arXiv:2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .collator import Collator

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class LossInputs:
    """What a micro-batch gives to the loss.

    Args:
        rows: the flat tensors of `GATHERED`.
        shared: what every micro-batch gives alike: temperatures and biases. The loss takes those of the first.
    """

    rows: dict[str, Tensor]
    shared: dict[str, Tensor]


class MicroBatchCollator:
    """The share of one process in a step as a list of micro-batches, each with its own unique texts.

    Args:
        batch_size: samples of a micro-batch, the last may have fewer; None: all in one.
    """

    def __init__(self, collator: Collator, batch_size: int | None):
        self.collator = collator
        self.batch_size = batch_size

    def __call__(self, chosen: Sequence) -> list[dict]:
        """Micro-batches in the order of the samples."""
        size = self.batch_size or len(chosen)
        return [self.collator(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def cached_backward(
    micro_batches: Sequence[Callable[[], LossInputs]],
    objective: Callable[[Sequence[LossInputs]], tuple[Tensor, Outcome]],
    backward: Callable[[Tensor], None],
    without_sync: Callable[[], AbstractContextManager],
) -> Outcome:
    """What `objective` found; the parameters then have the gradients of its loss.

    Args:
        micro_batches: each computes one; called twice, it must draw the same random numbers.
        objective: the loss () of all micro-batches (and all processes) together, and what else is found with it.
        backward: of a loss, through the parameters.
        without_sync: a context in which gradients are not exchanged between processes; they are in the last pass alone.
    """
    with torch.no_grad():
        leaves = [_as_leaves(compute()) for compute in micro_batches]
    loss, outcome = objective(leaves)
    loss.backward()
    shared = [(name, leaves[0].shared[name].grad) for name in _with_gradient(leaves[0].shared)]
    for place, (compute, cached) in enumerate(zip(micro_batches, leaves)):
        is_last = place == len(micro_batches) - 1
        with nullcontext() if is_last else without_sync():
            again = compute()
            pairs = [(again.rows[name], cached.rows[name].grad) for name in _with_gradient(cached.rows)]
            pairs += [(again.shared[name], gradient) for name, gradient in shared] if is_last else []
            backward(torch.stack([(value * gradient).sum() for value, gradient in pairs if value.requires_grad]).sum())
    return outcome


def _as_leaves(inputs: LossInputs) -> LossInputs:
    """The same values, floats as leaves that gather gradients."""
    rows, shared = (
        {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in tensors.items()}
        for tensors in (inputs.rows, inputs.shared)
    )
    return LossInputs(rows, shared)


def _with_gradient(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.grad is not None]
