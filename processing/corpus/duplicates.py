"""What a build decides of all images together: exact duplicates, near duplicates, and the split of every image.

Images of one patient, and near duplicates, go into one split, and so does whatever they are linked to by others. A
group that any of its images would put into the test split goes there; else into validation, if any says so. An image
can so leave the training split when a near copy is added to the test split; never the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regionmed_clip.processing.corpus.perceptual_hash import near_pairs_of_words
from regionmed_clip.processing.corpus.scan import ScanIndex

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image, `second`, and the earliest one to which it is equal or near, by their positions in the scan.

    One for each duplicate, not for each pair: a film of near frames has a million pairs.
    """

    kind: str  # "exact" or "near"
    first: int
    second: int
    is_dropped: bool
    fine_bits: int = 0  # of 256 that differ between the perceptual hashes


@dataclass(frozen=True, slots=True)
class Decisions:
    """For every image in the order of the scan: is_kept (N,) bool and split (N,) uint8, index in SPLITS."""

    is_kept: np.ndarray
    split: np.ndarray
    duplicates: list[Duplicate]
    num_moved: int


def decide(index: ScanIndex, *, drop_near: bool = False) -> Decisions:
    """What to keep, and in which split; at most about 32 bytes an image are held in memory at once.

    Args:
        index: of the scan.
        drop_near: drop every image that is near an earlier one, instead of keeping it in the same split.
    """
    is_kept = np.ones(len(index), dtype=bool)
    groups = Groups(len(index))
    duplicates: list[Duplicate] = []
    for first, second in _exact_pairs(index):
        is_kept[second] = False
        groups.join(first, second)
        duplicates.append(Duplicate("exact", first, second, is_dropped=True))
    for first, second in _equal_neighbours(index.column("patient")):
        groups.join(first, second)
    coarse = index.column("phash")
    coarse[~is_kept] = 0  # which is near to none: a thousand exact copies would be compared with each other
    earliest: dict[int, tuple[int, int]] = {}  # near duplicate -> (the earliest image it is near to, bits)
    for first, second, fine_bits in near_pairs_of_words((coarse, index.fine_words())):
        groups.join(first, second)
        earliest[second] = min((first, fine_bits), earliest.get(second, (first, fine_bits)))
    for second, (first, fine_bits) in sorted(earliest.items()):
        is_kept[second] &= not drop_near
        duplicates.append(Duplicate("near", first, second, drop_near, fine_bits))
    wished = index.column("split")
    split = groups.largest(wished)
    return Decisions(is_kept, split, duplicates, int(((split != wished) & is_kept).sum()))


class Groups:
    """Disjoint sets of positions, joined pair by pair: 4 bytes an image."""

    def __init__(self, number: int) -> None:
        self.parent = np.arange(number, dtype=np.int32)

    def join(self, first: int, second: int) -> None:
        """Makes the sets of the two positions one; its root is the lowest position."""
        a, b = self._root(first), self._root(second)
        self.parent[max(a, b)] = min(a, b)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """For every position the largest value in its set; same dtype."""
        while True:  # pointer jumping: halves the depth of every tree
            grandparent = self.parent[self.parent]
            if np.array_equal(grandparent, self.parent):
                break
            self.parent = grandparent
        best = np.zeros_like(values)
        np.maximum.at(best, self.parent, values)
        return best[self.parent]

    def _root(self, position: int) -> int:
        parent = self.parent
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = int(parent[position])
        return position


def _exact_pairs(index: ScanIndex) -> Iterator[tuple[int, int]]:
    """(first, later) positions of images with equal bytes, by the scan's order."""
    firsts: dict[int, int] = {}
    for first, second in _equal_neighbours(index.column("sha256_start")):
        root = firsts.setdefault(second, firsts.get(first, first))
        if index.sha256(root) == index.sha256(second):
            yield root, second


def _equal_neighbours(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(earlier, later) positions that follow each other among those of one value; 0 stands for "unknown".

    The values are read block by block once they are sorted: every array of the whole length costs its bytes an image.
    """
    order = np.argsort(values, kind="stable")
    for start in range(0, len(order) - 1, _BLOCK):
        members = order[start : start + _BLOCK + 1]
        ordered = values[members]
        for place in np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)):
            yield int(members[place]), int(members[place + 1])
