"""What the processes tell each other: loss inputs with exact gradients, whole tensors, the fact that one has failed.

The only file that talks to torch.distributed. Every process computes the same global loss from the same gathered rows,
so the sum of all processes' gradients of its own rows is its own gradient times their number, and nothing is exchanged
backwards. Data-parallel training then averages the parameters' gradients: those of one process at the global batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.functional import pad

from modeling_regionmed_clip.loss_regionmed_clip import GATHERED, count_texts_once

FINGERPRINT_BASE = 0x9E3779B97F4A7C15 - (1 << 64)  # the 64-bit golden ratio, as a signed integer
SAME = "same"
STORE_TIME = timedelta(seconds=10)
STORE_ERRORS = (dist.DistError, RuntimeError)  # of a store that is not (or no longer) there


def is_distributed() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_process(is_so: bool, device: torch.device) -> bool:
    """Whether it is so on at least one process; the same answer on all of them."""
    if not is_distributed():
        return is_so
    answer = torch.tensor(int(is_so), device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer.item())


def text_fingerprints(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(T,) int64 hash of each row's real tokens (T, L): equal for equal texts, whatever the padding."""
    length = input_ids.shape[1]
    powers = torch.full((length,), FINGERPRINT_BASE, dtype=torch.int64, device=input_ids.device).cumprod(0)  # wraps
    return ((input_ids + 1) * attention_mask * powers).sum(dim=1)


def join_loss_inputs(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The flat loss inputs of the global batch, with gradient: micro-batches in order, then processes in rank order.

    Each distinct text takes part once. Rows are joined as they are, however many each part has.

    Args:
        parts: of the micro-batches of this process, each with the same keys of `GATHERED`.
    """
    rows = concatenate_loss_inputs(parts)
    if is_distributed():
        rows = _gather_loss_inputs(rows)
    return count_texts_once(rows)


def concatenate_loss_inputs(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The flat loss inputs of several micro-batches as those of one; second axes that differ are filled up."""
    joined = {}
    for key in parts[0]:
        tensors = [part[key] for part in parts]
        if GATHERED[key].rows == SAME:
            joined[key] = tensors[0]
            continue
        if GATHERED[key].is_widened:
            width = max(tensor.shape[1] for tensor in tensors)
            tensors = [_widen(tensor, width, GATHERED[key].fill) for tensor in tensors]
        joined[key] = torch.cat(tensors)
    return joined


def _widen(values: Tensor, width: int, fill: float) -> Tensor:
    """(N, width, ...) values (N, K, ...), filled up behind."""
    missing = width - values.shape[1]
    return pad(values, (*[0] * (2 * (values.ndim - 2)), 0, missing), value=fill) if missing else values


def _gather_loss_inputs(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes in three exchanges: of sizes, of floats, of whole numbers and masks together."""
    keys = [key for key in rows if GATHERED[key].rows != SAME]
    shapes = [(len(rows[key]), rows[key].shape[1] if GATHERED[key].is_widened else 0) for key in keys]
    device = rows[keys[0]].device
    sizes = _all_gather(torch.tensor(shapes, device=device)).tolist()  # (processes, keys, 2)
    found = {key: tensor for key, tensor in rows.items() if key not in keys}
    own = {}
    for place, key in enumerate(keys):
        is_widened, fill = GATHERED[key].is_widened, GATHERED[key].fill
        width = max(size[place][1] for size in sizes)
        own[key] = _widen(rows[key], width, fill) if is_widened else rows[key]
    num_rows = {key: [size[place][0] for size in sizes] for place, key in enumerate(keys)}
    for dtype in sorted({_exchanged_dtype(tensor) for tensor in own.values()}, key=str):
        packed = {key: tensor for key, tensor in own.items() if _exchanged_dtype(tensor) == dtype}
        found |= _gather_packed(packed, num_rows, dtype)
    return {key: found[key] for key in rows}


def _exchanged_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_floating_point() else torch.int64


def _gather_packed(tensors: dict[str, Tensor], num_rows: dict[str, list[int]], dtype: torch.dtype) -> dict[str, Tensor]:
    """The rows of all processes of tensors that travel as one vector of `dtype`.

    Args:
        num_rows: of each tensor, by rank.
    """
    per_row = {key: math.prod(tensor.shape[1:]) for key, tensor in tensors.items()}
    lengths = [[num_rows[key][rank] * per_row[key] for key in tensors] for rank in range(dist.get_world_size())]
    longest = max(map(sum, lengths))
    vector = torch.cat([tensor.to(dtype).reshape(-1) for tensor in tensors.values()])
    vectors = _GatherVectors.apply(pad(vector, (0, longest - len(vector))))  # (processes, longest)
    pieces: dict[str, list[Tensor]] = {key: [] for key in tensors}
    for own_lengths, row in zip(lengths, vectors.unbind()):
        split = row.split([*own_lengths, longest - sum(own_lengths)])
        for key, piece in zip(tensors, split):
            pieces[key].append(piece.reshape(-1, *tensors[key].shape[1:]))
    return {key: torch.cat(pieces[key]).to(tensor.dtype) for key, tensor in tensors.items()}


class _GatherVectors(torch.autograd.Function):
    """(processes, N) vectors (N,) of all processes; see the head of this file for why nothing comes back."""

    @staticmethod
    def forward(ctx, vector: Tensor) -> Tensor:
        return _all_gather(vector)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[dist.get_rank()] * dist.get_world_size()


def _all_gather(tensor: Tensor) -> Tensor:
    """(processes, ...) tensors of one shape, in rank order."""
    gathered = tensor.new_empty(dist.get_world_size(), *tensor.shape)
    dist.all_gather(list(gathered.unbind()), tensor.contiguous())
    return gathered


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that FSDP2 has sharded; then every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """The whole `tensor`, equal on every process, sharded as `model` is; itself if that is whole."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def connect_to_rendezvous() -> dist.Store | None:
    """A connection of its own to the store at which the processes of the run met; None if there is none to reach."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        return None
    try:
        return dist.TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=STORE_TIME)
    except STORE_ERRORS:
        return None
