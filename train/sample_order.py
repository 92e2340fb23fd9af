"""The order of training samples: a pure function of (seed, epoch, global position), whatever the process count."""

from __future__ import annotations

import numpy as np

REGION_CHOICE_STREAM = 1  # keeps the draws of regions apart from the draws of the order
DROPOUT_STREAM = 2


class SampleOrder:
    """Sample indices by global position; position p lies in epoch p // num_samples, each epoch a fresh permutation."""

    def __init__(self, num_samples: int, seed: int):
        if num_samples < 1:
            raise ValueError(f"the training split has {num_samples} samples; it must have at least one.")
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def indices(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 sample indices at the global positions start..stop - 1."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            part = self._permutation_of(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _permutation_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            self._epoch = epoch
        return self._permutation


def step_seed(seed: int, step: int, rank: int) -> int:
    """63-bit seed of the random numbers that `rank` draws in `step` (dropout), so that a resume draws the same."""
    return int(np.random.default_rng([seed, DROPOUT_STREAM, step, rank]).integers(2**63))


def rank_positions(step: int, global_batch_size: int, rank: int, num_processes: int) -> range:
    """Global positions that `rank` handles in `step`: its contiguous share of the global batch."""
    per_device = global_batch_size // num_processes
    start = step * global_batch_size + rank * per_device
    return range(start, start + per_device)


def choose_regions(num_regions: int, max_regions: int, seed: int, position: int) -> np.ndarray:
    """Sorted int64 indices of at most `max_regions` of an image's regions, drawn anew at each global position."""
    if num_regions <= max_regions:
        return np.arange(num_regions)
    generator = np.random.default_rng([seed, REGION_CHOICE_STREAM, position])
    return np.sort(generator.choice(num_regions, size=max_regions, replace=False))
