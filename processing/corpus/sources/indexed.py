"""The base of the sources that read a data set's own folder: index its annotation rows once, make records on demand."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from regionmed_clip.processing.corpus.captions import describe_region, write_caption, write_findings, write_impression
from regionmed_clip.processing.corpus.records import QARecord, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import BadItem, Source, SourceAbout
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, ItemIndex, Row
from regionmed_clip.processing.corpus.sources.source_files import ImageFile
from regionmed_clip.processing.corpus.splits import split_by_hash


class IndexedSource(ABC):
    """A source given by a folder; a subclass says what its rows are and how the rows of one image become a record.

    Args:
        root: the folder, laid out as `about.layout` says.
        index_path: where the index of the rows is kept, or is found again; None: a temporary file.

    Raises:
        ValueError: `root` is no folder or lacks what every such folder has. A bad row or image is no error here: it
            becomes a `BadItem`.
    """

    about: ClassVar[SourceAbout]

    def __init__(self, root: str | Path, *, index_path: Path | None = None) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise ValueError(
                f"{self.about.name}: {str(root)!r} is no folder; its root holds {self.about.layout}. "
                f"Check the path, or get the data: {self.about.access}"
            )
        self.check_layout()
        self._index = ItemIndex(index_path)
        if not self._index.is_written():
            self._index.write(self.rows(), self._place, self._find_notes)
        self.revision = self._index.note("revision")
        self._looked_for = frozenset(self._index.note("looked_for"))

    # What a subclass gives.

    @abstractmethod
    def check_layout(self) -> None:
        """Nothing; raises ValueError where a file or folder that every such root has is missing."""

    @abstractmethod
    def rows(self) -> Iterator[Row | BadRow]:
        """Every annotation row with the key of its image; an image without annotation gives a row too.

        The key is the image's name within the source: unique, stable, without personal data. The order must not depend
        on the file system: sort what a folder lists.
        """

    @abstractmethod
    def record(self, item: Item) -> StudyRecord:
        """The record of an image, boxes in original pixels; ValueError where something is wrong with it."""

    def patient_of(self, item: Item) -> str | None:
        """The patient of an item as the source names it, or None."""
        return None

    def split_of(self, item: Item) -> str | None:
        """The split that the source itself gives the item; None lets a hash of the patient decide."""
        return None

    @abstractmethod
    def find_revision(self) -> str:
        """The release and a short hash of the annotation files: see `source_files.hash_of_files`."""

    def find_looked_for(self) -> Iterable[str]:
        """Findings that the annotators looked for in every image; asked for once, when all of `rows` are indexed."""
        return ()

    # What every source offers.

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.about.name

    @property
    def license(self) -> str:
        """Licence of the source."""
        return self.about.license

    @property
    def looked_for(self) -> frozenset[str]:
        """Findings that the annotators looked for in every image: what `find_looked_for` gave while indexing."""
        return self._looked_for

    def looked_for_in(self, record: StudyRecord) -> frozenset[str]:
        """Those of `looked_for` that may be called absent from the image where the record does not state them: all."""
        return self.looked_for

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one item, in the order train, validation, test."""
        return tuple(self._index.num_items())

    def num_records(self, split: str) -> int:
        """Number of items of `split`; ValueError for a split that this source lacks."""
        numbers = self._index.num_items()
        if split not in numbers:
            raise ValueError(
                f"{self.name} has no split {split!r}; it has {', '.join(numbers) or 'none'}. Ask for one of these."
            )
        return numbers[split]

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Checked records [start, stop) of `split`; ValueError at the first bad item."""
        for record in self.read(split, start, stop):
            if isinstance(record, BadItem):
                raise ValueError(f"{self.name}: {record.key}: {record.reason}")
            yield record

    def read(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord | BadItem]:
        """Checked records [start, stop) of `split`, a bad item as a `BadItem`."""
        num_records = self.num_records(split)
        for item in self._index.items(split, start, num_records if stop is None else min(stop, num_records)):
            try:
                record = self.record(item)
                record.check()
            except (ValueError, OverflowError) as error:  # the latter of a whole number that no float holds
                yield BadItem(self.name, item.key, str(error))
            else:
                yield record

    def has_changed(self) -> bool:
        """Whether the annotation files differ from those that were indexed."""
        return self.find_revision() != self._index.note("revision")

    def bad_items(self) -> Iterator[BadItem]:
        """Items whose rows cannot be read."""
        return (BadItem(self.name, bad.key, bad.reason) for bad in self._index.bad())

    def study(
        self,
        item: Item,
        image: ImageFile,
        *,
        modality: str,
        anatomy: str | None = None,
        view: str | None = None,
        regions: Sequence[RegionRecord] = (),
        qa: Iterable[QARecord] = (),
        caption: str | None = None,
        findings: str | None = None,
        impression: str | None = None,
        is_normal: bool = False,
    ) -> StudyRecord:
        """The record of `item`; texts left None, and empty region descriptions, are written by template.

        Args:
            item: the item as the index gave it.
            image: its image file, or pixels made from one.
            modality, anatomy, view: as in StudyRecord.
            regions: boxes in original pixels.
            qa: questions and answers.
            caption, findings, impression: texts of the source itself.
            is_normal: the source says that nothing abnormal is seen (an image without boxes alone does not say so).
        """
        described = tuple(
            region if region.description else replace(region, description=describe_region(region)) for region in regions
        )
        has_own_text = bool(caption or findings or impression)
        written = write_caption(modality, view, described, anatomy=anatomy, is_normal=is_normal)
        return StudyRecord(
            image_id=f"{self.name}/{item.key}",
            image=image.content,
            width=image.width,
            height=image.height,
            modality=modality,
            anatomy=anatomy,
            view=view,
            caption=caption or impression or findings or written,
            findings=(findings or "") if has_own_text else write_findings(described, is_normal=is_normal),
            impression=(impression or "") if has_own_text else write_impression(described, is_normal=is_normal),
            regions=described,
            qa=tuple(qa),
            patient_id=item.patient_id,
            split=item.split,
            source=self.name,
            source_revision=self.revision,
            license=self.license,
            sha256=image.sha256,
            text_origin="source" if has_own_text else "template",
            window=image.window,
        )

    def _find_notes(self) -> dict[str, str | list[str]]:
        """What the index keeps beside the rows."""
        return {"revision": self.find_revision(), "looked_for": sorted(set(self.find_looked_for()))}

    def _place(self, item: Item) -> tuple[str, str | None]:
        """Split and patient of an item: the source's own split, else one by the hash of its patient."""
        patient_id = self.patient_of(item)
        return self.split_of(item) or split_by_hash(self.name, patient_id or item.key), patient_id

    @classmethod
    def open(cls, root: str | Path, *, index_folder: Path | None = None, **options: str) -> list[Source]:
        """The source at `root` as a list of one; its index lies in `index_folder`, by root and options.

        Options change the records, so they enter the revision too, as a hash: they may name folders of this machine.
        """
        chosen = json.dumps(sorted(options.items()))
        mark = hashlib.sha256(f"{Path(root).resolve()} {chosen}".encode()).hexdigest()[:12]
        index_path = None if index_folder is None else index_folder / f"{cls.about.name}-{mark}.sqlite"
        source = cls(root, index_path=index_path, **options)
        if options:
            source.revision += f"+options-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}"
        return [source]
