"""The embedded source of procedural phantoms: nothing is read from disk, every record is drawn when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regionmed_clip.processing.corpus.phantoms.study import (
    LICENSE,
    MODALITIES,
    SOURCE_NAME,
    draw_phantom,
    phantom_revision,
)
from regionmed_clip.processing.corpus.records import StudyRecord
from regionmed_clip.processing.corpus.sources import BadItem, Source, SourceAbout

__all__ = ["OPTION_TYPES", "PhantomSource", "draw_phantom", "open_sources", "parse_option"]

OPTION_TYPES: dict[str, type[int] | type[float]] = {
    "num_train": int,
    "num_test": int,
    "num_validation": int,
    "seed": int,
    "difficulty": float,
}
ABOUT = SourceAbout(
    name=SOURCE_NAME,
    title="procedural phantoms: chest radiographs, abdominal CT, fundus photographs, blood smears",
    license=LICENSE,
    access="part of this package, drawn when asked for; drawings, not medical images",
    layout="nothing: it takes no root",
    layout_url="docs/corpus.md",
    options={
        "num_train": "number of training images (default: 6000)",
        "num_test": "number of test images (default: 1000)",
        "num_validation": "number of validation images (default: 0)",
        "seed": "of all drawings (default: 0)",
        "difficulty": "from 0, clear, to 1, hard to see (default: 0.4)",
    },
)


FINDINGS = frozenset(finding for modality in MODALITIES for finding in modality.findings)


@dataclass(frozen=True)
class PhantomSource:
    """Phantoms of four modalities; see `draw_phantom`. A longer split begins with the shorter one."""

    num_train: int = 6000
    num_test: int = 1000
    seed: int = 0
    difficulty: float = 0.4
    num_validation: int = 0

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_test, self.num_validation) < 0:
            raise ValueError(
                f"Phantom source has num_train={self.num_train}, num_test={self.num_test} and "
                f"num_validation={self.num_validation}; each must be at least 0. Use 0 to leave a split out."
            )
        if self.seed < 0 or not 0.0 <= self.difficulty <= 1.0:
            raise ValueError(
                f"Phantom source has seed={self.seed} and difficulty={self.difficulty}; the seed must be at least 0 "
                "and the difficulty lie in [0, 1]. Use 0 and 0.4 for the default corpus."
            )

    @property
    def name(self) -> str:
        """Name of the source."""
        return SOURCE_NAME

    @property
    def license(self) -> str:
        """SPDX name of the licence of the generated data."""
        return LICENSE

    @property
    def revision(self) -> str:
        """What decides the pixels and texts: version, seed, difficulty; never the number of records."""
        return phantom_revision(self.seed, self.difficulty)

    @property
    def looked_for(self) -> frozenset[str]:
        """All findings that can be drawn: every one that is drawn is annotated."""
        return FINDINGS

    def looked_for_in(self, record: StudyRecord) -> frozenset[str]:
        """The same."""
        return self.looked_for

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one record."""
        return tuple(split for split, number in self._numbers().items() if number > 0)

    def num_records(self, split: str) -> int:
        """Number of records of `split`; ValueError for a split that this source lacks."""
        numbers = self._numbers()
        if split not in numbers:
            raise ValueError(
                f"Source {SOURCE_NAME!r} has no split {split!r}; it has {', '.join(numbers)}. Name one of these."
            )
        return numbers[split]

    def _numbers(self) -> dict[str, int]:
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Records [start, stop) of `split`, drawn one by one; `stop` beyond the end means the end."""
        end = self.num_records(split) if stop is None else min(stop, self.num_records(split))
        return (draw_phantom(self.seed, index, self.difficulty, split) for index in range(start, end))

    def read(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord | BadItem]:
        """The same records: no drawing is bad."""
        return self.records(split, start, stop)

    def bad_items(self) -> Iterator[BadItem]:
        """None."""
        return iter(())


def open_sources(root: str | None = None, *, index_folder: Path | None = None, **options: str) -> list[Source]:
    """The phantom source with options given as texts; it reads no root and keeps no index.

    Raises:
        ValueError: a root, or a bad option.
    """
    if root is not None:
        raise ValueError(f"Source {SOURCE_NAME!r} is drawn and takes no root, and root is {root!r}. Leave it out.")
    return [PhantomSource(**{name: parse_option(name, value) for name, value in options.items()})]


def parse_option(name: str, text: str) -> int | float:
    """The number that the option `name` gives; all options are non-negative, and difficulty is at most 1."""
    if name not in OPTION_TYPES:
        raise ValueError(f"{name} is no option of phantom; the options are {', '.join(OPTION_TYPES)}. Correct it.")
    try:
        number = OPTION_TYPES[name](text)
    except ValueError:
        number = -1
    if not 0 <= number <= (1 if name == "difficulty" else float("inf")):
        rule = "a number from 0 to 1" if name == "difficulty" else "a whole number from 0"
        raise ValueError(f"{name} is {text!r}; it must be {rule}. Correct it.")
    return number
