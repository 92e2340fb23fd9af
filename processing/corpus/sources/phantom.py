"""The embedded source of procedural phantoms: nothing is read from disk, every record is drawn when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regionmed_clip.processing.corpus.phantoms.study import (
    LICENSE,
    SOURCE_NAME,
    draw_phantom,
    phantom_revision,
)
from regionmed_clip.processing.corpus.records import StudyRecord

__all__ = ["PhantomSource", "draw_phantom"]


@dataclass(frozen=True)
class PhantomSource:
    """Phantoms of four modalities; see `draw_phantom`. A longer split begins with the shorter one."""

    num_train: int = 6000
    num_test: int = 1000
    seed: int = 0
    difficulty: float = 0.4

    def __post_init__(self) -> None:
        if self.num_train < 0 or self.num_test < 0:
            raise ValueError(
                f"Phantom source has num_train={self.num_train} and num_test={self.num_test}; both must be at least 0. "
                "Use 0 to leave a split out."
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

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one record."""
        return tuple(split for split in ("train", "test") if self.num_records(split) > 0)

    def num_records(self, split: str) -> int:
        """Number of records of `split`; ValueError for a split that this source lacks."""
        numbers = {"train": self.num_train, "test": self.num_test}
        if split not in numbers:
            raise ValueError(
                f"Source {SOURCE_NAME!r} has no split {split!r}; it has train and test. Name one of these."
            )
        return numbers[split]

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Records [start, stop) of `split`, drawn one by one; `stop` beyond the end means the end."""
        end = self.num_records(split) if stop is None else min(stop, self.num_records(split))
        return (draw_phantom(self.seed, index, self.difficulty, split) for index in range(start, end))
