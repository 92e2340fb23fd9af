"""A built corpus read as a source of records, for everything that takes sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.records import MaskRle, QARecord, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import BadItem

_REGION_FIELDS = tuple(name for name in RegionRecord.__dataclass_fields__ if name not in ("box", "mask_rle"))
_STUDY_FIELDS = tuple(
    name for name in StudyRecord.__dataclass_fields__ if name not in ("image", "regions", "qa", "window")
)
_OTHER_COLUMNS = ("image", "regions", "qa", "window")


class CorpusSource:
    """The records of a built corpus in the order of its rows; it meets the protocol `Source`."""

    def __init__(self, folder: str | Path) -> None:
        self._corpus = BuiltCorpus(folder)

    @property
    def name(self) -> str:
        """Name of the corpus."""
        return self._corpus.revision.rpartition("@")[0]

    @property
    def license(self) -> str:
        """The licences of its sources, each once; that of an image stands in its record."""
        return ", ".join(dict.fromkeys(source["license"] for source in self._corpus.manifest["sources"]))

    @property
    def revision(self) -> str:
        """The first 12 hex digits of the sha256 of its manifest."""
        return self._corpus.revision.rpartition("@")[2]

    @property
    def looked_for(self) -> frozenset[str]:
        """None: of a built corpus it is not known, as it may mix sources."""
        return frozenset()

    def looked_for_in(self, record: StudyRecord) -> frozenset[str]:
        """None."""
        return self.looked_for

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one record."""
        return self._corpus.splits()

    def num_records(self, split: str) -> int:
        """Number of records of `split`; ValueError for a split that this corpus lacks."""
        return self._corpus.num_images(split)

    def records(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord]:
        """Checked records [start, stop) of `split`, images as bytes; ValueError at the first bad one."""
        for row in self._corpus.rows(split, start, stop, columns=(*_STUDY_FIELDS, *_OTHER_COLUMNS)):
            record = record_from_example(row)
            record.check()
            yield record

    def read(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[StudyRecord | BadItem]:
        """The same records, a bad one as a `BadItem`; only a corpus that was changed after it was built has any."""
        for row in self._corpus.rows(split, start, stop, columns=(*_STUDY_FIELDS, *_OTHER_COLUMNS)):
            try:
                record = record_from_example(row)
                record.check()
            except ValueError as error:
                yield BadItem(self.name, str(row["image_id"]), str(error))
            else:
                yield record

    def bad_items(self) -> Iterator[BadItem]:
        """None: bad items never enter a corpus."""
        return iter(())


def record_from_example(example: Mapping[str, Any]) -> StudyRecord:
    """The record of which `example_from_record` makes `example`; the texts, negatives and keys are not part of it."""
    image, window = example["image"], example["window"]
    return StudyRecord(
        image=image["bytes"] or image["path"],
        regions=tuple(_region(region) for region in example["regions"]),
        qa=tuple(QARecord(pair["question"], pair["answer"], pair["kind"]) for pair in example["qa"]),
        window=None if window is None else (window[0], window[1]),
        **{name: example[name] for name in _STUDY_FIELDS},
    )


def _region(region: Mapping[str, Any]) -> RegionRecord:
    x0, y0, x1, y1 = region["box"]
    mask = region["mask"]
    return RegionRecord(
        box=(x0, y0, x1, y1),
        mask_rle=None if mask is None else MaskRle(tuple(mask["size"]), tuple(mask["counts"])),
        **{name: region[name] for name in _REGION_FIELDS},
    )
