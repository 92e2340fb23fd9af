"""Leaks: does the test set hold images or patients that the model was trained on, or that thresholds are chosen on?

The images under test are compared with the fingerprints that training left (processing/corpus/training_images.py):
equal bytes, near copies by perceptual hash (re-encoded, resized, changed in brightness), patients. What is not found:
mirrored, rotated and cropped copies; patients where a source names none, or names one person by two ids. Models whose
training images nobody wrote down, as the checkpoints of others, cannot be checked unless somebody brings a list, and
their figures say so. The splits that an evaluation tunes and teaches on are compared with the test set likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.data_spec import TRAINING_SPLIT
from regionmed_clip.processing.corpus.fingerprints import Part, part_of_examples, part_of_split
from regionmed_clip.processing.corpus.leakage import KINDS, MEANING_OF_KIND, shared_rows
from regionmed_clip.processing.corpus.sources.source_files import sha256_of_file
from regionmed_clip.processing.corpus.training_images import TrainingRecord, find_training_images, read_fingerprints

MODES = ("refuse", "mark")
NONE_FOUND, FOUND, UNCHECKED = "none found", "found", "unchecked"
MAX_NAMED = 5  # images in a message
# Wider in the coarse bits than the search of a corpus build, for copies made smaller or brighter, and narrower in the
# fine ones, for here one pair of strangers refuses an evaluation: of the 9.6 million pairs of the quickstart's images
# the nearest two differ in 19 of the 256 fine bits, and the next in 21 (docs/decisions.md).
NEAR_COARSE_BITS, NEAR_FINE_BITS = 8, 18


@dataclass(frozen=True)
class LeakCheck:
    """What the images under test share with a model's training images, or with those of another split.

    Attributes:
        status: NONE_FOUND, FOUND, or UNCHECKED where the training images are unknown.
        num_images: images under test.
        num_others: images that they were compared with.
        num_of_kind: kind of `leakage.KINDS` -> images under test that it holds for.
        image_ids: names of the images under test that are shared in any way, in their order.
        unknown: why training images are unknown, or a part of them; "" where all are known.
        others: what those images are.
        is_given: whether it was not training that told them, but a person.
    """

    status: str
    num_images: int
    num_others: int = 0
    num_of_kind: Mapping[str, int] = field(default_factory=dict)
    image_ids: Sequence[str] = ()
    unknown: str = ""
    others: str = "training images"
    is_given: bool = False

    @property
    def protocol(self) -> dict[str, Any]:
        """What the protocol of every figure says, without names of images.

        `leak_check` always: its status, and the numbers of images under test that are shared, of training images, and
        of each kind of sharing. `leaks`, a text, where some were found; `training_data`, a text, where some is unknown.
        """
        said: dict[str, Any] = {"status": self.status}
        if self.status != UNCHECKED:
            said |= {"num_shared": len(self.image_ids), "num_training_images": self.num_others, **self.num_of_kind}
        if self.is_given:
            said["training_images"] = "given by hand"
        texts = {"leaks": self.found, "training_data": self._unknown()}
        return {"leak_check": said} | {key: text for key, text in texts.items() if text}

    def line(self, model: str) -> str:
        """The check of a model for a person."""
        if self.status == UNCHECKED:
            return f"{model}: leaks were not looked for, training data {self._unknown()}"
        found = f"none of {self.num_images:,} test images is among {self.num_others:,} {self.others}"
        if self.status == FOUND:
            found = f"{self.found}: {self.names}"
        return f"{model}: {found}" + (f"; training data {self._unknown()}" if self.unknown else "")

    @property
    def found(self) -> str:
        """How many images under test are shared, and by what; "" where none is."""
        if self.status != FOUND:
            return ""
        kinds = [f"{number:,} by {MEANING_OF_KIND[kind]}" for kind, number in self.num_of_kind.items() if number]
        among = f"{self.num_others:,} {self.others}"
        return f"{len(self.image_ids):,} of {self.num_images:,} test images are among {among} ({', '.join(kinds)})"

    @property
    def names(self) -> str:
        """The first of the shared images."""
        return ", ".join(self.image_ids[:MAX_NAMED]) + (" and more" if len(self.image_ids) > MAX_NAMED else "")

    def _unknown(self) -> str:
        """What is not known of the training data; "" where all is."""
        if not self.unknown:
            return ""
        return f"{'unknown' if self.status == UNCHECKED else 'known in part'} ({self.unknown})"

    def refuse(self, model: str) -> None:
        """None; ValueError with the images and the ways out where leaks were found."""
        if self.status == FOUND:
            raise ValueError(
                f"{self.line(model)}. Figures on them would flatter the model. Evaluate on other images, or mark the "
                "figures by --leaks mark."
            )


def check_leaks(folder: str | Path, test: Part, *, images_file: str | Path | None = None) -> LeakCheck:
    """The check of the model in `folder` against the images under test.

    Args:
        folder: of the model, see `find_training_images`.
        test: fingerprints of the images under test, see `fingerprints.part_of_examples`.
        images_file: the fingerprints of its training images, where they are not where the run left them, or the model
            has no record: a training_images.parquet, or a built corpus, of which the training split is meant.

    Raises:
        ValueError: a file that training did not write, or wrote for another model than this one.
    """
    record = find_training_images(folder)
    if images_file is not None:
        training = _read_given(Path(images_file), record)
        return replace(compare(test, training, record.unknown_of_start), is_given=True)
    if record.images is None:
        return LeakCheck(UNCHECKED, len(test.image_ids), unknown=record.unknown)
    return compare(test, read_fingerprints(record.images), record.unknown)


def compare(test: Part, others: np.ndarray, unknown: str = "", *, name: str = "training images") -> LeakCheck:
    """What the images of `test` share with `others`, (N,) of `fingerprints.TYPE`; `name` says what these are."""
    pairs_of_kind = shared_rows(test.prints, others, NEAR_FINE_BITS, NEAR_COARSE_BITS)
    rows = {kind: [first for first, _, _ in pairs] for kind, pairs in pairs_of_kind.items()}
    shared = sorted({row for found in rows.values() for row in found})
    return LeakCheck(
        status=FOUND if shared else NONE_FOUND,
        num_images=len(test.image_ids),
        num_others=len(others),
        num_of_kind={kind: len(rows[kind]) for kind in KINDS},
        image_ids=[test.image_ids[row] for row in shared],
        unknown=unknown,
        others=name,
    )


def _read_given(path: Path, record: TrainingRecord) -> np.ndarray:
    """(N,) of `fingerprints.TYPE`: what a person says that the model of `record` was trained on."""
    if is_built_corpus(path):
        return part_of_split(BuiltCorpus(path), TRAINING_SPLIT).prints
    prints, named = read_fingerprints(path), record.facts.get("images", {}).get("sha256")
    if named is not None and sha256_of_file(path) != named:
        raise ValueError(
            f"{path} is not the list of training images that the model's training_data.json names (sha256 {named}); "
            "give the one of its own run."
        )
    return prints


class LeakGuard:
    """Checks models and splits of an evaluation against one set of test images, whose fingerprints are taken once.

    Args:
        examples: the images under test, gone through once, at the first check.
        mode: "refuse" raises where leaks are found; "mark" only tells them in the protocol.
    """

    def __init__(self, examples: Any, mode: str = "refuse"):
        if mode not in MODES:
            raise ValueError(f"--leaks is {mode!r}; it must be one of {', '.join(MODES)}.")
        self._examples, self._mode = examples, mode
        self._test: Part | None = None
        self._checks: dict[tuple[Path, str | Path | None], LeakCheck] = {}

    def check(self, model: str, folder: str | Path, images_file: str | Path | None = None) -> LeakCheck:
        """The check of a model; ValueError where it leaks and the mode is to refuse. Asking twice costs nothing."""
        key = Path(folder), images_file
        if key not in self._checks:
            self._checks[key] = check_leaks(folder, self._fingerprints(), images_file=images_file)
        found = self._checks[key]
        if self._mode == "refuse":
            found.refuse(model)
        return found

    def check_splits(self, examples_by_split: Mapping[str, Any]) -> dict[str, Any]:
        """What protocols say of the splits that the evaluation chooses thresholds on, or teaches probes.

        `split_leak_check`: name of a split -> as `leak_check`, with `num_images` of the split. `split_leaks`, a text,
        where images under test are among them; in the mode to refuse a ValueError.
        """
        said: dict[str, Any] = {}
        texts = []
        for split, examples in examples_by_split.items():
            prints = part_of_examples(split, examples).prints
            check = compare(self._fingerprints(), prints, name=f"images of the split {split!r}")
            if check.status == FOUND and self._mode == "refuse":
                raise ValueError(
                    f"{check.found}: {check.names}. Thresholds and probes would be fitted to images under test. Mend "
                    "the splits of the data, leave out the tasks that need that split, or mark the figures by --leaks "
                    "mark."
                )
            numbers = {"num_shared": len(check.image_ids), "num_images": check.num_others, **check.num_of_kind}
            said[split] = {"status": check.status, **numbers}
            texts += [check.found] if check.found else []
        return ({"split_leak_check": said} if said else {}) | ({"split_leaks": "; ".join(texts)} if texts else {})

    def _fingerprints(self) -> Part:
        """Those of the images under test."""
        if self._test is None:
            self._test = part_of_examples("test", self._examples)
        return self._test
