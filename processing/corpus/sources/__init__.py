"""What every source of the corpus offers; one file of this folder per source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from regionmed_clip.processing.corpus.records import StudyRecord


@dataclass(frozen=True, slots=True)
class SourceAbout:
    """What a user must know of a kind of source before opening it; `regionmed-corpus list` prints it.

    Attributes:
        name: the name on the command line; that of the module in this folder.
        title: the name and release of the data set, or of the format.
        license: short name of the licence of images and annotations; "as the folder says" for generic formats.
        access: how a person gets the data, with the address.
        layout: what the folder given as root must hold.
        layout_url: a public loader, manual or paper that documents this layout; None where none was found, and then
            the layout counts as unverified.
        options: option of the source -> what it means.
    """

    name: str
    title: str
    license: str
    access: str
    layout: str
    layout_url: str | None
    options: dict[str, str]

    @property
    def is_verified(self) -> bool:
        """Whether a public document describes the layout that this source reads."""
        return self.layout_url is not None


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item of a source that gives no record: its key within the source, and why."""

    source: str
    key: str
    reason: str


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

    @property
    def looked_for(self) -> frozenset[str]:
        """Findings that the annotators of the source looked for in every image.

        Empty where that is not known, and then no text puts one finding in the place of another.
        """
        ...

    def looked_for_in(self, record: StudyRecord) -> frozenset[str]:
        """Those of `looked_for` that may be called absent from the image of `record` where it does not state them;
        fewer than all where the source knows of a doubt that the record leaves out."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one record, in the order train, validation, test."""
        ...

    def num_records(self, split: str) -> int:
        """Number of items of `split`; ValueError for a split that this source lacks."""
        ...

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Checked records [start, stop) of `split`, always in the same order; the images are not held in memory.

        Raises:
            ValueError: an item is bad; the message names it, the value, the rule and the way out.
        """
        ...

    def read(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord | BadItem]:
        """The same items, a bad one as a `BadItem` in its place."""
        ...

    def bad_items(self) -> Iterator[BadItem]:
        """Items so broken that they belong to no split."""
        ...
