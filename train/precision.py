"""Which arithmetic a run uses, decided by the hardware and never silently slow."""

from __future__ import annotations

from pathlib import Path

import torch


def resolve_precision(requested: str, cpu_flags: frozenset[str] | None = None) -> str:
    """Accelerate's `mixed_precision` ("no" or "bf16") for a recipe's precision.

    Args:
        requested: "auto" takes bf16 where the hardware computes it, else fp32.
        cpu_flags: the processor's feature flags; None reads them from this machine.

    Raises:
        ValueError: for fp16: on a CPU it is some 40 times slower than fp32, on a GPU it needs loss scaling.
    """
    if requested == "fp16":
        raise ValueError(
            "precision is 'fp16'; on a CPU that is some 40 times slower than fp32, and on a GPU this trainer scales no "
            "loss. Use precision=auto, which takes bf16 where the hardware has it."
        )
    if torch.cuda.is_available():
        if requested == "auto":
            return "bf16" if torch.cuda.is_bf16_supported() else "no"
        return {"fp32": "no"}.get(requested, requested)
    if requested == "auto":
        flags = read_cpu_flags() if cpu_flags is None else cpu_flags
        return "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "no"
    return {"fp32": "no"}.get(requested, requested)


def read_cpu_flags() -> frozenset[str]:
    """Feature flags of the first processor as Linux lists them; empty where it does not."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
