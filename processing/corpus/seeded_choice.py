"""Choices that depend on names alone: the same on every machine, in every process and Python version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's MMIX: full period modulo 2**64


class SeededChoice:
    """A stream of choices that `names` decide, e.g. an image's id and a seed."""

    def __init__(self, *names: str | int):
        digest = hashlib.blake2b("\x1f".join(map(str, names)).encode("utf-8"), digest_size=8).digest()
        self._state = int.from_bytes(digest, "big")

    def below(self, number: int) -> int:
        """A whole number in [0, number)."""
        self._state = (self._state * _MULTIPLIER + _INCREMENT) & _MASK
        return ((self._state >> 33) * number) >> 31  # the high bits: the low ones of such a stream repeat soon

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, which must not be empty."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All of `items` in an order of chance."""
        shuffled = list(items)
        for last in range(len(shuffled) - 1, 0, -1):
            other = self.below(last + 1)
            shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
        return shuffled
