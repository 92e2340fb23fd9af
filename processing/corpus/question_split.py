"""Splits for training on questions: parts held out by image and by patient, and the check that two parts share neither.

All questions on an image are in one part, and so are all images of a patient and all near duplicates of an image
(perceptual_hash.py). Official lists of questions do not keep to this: most test images of VQA-RAD are training images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from regionmed_clip.processing.corpus.duplicates import Groups
from regionmed_clip.processing.corpus.fingerprints import Part
from regionmed_clip.processing.corpus.leakage import MEANING_OF_KIND, shared_rows
from regionmed_clip.processing.corpus.perceptual_hash import near_pairs

DEFAULT_SHARES: Mapping[str, float] = {"train": 0.65, "validation": 0.15, "test": 0.2}
_MAX_NAMED = 3


def holdout_split(groups: Sequence[str], shares: Mapping[str, float] = DEFAULT_SHARES, seed: int = 0) -> list[str]:
    """For every row the part, a name of `shares`, that a hash of its group and `seed` draws.

    Rows of one group share their part, which stays the same when other groups are added or removed.

    Args:
        groups: what must stay together, one name a row: a patient, an image, or what `groups_of_images` gives.
        shares: part -> share of the groups, above 0; together 1. Few groups are shared out roughly.
        seed: another seed draws other parts.

    Raises:
        ValueError: bad shares, or a part that gets no row.
    """
    if not shares or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1.0):
        raise ValueError(f"Shares are {dict(shares)}; each must be above 0 and their sum 1. Correct them.")
    part_of = {group: _draw(group, shares, seed) for group in set(groups)}
    drawn = [part_of[group] for group in groups]
    missing = [part for part in shares if part not in drawn]
    if missing:
        raise ValueError(
            f"{len(part_of)} groups leave part {missing[0]!r} empty with shares {dict(shares)} and "
            f"seed {seed}; every part needs a row. Give more data, a larger share, or another seed."
        )
    return drawn


def groups_of_images(images: Part) -> list[str]:
    """For every image the name of its group: itself, with all images of its patient and all its duplicates.

    A group is named by its first patient (a hash), or by its first image where no patient is known.

    Args:
        images: of `fingerprints.part_of_examples`.
    """
    prints, number = images.prints, len(images.image_ids)
    groups = Groups(number)
    for column in ("sha256", "patient"):
        firsts: dict[bytes | int, int] = {}
        for row, value in enumerate(prints[column].tolist()):
            if value:
                groups.join(firsts.setdefault(value, row), row)
    for first, second, _ in near_pairs(prints["phash"]):
        groups.join(first, second)
    patients = prints["patient"].tolist()
    names = [f"patient {patient:016x}" if patient else name for patient, name in zip(patients, images.image_ids)]
    order = sorted(range(number), key=lambda row: (not patients[row], names[row]), reverse=True)
    places = np.empty(number, dtype=np.int64)
    places[order] = np.arange(number)  # the group's name is that of its last place
    return [names[order[place]] for place in groups.largest(places)]


def check_disjoint(train: Part, test: Part) -> None:
    """Nothing; raises ValueError where two parts share an image, a near duplicate of one, or a patient.

    Args:
        train, test: of `fingerprints.part_of_examples`, by any names.
    """
    for kind, pairs in shared_rows(train.prints, test.prints).items():
        if pairs:
            named = [f"{train.image_ids[one]} ~ {test.image_ids[other]}" for one, other, _ in pairs[:_MAX_NAMED]]
            raise ValueError(
                f"{len(pairs)} images of {train.name!r} share {MEANING_OF_KIND[kind]} with {test.name!r} "
                f"({', '.join(named)}{' ...' if len(pairs) > _MAX_NAMED else ''}); what is measured must not have been "
                "trained on. Split again with `holdout_split` over `groups_of_images`, or drop them."
            )


def _draw(group: str, shares: Mapping[str, float], seed: int) -> str:
    """The part of a group."""
    digest = hashlib.blake2b(f"{seed}\x1f{group}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
    ticket = int.from_bytes(digest, "big") / 2**64
    for part, share in shares.items():
        if ticket < share:
            return part
        ticket -= share
    return next(reversed(shares))  # rounding alone leads here
