"""What every source of the corpus offers; one file of this folder per source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from regionmed_clip.processing.corpus.records import StudyRecord


class Source(Protocol):
    """A named set of study records with splits, readable from any position in a fixed order."""

    @property
    def name(self) -> str:
        """Name of the source, unique within a corpus."""
        ...

    @property
    def license(self) -> str:
        """Short name of the licence of its images and annotations."""
        ...

    @property
    def revision(self) -> str:
        """What decides the content of its records, without their number for sources that are drawn."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one record, in the order train, validation, test."""
        ...

    def num_records(self, split: str) -> int:
        """Number of records of `split`; ValueError for a split that this source lacks."""
        ...

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Checked records [start, stop) of `split`, always in the same order; the images are not held in memory."""
        ...
