"""Splits and shards: which rows go to training, and how a range of rows is cut into contiguous blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HELD_OUT_PERCENT = (("test", 10), ("validation", 10))  # of the patients of a source that names no split itself
TRAIN_SHARE_PERCENT = 70  # of the rows of a source that names no held-out part


def contiguous_blocks(num_items: int, num_blocks: int) -> list[tuple[int, int]]:
    """At most `num_blocks` ranges [start, stop) that cover 0..num_items in order; sizes differ by at most one."""
    num_blocks = min(num_items, num_blocks)
    return [(num_items * k // num_blocks, num_items * (k + 1) // num_blocks) for k in range(num_blocks)]


def split_in_order(patient_ids: Sequence[str | None]) -> list[str]:
    """Split of every row: the first 70 % "train", the rest "test", in file order.

    Neighbouring rows are often slices of one patient, so blocks leak less than a random draw. Where patient ids are
    given, a row follows the first row of its patient: no patient is in both parts.
    """
    num_train = len(patient_ids) * TRAIN_SHARE_PERCENT // 100
    split_of_patient: dict[str, str] = {}
    splits = []
    for row, patient_id in enumerate(patient_ids):
        split = "train" if row < num_train else "test"
        splits.append(split if patient_id is None else split_of_patient.setdefault(patient_id, split))
    return splits


def split_by_hash(source: str, patient_id: str) -> str:
    """The split of a patient of `source`: 80 % train, 10 % validation, 10 % test, by a hash of the two names alone.

    So it never changes when images or patients are added, and all images of a patient share it.
    """
    digest = hashlib.blake2b(f"{source}\x1f{patient_id}".encode(), digest_size=8).digest()
    ticket = int.from_bytes(digest, "big") / 2**64 * 100
    for split, percent in HELD_OUT_PERCENT:
        if ticket < percent:
            return split
        ticket -= percent
    return "train"
