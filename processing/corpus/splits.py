"""Splits and shards: which rows go to training, and how a range of rows is cut into contiguous blocks."""

from __future__ import annotations

import hashlib
from array import array
from functools import cached_property

import numpy as np

from regionmed_clip.processing.corpus.records import SPLITS

HELD_OUT_PERCENT = (("test", 10), ("validation", 10))  # of the patients of a source that names no split itself
TRAIN_SHARE_PERCENT = 70  # of the rows of a source that names no held-out part
_NO_SPLIT = 255


def contiguous_blocks(num_items: int, num_blocks: int) -> list[tuple[int, int]]:
    """At most `num_blocks` ranges [start, stop) that cover 0..num_items in order; sizes differ by at most one."""
    num_blocks = min(num_items, num_blocks)
    return [(num_items * k // num_blocks, num_items * (k + 1) // num_blocks) for k in range(num_blocks)]


class SplitsInOrder:
    """Splits of the rows of a source that names none itself, or names them for some rows only; 9 bytes a row.

    Where some row is held out, rows without a split train. Else the first 70 % are "train" and the rest "test", in file
    order: neighbouring rows are often slices of one patient, so blocks leak less than a random draw. Where patient ids
    are given, a row follows the first row of its patient: no patient is in both parts.
    """

    def __init__(self) -> None:
        self._own = bytearray()  # place of the row's own split in SPLITS, _NO_SPLIT without one
        self._patients = array("Q")  # hash of the row's patient, 0 without one
        self._has_held_out = False

    def add(self, own_split: str | None, patient_id: str | None) -> int:
        """The number, from 0, of a new row with this split and patient."""
        self._own.append(_NO_SPLIT if own_split is None else SPLITS.index(own_split))
        self._patients.append(0 if patient_id is None else _hash_patient(patient_id))
        self._has_held_out |= own_split not in (None, "train")
        return len(self._own) - 1

    def split_of(self, row: int) -> str:
        """The split of a row, to be asked for when all rows are in."""
        if self._has_held_out:
            return "train" if self._own[row] == _NO_SPLIT else SPLITS[self._own[row]]
        if row < self._num_train:
            return "train"
        patient, known = self._patients[row], self._train_patients
        place = int(np.searchsorted(known, np.uint64(patient)))
        return "train" if patient and place < len(known) and int(known[place]) == patient else "test"

    @property
    def _num_train(self) -> int:
        return len(self._own) * TRAIN_SHARE_PERCENT // 100

    @cached_property
    def _train_patients(self) -> np.ndarray:
        """Sorted uint64 hashes of the patients of the first 70 %."""
        return np.unique(np.array(self._patients[: self._num_train], dtype=np.uint64))


def _hash_patient(patient_id: str) -> int:
    """A hash in [1, 2**64)."""
    return int.from_bytes(hashlib.blake2b(patient_id.encode(), digest_size=8).digest(), "big") or 1


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
