"""Clipping by the norm of all gradients together, with the norm of every part beside it at no further cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .stages import GROUP_OF_PART


@dataclass(frozen=True)
class GradientNorms:
    """Norms before clipping, tensors of shape (): of all gradients, and of those of each group of `RATE_GROUPS`."""

    total: Tensor
    by_group: dict[str, Tensor]


@torch.no_grad()
def clip_gradients(named_parameters: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> GradientNorms:
    """The norms of the gradients, which are then scaled down in place where the total exceeds `max_norm`.

    The total and the clipped gradients are those of `torch.nn.utils.clip_grad_norm_`, bit for bit on one device.

    Args:
        named_parameters: of `RegionMedClipModel`, by their names there; those without a gradient do not count.
    """
    named = [(name, parameter) for name, parameter in named_parameters if parameter.grad is not None]
    parameters = [parameter for _, parameter in named]
    norms = torch._foreach_norm([parameter.grad for parameter in parameters])
    total = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    found: dict[str, list[Tensor]] = {}
    for (name, _), norm in zip(named, norms):
        found.setdefault(GROUP_OF_PART[name.partition(".")[0]], []).append(norm)
    return GradientNorms(
        total, {group: torch.linalg.vector_norm(torch.stack(own)) for group, own in sorted(found.items())}
    )
