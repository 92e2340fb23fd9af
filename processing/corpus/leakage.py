"""`regionmed-corpus leak`: images and patients that a corpus shares with another one, or with a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from regionmed_clip.processing.corpus.audit_report import joined
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.fingerprints import Part, part_of_split, parts_of, same_values
from regionmed_clip.processing.corpus.perceptual_hash import NEAR_COARSE_BITS, NEAR_FINE_BITS, near_pairs

KINDS = ("exact", "near", "patient")
MEANING_OF_KIND = {
    "exact": "equal bytes (sha256)",
    "near": "near by perceptual hash",
    "patient": "a patient",
}
MAX_COARSE_BITS = 15  # beyond 75 fine bits the coarse hash, which may differ in so many of 64, limits what is found
MAX_KEPT, MAX_SHOWN = 10_000, 5  # pairs of a kind and a pair of parts in the report, and on the screen


@dataclass(frozen=True, slots=True)
class SharedPair:
    """An image of the corpus and one of the other side that should not both be used; bits: of 256 that differ."""

    image: str
    other: str
    bits: int = 0


@dataclass
class Overlap:
    """What a split shares with a part of the other side: numbers of its images by kind, and pairs."""

    split: str
    other: str
    num_images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    pairs: dict[str, list[SharedPair]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


@dataclass
class LeakReport:
    """The overlaps of every split with every part of the other side, and its files that could not be read."""

    corpus: str
    against: str
    overlaps: list[Overlap]
    unreadable: list[str]

    @property
    def num_shared(self) -> int:
        """Shared images, one for each kind and pair of parts in which it occurs."""
        return sum(number for overlap in self.overlaps for number in overlap.num_images.values())

    def lines(self) -> Iterator[str]:
        """The report for a person."""
        for overlap in self.overlaps:
            for kind, number in overlap.num_images.items():
                if number:
                    yield f"LEAK {overlap.split} / {overlap.other}: {number:,} images share {MEANING_OF_KIND[kind]}."
                    yield from (f"    {_pair_line(kind, pair)}" for pair in overlap.pairs[kind][:MAX_SHOWN])
                    if number > MAX_SHOWN:
                        yield f"    ... and {number - MAX_SHOWN:,} more"
        if self.unreadable:
            yield f"WARNING {len(self.unreadable):,} files of {self.against} do not decode: {joined(self.unreadable)}"
        if self.num_shared:
            yield "Way out: leave them out of one side, or build both into one corpus, which keeps them in one split."
        parts = ", ".join(f"{overlap.split} / {overlap.other}" for overlap in self.overlaps)
        yield f"{self.corpus} against {self.against} ({parts}): {self.num_shared:,} shared."

    def as_json(self) -> str:
        """The report as JSON, at most MAX_KEPT pairs of a kind."""
        return json.dumps({**asdict(self), "num_shared": self.num_shared}, indent=2, ensure_ascii=False) + "\n"


def find_leaks(
    corpus: BuiltCorpus, against: str | Path, *, max_distance: int = NEAR_FINE_BITS, show_progress: bool = True
) -> LeakReport:
    """What the splits of `corpus` share with the built corpus, or the folder of images, at `against`.

    Mirrored, rotated and cropped copies are not found. Patients are compared where both sides name them
    by ids of one source, or of one population that several sources draw on (`splits.patient_key`).

    Args:
        corpus: a built corpus.
        against: another built corpus, or a folder with images at any depth.
        max_distance: bits of 256 in which the fine perceptual hashes of near images may differ.
        show_progress: a progress bar on stderr while a folder is read.

    Raises:
        ValueError: `against` is neither; `max_distance` is out of range.
    """
    if not 0 <= max_distance <= 256:
        raise ValueError(f"max_distance is {max_distance}; it must be 0 to 256 bits. The default is {NEAR_FINE_BITS}.")
    others = parts_of(against, show_progress=show_progress)
    overlaps = [
        _overlap_of(part, other, max_distance)
        for part in (part_of_split(corpus, split) for split in corpus.splits())
        for other in others
    ]
    unreadable = [name for other in others for name in other.unreadable]
    return LeakReport(str(corpus.folder), str(against), overlaps, unreadable)


def _overlap_of(part: Part, other: Part, max_distance: int) -> Overlap:
    """What two parts share."""
    overlap = Overlap(part.name, other.name)
    for kind, pairs in shared_rows(part.prints, other.prints, max_distance).items():
        overlap.num_images[kind] = len(pairs)
        overlap.pairs[kind] = [
            SharedPair(part.image_ids[first], other.image_ids[second], bits) for first, second, bits in pairs[:MAX_KEPT]
        ]
    return overlap


def shared_rows(
    prints: np.ndarray, others: np.ndarray, max_distance: int = NEAR_FINE_BITS, max_coarse_bits: int | None = None
) -> dict[str, list[tuple[int, int, int]]]:
    """Kind of KINDS -> (row of `prints`, a row of `others`, bits of 256 that differ), a row of `prints` at most once.

    A pair of equal bytes is not counted as near too. `prints` and `others` are (M,) and (N,) of `fingerprints.TYPE`.
    `max_coarse_bits` of 64 may differ in the coarse hash; None: in proportion to `max_distance`.
    """
    exact = dict(same_values(prints["sha256"], others["sha256"]))
    near: dict[int, tuple[int, int]] = {}
    if max_coarse_bits is None:
        in_proportion = max_distance * NEAR_COARSE_BITS // NEAR_FINE_BITS
        max_coarse_bits = max(NEAR_COARSE_BITS, min(MAX_COARSE_BITS, in_proportion))
    for first, second, bits in near_pairs(
        prints["phash"], others["phash"], max_coarse_bits=max_coarse_bits, max_fine_bits=max_distance
    ):
        if first not in exact and (first not in near or bits < near[first][1]):
            near[first] = (second, bits)
    return {
        "exact": [(first, second, 0) for first, second in exact.items()],
        "near": [(first, second, bits) for first, (second, bits) in sorted(near.items())],
        "patient": [(first, second, 0) for first, second in same_values(prints["patient"], others["patient"])],
    }


def _pair_line(kind: str, pair: SharedPair) -> str:
    """A pair for a person."""
    bits = f" ({pair.bits} of 256 bits differ)" if kind == "near" else ""
    return f"{pair.image} = {pair.other}{bits}" if kind == "exact" else f"{pair.image} ~ {pair.other}{bits}"
