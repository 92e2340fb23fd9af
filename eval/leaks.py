"""Leaks: does the test set hold images or patients that the model was trained on?

The images under test are compared with the fingerprints that training left (processing/corpus/training_images.py):
equal bytes, near copies by perceptual hash (re-encoded, resized, changed in brightness), patients. What is not found:
mirrored, rotated and cropped copies; patients where a source names none, or names one person by two ids. Models whose
training images nobody wrote down, as the checkpoints of others, cannot be checked, and their figures say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.fingerprints import Part, part_of_examples
from regionmed_clip.processing.corpus.leakage import KINDS, MEANING_OF_KIND, shared_rows
from regionmed_clip.processing.corpus.training_images import find_training_images, read_fingerprints

MODES = ("refuse", "mark")
NONE_FOUND, FOUND, UNCHECKED = "none found", "found", "unchecked"
MAX_NAMED = 5  # images in a message
# Wider than the search of a corpus build, for copies made smaller or brighter. Of 91,800 pairs of different images
# of the six real sources and 600,000 of phantoms none is as near (the nearest differ in 21 of the 256 fine bits).
NEAR_COARSE_BITS, NEAR_FINE_BITS = 8, 20


@dataclass(frozen=True)
class LeakCheck:
    """What the images under test share with a model's training images.

    Attributes:
        status: NONE_FOUND, FOUND, or UNCHECKED where the training images are unknown.
        num_images: images under test.
        num_training_images: images that they were compared with.
        num_of_kind: kind of `leakage.KINDS` -> images under test that it holds for.
        image_ids: names of the images under test that are shared in any way, in their order.
        unknown: why training images are unknown, or a part of them; "" where all are known.
    """

    status: str
    num_images: int
    num_training_images: int = 0
    num_of_kind: Mapping[str, int] = field(default_factory=dict)
    image_ids: Sequence[str] = ()
    unknown: str = ""

    @property
    def protocol(self) -> dict[str, Any]:
        """What the protocol of every figure says, without names of images.

        `leak_check` always: its status, and the numbers of images under test that are shared, of training images, and
        of each kind of sharing. `leaks`, a text, where some were found; `training_data`, a text, where some is unknown.
        """
        said: dict[str, Any] = {"status": self.status}
        if self.status != UNCHECKED:
            said |= {"num_shared": len(self.image_ids), "num_training_images": self.num_training_images}
            said |= self.num_of_kind
        texts = {"leaks": self._found() if self.status == FOUND else "", "training_data": self._unknown()}
        return {"leak_check": said} | {key: text for key, text in texts.items() if text}

    def line(self, model: str) -> str:
        """The check of a model for a person."""
        if self.status == UNCHECKED:
            return f"{model}: leaks were not looked for, training data {self._unknown()}"
        found = f"none of {self.num_images:,} test images is among {self.num_training_images:,} training images"
        if self.status == FOUND:
            named = ", ".join(self.image_ids[:MAX_NAMED]) + (" and more" if len(self.image_ids) > MAX_NAMED else "")
            found = f"{self._found()}: {named}"
        return f"{model}: {found}" + (f"; training data {self._unknown()}" if self.unknown else "")

    def _found(self) -> str:
        """How many images under test are shared, and by what."""
        kinds = [f"{number:,} by {MEANING_OF_KIND[kind]}" for kind, number in self.num_of_kind.items() if number]
        trained = f"{self.num_training_images:,} training images"
        return f"{len(self.image_ids):,} of {self.num_images:,} test images are among {trained} ({', '.join(kinds)})"

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
        images_file: the fingerprints of its training images, where they are not where the run left them.

    Raises:
        ValueError: a file that training did not write.
    """
    record = find_training_images(folder)
    path, unknown = (record.images, record.unknown) if images_file is None else (Path(images_file), "")
    if path is None:
        return LeakCheck(UNCHECKED, len(test.image_ids), unknown=unknown)
    training = read_fingerprints(path)
    return compare(test, training, unknown)


def compare(test: Part, training: np.ndarray, unknown: str = "") -> LeakCheck:
    """What the images of `test` share with `training`, (N,) of `fingerprints.TYPE`."""
    pairs_of_kind = shared_rows(test.prints, training, NEAR_FINE_BITS, NEAR_COARSE_BITS)
    rows = {kind: [first for first, _, _ in pairs] for kind, pairs in pairs_of_kind.items()}
    shared = sorted({row for found in rows.values() for row in found})
    return LeakCheck(
        status=FOUND if shared else NONE_FOUND,
        num_images=len(test.image_ids),
        num_training_images=len(training),
        num_of_kind={kind: len(rows[kind]) for kind in KINDS},
        image_ids=[test.image_ids[row] for row in shared],
        unknown=unknown,
    )


class LeakGuard:
    """Checks the models of an evaluation against one set of test images, whose fingerprints are taken once.

    Args:
        examples: the images under test, gone through once, at the first check.
        mode: "refuse" raises where leaks are found; "mark" only tells them in the protocol.
    """

    def __init__(self, examples: Any, mode: str = "refuse"):
        if mode not in MODES:
            raise ValueError(f"--leaks is {mode!r}; it must be one of {', '.join(MODES)}.")
        self._examples, self._mode = examples, mode
        self._test: Part | None = None
        self._checks: dict[Path, LeakCheck] = {}

    def check(self, model: str, folder: str | Path) -> LeakCheck:
        """The check of a model; ValueError where it leaks and the mode is to refuse. Asking twice costs nothing."""
        folder = Path(folder)
        if folder not in self._checks:
            if self._test is None:
                self._test = part_of_examples("test", self._examples)
            self._checks[folder] = check_leaks(folder, self._test)
        found = self._checks[folder]
        if self._mode == "refuse":
            found.refuse(model)
        return found
