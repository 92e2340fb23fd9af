"""Splits and shards: which rows go to training, and how a range of rows is cut into contiguous blocks."""

from __future__ import annotations

import hashlib

from regionmed_clip.processing.corpus.records import SPLITS

HELD_OUT_PERCENT = (("test", 10), ("validation", 10))  # of the patients of a source that names no split itself
TRAIN_SHARE_PERCENT = 70  # of the rows of a source that names no held-out part
_NO_SPLIT = 255


def contiguous_blocks(num_items: int, num_blocks: int) -> list[tuple[int, int]]:
    """At most `num_blocks` ranges [start, stop) that cover 0..num_items in order; sizes differ by at most one."""
    num_blocks = min(num_items, num_blocks)
    return [(num_items * k // num_blocks, num_items * (k + 1) // num_blocks) for k in range(num_blocks)]


class SplitsInOrder:
    """Splits of the rows of a source that names none itself, or names them for some rows only; 2 bytes a row.

    Where some row is held out, rows without a split train. Else a row with a patient goes where `split_by_hash` puts
    the patient; of the others the first 70 % of all rows are "train" and the rest "test", in file order: neighbouring
    rows are often slices of one patient, so blocks leak less than a random draw.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._own = bytearray()  # place of the row's own split in SPLITS, _NO_SPLIT without one
        self._hashed = bytearray()  # the same of its patient's split
        self._has_held_out = False

    def add(self, own_split: str | None, patient_id: str | None) -> int:
        """The number, from 0, of a new row with this split and patient."""
        hashed = None if patient_id is None else split_by_hash(self._source, patient_id)
        self._own.append(_NO_SPLIT if own_split is None else SPLITS.index(own_split))
        self._hashed.append(_NO_SPLIT if hashed is None else SPLITS.index(hashed))
        self._has_held_out |= own_split not in (None, "train")
        return len(self._own) - 1

    def split_of(self, row: int) -> str:
        """The split of a row, to be asked for when all rows are in."""
        if self._has_held_out:
            return "train" if self._own[row] == _NO_SPLIT else SPLITS[self._own[row]]
        if self._hashed[row] != _NO_SPLIT:
            return SPLITS[self._hashed[row]]
        return "train" if row < len(self._own) * TRAIN_SHARE_PERCENT // 100 else "test"


def patient_key(source: str, patient_id: str) -> str:
    """Whom a patient id means, over all sources: "POPULATION:ID" as it is, else the id within its source.

    Sources drawn from one population write such ids ("mimic-cxr:p10000032"), so that a patient of both is one patient.
    """
    return patient_id if ":" in patient_id else f"{source}:{patient_id}"


def split_by_hash(source: str, patient_id: str) -> str:
    """The split of a patient of `source`: 80 % train, 10 % validation, 10 % test, by a hash of `patient_key` alone.

    So it never changes when images or patients are added, and all images of a patient share it, over all sources.
    """
    digest = hashlib.blake2b(patient_key(source, patient_id).encode(), digest_size=8).digest()
    ticket = int.from_bytes(digest, "big") / 2**64 * 100
    for split, percent in HELD_OUT_PERCENT:
        if ticket < percent:
            return split
        ticket -= percent
    return "train"
