"""Gathering of embeddings over processes with exact gradients; the only file that talks to torch.distributed.

Every process computes the same global loss from the gathered rows. The backward pass sums the processes' gradients and
DDP then averages the parameters' gradients, which together give the gradient of one process at the global batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from modeling_regionmed_clip.loss_regionmed_clip import DISTILLATION_INPUTS, NO_TEXT_KEY, first_occurrence_mask

FINGERPRINT_BASE = 0x9E3779B97F4A7C15 - (1 << 64)  # the 64-bit golden ratio, as a signed integer


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows]


def is_distributed() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """(W * N, ...) rows of all W processes in rank order, with gradient; N must be equal on every process."""
    if not is_distributed():
        return rows
    return _GatherRows.apply(rows) if rows.is_floating_point() else _gather_plain(rows)


def _gather_plain(rows: Tensor) -> Tensor:
    as_integer = rows.to(torch.int64).contiguous()
    gathered = [torch.empty_like(as_integer) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, as_integer)
    return torch.cat(gathered).to(rows.dtype)


def gather_ragged_rows(*columns: Tensor) -> tuple[Tensor, ...]:
    """The columns (N, ...) of all processes, padded to the largest N with zeros, then a (W * N_max,) bool mask."""
    num_rows = columns[0].shape[0]
    mask = torch.ones(num_rows, dtype=torch.bool, device=columns[0].device)
    if is_distributed():
        largest = torch.tensor(num_rows, device=mask.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        num_missing = int(largest) - num_rows
        columns = tuple(_pad_rows(column, num_missing) for column in columns)
        mask = _pad_rows(mask, num_missing)
    return *(gather_rows(column) for column in columns), gather_rows(mask)


def _widen(values: Tensor, fill: float) -> Tensor:
    """(B, R_max, ...) values (B, R, ...), filled up to the largest R of all processes."""
    largest = torch.tensor(values.shape[1], device=values.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    width = int(largest) - values.shape[1]
    return torch.cat([values, values.new_full((values.shape[0], width, *values.shape[2:]), fill)], dim=1)


def _pad_rows(rows: Tensor, num_missing: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(num_missing, *rows.shape[1:])])


def text_fingerprints(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(T,) int64 hash of each row's real tokens (T, L): equal for equal texts, whatever the padding."""
    length = input_ids.shape[1]
    powers = torch.full((length,), FINGERPRINT_BASE, dtype=torch.int64, device=input_ids.device).cumprod(0)  # wraps
    return ((input_ids + 1) * attention_mask * powers).sum(dim=1)


def gather_loss_inputs(local: dict[str, Tensor], fingerprints: dict[str, Tensor]) -> dict[str, Tensor]:
    """The global batch from each process's share, each distinct text once, as `contrastive_terms` takes it.

    Args:
        local: this process's rows; the keys of `contrastive_terms`, of `proposal_loss` and of
            `region_distillation_loss`.
        fingerprints: `text` (T,) and, with regions, `region_text` (U,) int64 from `text_fingerprints`.
    """
    if not is_distributed():
        masks = {
            f"{name}_mask": first_occurrence_mask(rows, local[f"{name}_mask"]) for name, rows in fingerprints.items()
        }
        return local | masks  # texts that differ only where the tokenizer does not look are one text
    batch = {name: gather_rows(local[name]) for name in ("image", "image_keys", *DISTILLATION_INPUTS) if name in local}
    if "proposal_logits" in local:
        batch |= {name: gather_rows(local[name]) for name in ("proposal_logits", "proposal_boxes", "is_complete")}
        batch["target_boxes"] = gather_rows(_widen(local["target_boxes"], 0.0))
        batch["target_mask"] = gather_rows(_widen(local["target_mask"], False))
        batch["patch_boxes"] = local["patch_boxes"]  # the same on every process
    for name in ("text", "region_text"):
        if name in local:
            columns = (local[name], local[f"{name}_keys"], local[f"{name}_mask"], fingerprints[name])
            batch[name], batch[f"{name}_keys"], is_text, gathered_fingerprints, mask = gather_ragged_rows(*columns)
            batch[f"{name}_mask"] = first_occurrence_mask(gathered_fingerprints, mask & is_text)
    if "region" in local:
        batch["fused_image"] = gather_rows(local["fused_image"])
        batch["image_region_keys"] = gather_rows(_widen(local["image_region_keys"], NO_TEXT_KEY))
        rows = gather_ragged_rows(local["region"], local["region_keys"], local["region_row_mask"])
        batch["region"], batch["region_keys"], row_mask, mask = rows
        batch["region_row_mask"] = row_mask & mask
    return batch
