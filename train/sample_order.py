"""The order of training samples: a pure function of (seed, epoch, global position), whatever the process count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

REGION_CHOICE_STREAM = 1  # keeps the draws of regions apart from the draws of the order
DROPOUT_STREAM = 2
MIXTURE_STREAM = 3
BOX_NOISE_STREAM = 4
DISTILLATION_STREAM = 5
AUGMENTATION_STREAM = 6
NEGATIVES_STREAM = 7
ADAPTER_STREAM = 8
QUESTION_STREAM = 9
BLOCKS_OF_WINDOW = 8  # so many blocks of a corpus are shuffled together from the second epoch on
ROUND_SIZE = 1000  # positions after which the shares of a mixture are exact


class Order(Protocol):
    """Sample indices by global position, a pure function of it."""

    seed: int

    def indices(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 sample indices at the global positions start..stop - 1."""
        ...


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
            self._permutation = self._draw_permutation(epoch)
            self._epoch = epoch
        return self._permutation

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        """(num_samples,) int64: the order of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)


class BlockOrder(SampleOrder):
    """The order of a built corpus, which is shuffled already: in the first epoch that of its files, block by block.

    In later epochs the blocks (row groups) come in a fresh order, and the samples of every BLOCKS_OF_WINDOW consecutive
    ones are shuffled together: batches differ from epoch to epoch, and few blocks at a time are read.
    """

    def __init__(self, block_sizes: Sequence[int], seed: int):
        super().__init__(sum(block_sizes), seed)
        self._sizes = np.asarray(block_sizes, dtype=np.int64)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        if epoch == 0:
            return np.arange(self.num_samples)
        generator = np.random.default_rng([self.seed, epoch])
        starts = np.cumsum(self._sizes) - self._sizes
        blocks = generator.permutation(len(self._sizes))
        windows = []
        for first in range(0, len(blocks), BLOCKS_OF_WINDOW):
            members = blocks[first : first + BLOCKS_OF_WINDOW]
            rows = np.concatenate([np.arange(starts[k], starts[k] + self._sizes[k]) for k in members])
            windows.append(generator.permutation(rows))
        return np.concatenate(windows)


class MixtureOrder:
    """The order of several sets of samples mixed by weight; each goes through epochs of its own.

    Positions come in rounds of ROUND_SIZE. In every round each part has its share of the positions, rounded by largest
    remainder, at places drawn anew for the round. An index counts through the parts, one part after the other.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float], seed: int):
        self.seed = seed
        self._orders = list(orders)
        self._first_indices = np.cumsum([0, *(order.num_samples for order in orders)])[:-1]
        self.quotas = largest_remainders(weights, ROUND_SIZE)
        for part, quota in enumerate(self.quotas):
            if quota < 1:
                raise ValueError(
                    f"part {part} of the mixture has weight {weights[part]:g} of {sum(weights):g}, less than one "
                    f"sample in {ROUND_SIZE}; its share must be larger. Raise its weight or leave it out."
                )
        self._round = -1
        self._parts_of_round = np.empty(0, dtype=np.int64)

    def indices(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 sample indices at the global positions start..stop - 1."""
        pieces = []
        while start < stop:
            number, offset = divmod(start, ROUND_SIZE)
            parts = self._parts_of(number)
            piece = parts[offset : offset + stop - start]
            found = np.empty(len(piece), dtype=np.int64)
            for part, order in enumerate(self._orders):
                is_part = piece == part
                first = number * self.quotas[part] + int((parts[:offset] == part).sum())  # of the part's own positions
                own = order.indices(first, first + int(is_part.sum()))
                found[is_part] = self._first_indices[part] + own
            pieces.append(found)
            start += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def _parts_of(self, number: int) -> np.ndarray:
        """(ROUND_SIZE,) int64: the part from which each position of a round takes its sample."""
        if number != self._round:
            parts = np.repeat(np.arange(len(self.quotas)), self.quotas)
            self._parts_of_round = np.random.default_rng([self.seed, MIXTURE_STREAM, number]).permutation(parts)
            self._round = number
        return self._parts_of_round


def largest_remainders(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `weights` that sum to `total`; the earlier of equal remainders is rounded up."""
    exact = [weight / sum(weights) * total for weight in weights]
    numbers = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: (numbers[part] - exact[part], part))
    for part in by_remainder[: total - sum(numbers)]:
        numbers[part] += 1
    return numbers


def step_seed(seed: int, step: int, rank: int, micro_batch: int = 0) -> int:
    """63-bit seed of the random numbers that `rank` draws in `step` (dropout), so that a resume draws the same."""
    return int(np.random.default_rng([seed, DROPOUT_STREAM, step, rank, micro_batch]).integers(2**63))


def rank_positions(first_position: int, global_batch_size: int, rank: int, num_processes: int) -> range:
    """Global positions that `rank` handles of the global batch from `first_position` on: its contiguous share."""
    per_device = global_batch_size // num_processes
    start = first_position + rank * per_device
    return range(start, start + per_device)


def noise_generator(seed: int, position: int) -> np.random.Generator:
    """The draws of the noise on the boxes of the sample at a global position."""
    return np.random.default_rng([seed, BOX_NOISE_STREAM, position])


def choose_regions(num_regions: int, max_regions: int, seed: int, position: int) -> np.ndarray:
    """Sorted int64 indices of at most `max_regions` of an image's regions, drawn anew at each global position."""
    if num_regions <= max_regions:
        return np.arange(num_regions)
    generator = np.random.default_rng([seed, REGION_CHOICE_STREAM, position])
    return np.sort(generator.choice(num_regions, size=max_regions, replace=False))
