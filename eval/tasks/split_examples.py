"""The examples of a data spec by split: the one under test, one to tune on, and some of the training split for probes.

What has to be drawn or chosen is copied to Arrow files once; all else is read from where it lies, as often as needed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.processing.corpus.data_spec import (
    TRAINING_SPLIT,
    DataSpec,
    hash_images,
    open_sources,
    parse_data_spec,
    stream_examples,
)
from regionmed_clip.processing.corpus.medregion import corpus_features

VALIDATION_SPLIT, TUNING_SPLIT = "validation", "tuning"
TUNING_SHARE = 0.1  # of the training images, where a source has no validation split
MAX_TUNING_IMAGES, MAX_TRAINING_IMAGES = 1000, 1000
NUM_DRAWN_TO_TUNE = 300  # validation phantoms, where the spec asks for none
NUM_SMOKE_IMAGES = 24  # of each term of a spec
Example = Mapping[str, Any]


class SplitExamples(Mapping[str, Iterable[Example]]):
    """Name of a split -> its examples, images still encoded; each may be gone through again and again.

    "validation" is there where every source has it, phantoms by drawing it. Else there is "tuning" in its place: the
    validation images of the sources that have them, and of each other source the tenth of its training images with the
    smallest hash of the patient (of the image, where no patient is named). "train" has no image of "tuning". Of both
    at most about 1,000 images are taken, chosen by a hash of their names. Which split an image is in depends on its
    name alone.

    Args:
        data: a data spec.
        split: the one under test, whole.
        folder: where copies go; it must stay while the examples are used, and be one folder for all processes.
        share: only the main process copies.
        is_smoke: take no more than the first 24 images of every split and term.

    Raises:
        ValueError: a bad spec, or data without the split under test.
    """

    def __init__(self, data: str, split: str, folder: Path, *, share: Share = ALONE, is_smoke: bool = False):
        self._spec = parse_data_spec(data)
        stream_examples(self._spec, split)  # complains of a split that is not there
        self._split, self._folder, self._share = split, folder, share
        self._parts = [_Part.open(term, split) for term, _ in self._spec.terms()]
        self._most = NUM_SMOKE_IMAGES if is_smoke else None
        is_validated = all(part.lacking == frozenset() for part in self._parts)
        self.tuning_split = VALIDATION_SPLIT if is_validated else TUNING_SPLIT
        has_training = any(TRAINING_SPLIT in part.num_images for part in self._parts)
        has_tuning = has_training or any(part.tunes_on_validation for part in self._parts)
        others = [self.tuning_split] * has_tuning + [TRAINING_SPLIT] * has_training
        self._names = tuple(dict.fromkeys([split, *others]))
        self._examples: dict[str, Iterable[Example]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, split: object) -> bool:
        return split in self._names  # without opening it

    def __getitem__(self, split: str) -> Iterable[Example]:
        if split not in self._names:
            raise KeyError(split)
        if split not in self._examples:
            self._examples[split] = self._open(split)
        return self._examples[split]

    def sha256(self) -> str:
        """The identity of the split under test, as `split_sha256` gives it."""
        return hash_images((example["image_id"], example["sha256"]) for example in self[self._split])

    def _open(self, split: str) -> Iterable[Example]:
        """The examples of one of the splits; those under test from their place, if they need not be drawn or cut."""
        if split != self._split:
            share = 1 / len(self._parts)
            choose = _Part.tuning_images if split == self.tuning_split else _Part.training_images
            return self._copy(split, (choose(part, share) for part in self._parts))
        if self._most is None and all(part.spec.kind != "phantom" for part in self._parts):
            return stream_examples(self._spec, split, decode_images=False, is_interleaved=False)
        return self._copy(split, (part.stream(split) for part in self._parts if split in part.num_images))

    def _copy(self, split: str, parts: Iterable[Iterable[Example]]) -> Dataset:
        """The examples of the parts, of each no more than asked for, in a memory-mapped file."""
        path = self._folder / f"{split}.arrow"

        def write() -> None:
            write_examples(path, (example for part in parts for example in itertools.islice(part, self._most)))

        self._share.from_main(write)
        return Dataset.from_file(str(path))


@dataclass(frozen=True)
class _Part:
    """A term of a data spec.

    Attributes:
        spec: of the term; phantoms with a validation split and no more training images than are taken.
        num_images: split -> number of images, of all splits that there are.
        lacking: sources whose training images are tuned on, for want of a validation split that is not under test;
            None: all of the term.
        tunes_on_validation: whether a source has one.
    """

    spec: DataSpec
    num_images: dict[str, int]
    lacking: frozenset[str] | None
    tunes_on_validation: bool

    @classmethod
    def open(cls, spec: DataSpec, split: str) -> _Part:
        """The part of a term, when `split` is under test."""
        spec = _draw_enough(spec, split) if spec.kind == "phantom" else spec
        sources = open_sources(spec)
        numbers = {name: 0 for source in sources for name in source.splits()}
        for source in sources:
            for name in source.splits():
                numbers[name] += source.num_records(name)
        lacking = [s.name for s in sources if split == VALIDATION_SPLIT or VALIDATION_SPLIT not in s.splits()]
        is_all = len(lacking) == len(sources)
        return cls(spec, numbers, None if is_all else frozenset(lacking), not is_all)

    def stream(self, split: str) -> Iterable[Example]:
        """The examples of a split as they are stored."""
        return stream_examples(self.spec, split, decode_images=False)

    def tuning_images(self, share: float) -> Iterator[Example]:
        """Those to tune on, at most about `share` of MAX_TUNING_IMAGES of either kind."""
        most = MAX_TUNING_IMAGES * share
        if self.tunes_on_validation:
            yield from _thin(self.stream(VALIDATION_SPLIT), most, self.num_images[VALIDATION_SPLIT])
        if self.lacking != frozenset() and TRAINING_SPLIT in self.num_images:
            held_out = (example for example in self.stream(TRAINING_SPLIT) if self._is_held_out(example))
            yield from _thin(held_out, most, TUNING_SHARE * self.num_images[TRAINING_SPLIT])

    def training_images(self, share: float) -> Iterator[Example]:
        """Training images that are not tuned on, at most about `share` of MAX_TRAINING_IMAGES."""
        if TRAINING_SPLIT in self.num_images:
            others = (example for example in self.stream(TRAINING_SPLIT) if not self._is_held_out(example))
            yield from _thin(others, MAX_TRAINING_IMAGES * share, self.num_images[TRAINING_SPLIT])

    def _is_held_out(self, example: Example) -> bool:
        """Whether a training image is one to tune on."""
        if self.lacking is not None and example["source"] not in self.lacking:
            return False
        who = example.get("patient_id")
        return _fraction("patient", example["source"], example["image_id"] if who is None else who) < TUNING_SHARE


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """None; `path` is then an Arrow file of the examples, whose images are still encoded."""
    with ArrowWriter(features=corpus_features(decode_images=False), path=str(path)) as writer:
        for example in examples:
            writer.write(dict(example))
        writer.finalize()


def _draw_enough(spec: DataSpec, split: str) -> DataSpec:
    """The phantoms of `spec`, with a validation split, and no more training images than are taken or under test."""
    options = dict(spec.options)
    if not options.get("num_validation"):
        options["num_validation"] = NUM_DRAWN_TO_TUNE
    if split != TRAINING_SPLIT:
        most = MAX_TRAINING_IMAGES + (MAX_TUNING_IMAGES if split == VALIDATION_SPLIT else 0)
        options["num_train"] = min(int(options.get("num_train", most)), most)
    return replace(spec, options=tuple(options.items()))


def _thin(examples: Iterable[Example], most: float, number: float) -> Iterator[Example]:
    """About `most` of about `number` examples, or all if they are fewer; each is chosen by its name alone."""
    kept = most / max(number, 1)
    return (e for e in examples if kept >= 1 or _fraction("image", e["source"], e["image_id"]) < kept)


def _fraction(*names: str) -> float:
    """A number in [0, 1) that is decided by the names, as good as drawn."""
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
