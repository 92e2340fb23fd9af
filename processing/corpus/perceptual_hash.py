"""Perceptual hashes: what survives re-encoding, resizing and small changes of brightness; and the search for near ones.

A hash is the sign pattern of an image's lowest frequencies (the "pHash" of Zauner, Implementation and Benchmarking of
Perceptual Image Hash Functions, 2010, sec. 3.2.1), twice: COARSE, 8 x 8 frequencies in 64 bits, finds candidates fast;
FINE, 16 x 16 in 256 bits, confirms them. Medical images of one kind are alike, so the coarse hash alone would call
strangers duplicates: of 1,500 phantoms it pairs 1,963 at 4 bits, the fine one confirms none of them, while copies
re-encoded, halved in size or changed in brightness differ in at most 17 fine bits (docs/decisions.md).
Mirrored, rotated and cropped copies are NOT found.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import pairwise

import numpy as np
from PIL import Image

SIDE = 64  # pixels to which an image is reduced for the fine hash, half of it for the coarse one
NUM_COARSE, NUM_FINE = 8, 16  # frequencies along each axis
NUM_WORDS = 5  # of 64 bits: one coarse, four fine
HEX_DIGITS = 16 * NUM_WORDS
DRAFT_SIDE = 2 * SIDE  # a JPEG is decoded at a reduced scale that keeps at least so many pixels
NEAR_COARSE_BITS, NEAR_FINE_BITS = 4, 20  # up to so many may differ in near duplicates
_NUMERIC_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
Words = tuple[np.ndarray, np.ndarray]  # coarse (N,) and fine (N, 4), uint64
_BLOCK = 1024  # hashes compared at once with the others of their bucket


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(5,) uint64: the coarse word and the four fine words of an image; zeros for an image of one flat tone."""
    small = _small_grey(image)  # (64, 64)
    halved = small.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))  # (32, 32)
    bits = np.concatenate((_sign_pattern(halved, NUM_COARSE), _sign_pattern(small, NUM_FINE)))
    return np.frombuffer(np.packbits(bits).tobytes(), dtype=">u8").astype(np.uint64)


def hash_of_bytes(content: bytes) -> np.ndarray:
    """The hash of an encoded image; a JPEG is decoded at a reduced scale, which moves a bit or two at most."""
    with Image.open(BytesIO(content)) as image:
        image.draft("L", (DRAFT_SIDE, DRAFT_SIDE))
        return perceptual_hash(image)


def hex_of_hash(words: np.ndarray) -> str:
    """The 80 hex digits of a (5,) hash, as the `phash` column holds them."""
    return words.astype(">u8").tobytes().hex()


def hash_of_hex(text: str) -> np.ndarray:
    """(5,) uint64: the hash that 80 hex digits write; ValueError for any other text."""
    try:
        content = bytes.fromhex(text)
    except ValueError:
        content = b""
    if len(content) * 2 != HEX_DIGITS:
        raise ValueError(f"phash is {text!r}; it must be {HEX_DIGITS} hex digits. Build the corpus again.")
    return np.frombuffer(content, dtype=">u8").astype(np.uint64)


def near_pairs(
    hashes: np.ndarray,
    others: np.ndarray | None = None,
    *,
    max_coarse_bits: int = NEAR_COARSE_BITS,
    max_fine_bits: int = NEAR_FINE_BITS,
) -> Iterator[tuple[int, int, int]]:
    """Every (i, j, fine bits that differ) of near hashes, each pair once, in an order set by the hashes alone.

    An image of one flat tone is near to none: it shows nothing by which to tell.

    Args:
        hashes: (M, 5) uint64.
        others: (N, 5) uint64, compared with `hashes`; None compares `hashes` with themselves, i < j.
        max_coarse_bits: 0 to 15.
        max_fine_bits: 0 to 256.

    Raises:
        ValueError: a number of bits is out of its range.
    """
    parted = None if others is None else (others[:, 0], others[:, 1:])
    return near_pairs_of_words(
        (hashes[:, 0], hashes[:, 1:]), parted, max_coarse_bits=max_coarse_bits, max_fine_bits=max_fine_bits
    )


def near_pairs_of_words(
    hashes: Words,
    others: Words | None = None,
    *,
    max_coarse_bits: int = NEAR_COARSE_BITS,
    max_fine_bits: int = NEAR_FINE_BITS,
) -> Iterator[tuple[int, int, int]]:
    """The pairs of `near_pairs`, of hashes given as (coarse (M,), fine (M, 4)), where fine may be a memory map.

    Exact, by the pigeonhole principle: of max_coarse_bits + 1 bands of two near coarse words at least one is equal, so
    only hashes within a bucket of a band are compared. Memory: 24 bytes a hash beside the words.
    """
    if not (0 <= max_coarse_bits <= 15 and 0 <= max_fine_bits <= 256):
        raise ValueError(
            f"max_coarse_bits is {max_coarse_bits} and max_fine_bits {max_fine_bits}; they must be 0 to 15 and 0 to "
            f"256. {NEAR_COARSE_BITS} and {NEAR_FINE_BITS} are the defaults."
        )
    search = _Search(hashes, others, max_coarse_bits, max_fine_bits)
    for band in range(max_coarse_bits + 1):
        yield from search.pairs_of_band(band)


def count_bits(values: np.ndarray) -> np.ndarray:
    """Number of set bits of every uint64; same shape, int64."""
    parts = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return _bits_of_16()[parts].sum(axis=-1, dtype=np.int64)


class _Search:
    """One search for near pairs; see `near_pairs`."""

    def __init__(self, hashes: Words, others: Words | None, max_coarse_bits: int, max_fine_bits: int) -> None:
        self.is_within = others is None
        self.coarse, self.fine = hashes
        self.other_coarse, self.other_fine = hashes if others is None else others
        self.max_coarse_bits, self.max_fine_bits = max_coarse_bits, max_fine_bits
        self.bands = _bands(max_coarse_bits + 1)

    def pairs_of_band(self, band: int) -> Iterator[tuple[int, int, int]]:
        """Near pairs that are equal in this band and in no earlier one."""
        mask, earlier = self.bands[band], self.bands[:band]
        order, keys = _sorted_by(self.coarse, mask)
        other_order, other_keys = (order, keys) if self.is_within else _sorted_by(self.other_coarse, mask)
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])  # of the buckets
        ends = np.append(starts[1:], len(keys))
        lefts = np.searchsorted(other_keys, keys[starts], "left")
        rights = np.searchsorted(other_keys, keys[starts], "right")
        least = 2 if self.is_within else 1
        for bucket in np.flatnonzero(rights - lefts >= least):
            rows = np.sort(order[starts[bucket] : ends[bucket]])
            columns = np.sort(other_order[lefts[bucket] : rights[bucket]])
            for low in range(0, len(rows), _BLOCK):
                yield from self._compare(rows[low : low + _BLOCK], columns[low if self.is_within else 0 :], earlier)

    def _compare(
        self, rows: np.ndarray, columns: np.ndarray, earlier: list[np.uint64]
    ) -> Iterator[tuple[int, int, int]]:
        """Near pairs of a block of `rows` with `columns` that differ in every earlier band."""
        for low in range(0, len(columns), _BLOCK):
            block = columns[low : low + _BLOCK]
            differing = self.coarse[rows][:, None] ^ self.other_coarse[block][None, :]
            is_candidate = count_bits(differing) <= self.max_coarse_bits
            for mask in earlier:
                is_candidate &= (differing & mask) != 0
            if self.is_within:
                is_candidate &= rows[:, None] < block[None, :]
            i, j = (side[found] for side, found in zip((rows, block), np.nonzero(is_candidate)))
            for part in range(0, len(i), _BLOCK):
                firsts, seconds = i[part : part + _BLOCK], j[part : part + _BLOCK]
                fine_bits = count_bits(self.fine[firsts] ^ self.other_fine[seconds]).sum(axis=1)
                for near in np.flatnonzero(fine_bits <= self.max_fine_bits):
                    yield int(firsts[near]), int(seconds[near]), int(fine_bits[near])


def _sorted_by(coarse: np.ndarray, mask: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts coarse words by their masked bits, and those bits in it; flat images (0) are left out."""
    order = np.argsort(coarse & mask)  # not stable: that costs memory, and the members of a bucket are sorted later
    if not coarse.all():
        order = order[coarse[order] != 0]
    keys = coarse[order]
    keys &= mask
    return order, keys


@lru_cache(maxsize=1)
def _bits_of_16() -> np.ndarray:
    """(65536,) uint8: number of set bits of every 16-bit number."""
    return np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
        axis=1, dtype=np.uint8
    )


def _bands(number: int) -> list[np.uint64]:
    """Masks that cut 64 bits into `number` runs of nearly equal length."""
    edges = [64 * k // number for k in range(number + 1)]
    return [np.uint64(((1 << (end - start)) - 1) << start) for start, end in pairwise(edges)]


@lru_cache(maxsize=2)
def _cosines(num_frequencies: int, side: int) -> np.ndarray:
    """(num_frequencies, side) float32: the lowest rows of the DCT-II matrix."""
    position = np.arange(side)[None, :] + 0.5
    return np.cos(np.pi * np.arange(num_frequencies)[:, None] * position / side).astype(np.float32)


def _sign_pattern(small: np.ndarray, num_frequencies: int) -> np.ndarray:
    """(num_frequencies ** 2,) bool: which of the lowest frequencies of a square image lie above their median."""
    cosines = _cosines(num_frequencies, len(small))
    flat = (cosines @ small @ cosines.T).ravel()
    flat[0] = 0.0  # the mean brightness says nothing of the picture
    if np.abs(flat).max() < 1e-3:
        return np.zeros(len(flat), dtype=bool)
    return flat > np.median(flat[1:])


def _small_grey(image: Image.Image) -> np.ndarray:
    """(64, 64) float32 of the image squeezed to a square, its brightness stretched to 0..1."""
    if image.mode in _NUMERIC_MODES:
        image = Image.fromarray(np.asarray(image, dtype=np.float32))
    elif image.mode != "L":
        image = image.convert("RGB").convert("L")  # a palette, transparency or CMYK goes through colours
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    span = float(small.max() - small.min())
    return (small - small.min()) / span if span > 0 else np.zeros_like(small)
