"""The rows of an index: every image of a split and every region of it, with what the corpus says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np

from regionmed_clip.eval.tasks.embedding import batched, embed_batch
from regionmed_clip.eval.tasks.region_readings import TRAINED_READING
from regionmed_clip.processing.corpus.captions import describe_region
from regionmed_clip.processing.corpus.data_spec import data_revision, open_sources
from regionmed_clip.processing.corpus.records import StudyRecord

IMAGES, REGIONS = "images", "regions"
LEVELS = (IMAGES, REGIONS)
EMBEDDING = "embedding"
_OF_IMAGE = ("image_id", "source", "modality", "license", "patient_id", "sha256")
_OF_REGION = ("finding", "anatomy", "laterality", "place", "size", "severity")


def features_of(level: str, width: int) -> datasets.Features:
    """The columns of the rows of a level, embeddings `width` float32 numbers of unit length."""
    text, number = datasets.Value("string"), datasets.Value("int64")
    shared = dict.fromkeys(_OF_IMAGE, text)
    embedding = datasets.List(datasets.Value("float32"), length=width)
    if level == IMAGES:
        own = {"width": number, "height": number, "caption": text}
    else:
        own = {"image_row": number, "region": number, "box": datasets.List(datasets.Value("float32"), length=4)}
        own |= {**dict.fromkeys(_OF_REGION, text), "is_negated": datasets.Value("bool"), "description": text}
    return datasets.Features({**shared, **own, EMBEDDING: embedding})


class CorpusImages:
    """The images of one split of a data spec by position: the sources one after the other, each in its own order.

    Attributes:
        revision: of the data. split: its name. num_images: of that split, at least 1.

    Raises:
        ValueError: a bad spec or folder, a split that no source has, a source with an item that cannot be read.
    """

    def __init__(self, data: str, split: str):
        sources = open_sources(data)
        self._sources = [source for source in sources if split in source.splits()]
        self.num_images = sum(source.num_records(split) for source in self._sources)
        if not self.num_images:
            known = "; ".join(f"{source.name}: {', '.join(source.splits()) or 'none'}" for source in sources)
            raise ValueError(
                f"data {data!r} has no image in split {split!r}; an index needs at least one. It has {known}. Give "
                "--split one of these."
            )
        for bad in (item for source in self._sources for item in source.bad_items()):
            raise ValueError(f"{bad.source}: {bad.key}: {bad.reason} A built corpus leaves bad items out.")
        self.revision, self.split = data_revision(data), split

    def records(self, start: int, stop: int) -> Iterator[StudyRecord]:
        """The records at positions [start, stop)."""
        first = 0  # position of the source's first record
        for source in self._sources:
            num_records = source.num_records(self.split)
            low, high = max(start - first, 0), min(stop - first, num_records)
            if low < high:
                yield from source.records(self.split, low, high)
            first += num_records


def embed_rows(
    model: Any, processor: Any, records: Iterator[StudyRecord], first_row: int, *, batch_size: int, device: Any
) -> dict[str, list[dict[str, Any]]]:
    """Level -> its rows, with embeddings, of records whose first is the image of row `first_row`.

    Regions that lie outside the model's frame, which only geometry "source" can do, have no row.
    """
    rows: dict[str, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    for batch in batched(records, batch_size):
        examples = [_as_example(record) for record in batch]
        computed = embed_batch(model, processor, examples, readings=(TRAINED_READING,), device=device)
        numbered = [(first_row + len(rows[IMAGES]) + number, record) for number, record in enumerate(batch)]
        seen = _visible_regions(numbered, computed.is_inside)
        rows[IMAGES] += [
            _image_row(record, embed) for (_, record), embed in zip(numbered, computed.image_embeds, strict=True)
        ]
        rows[REGIONS] += [
            _region_row(*region, embed)
            for region, embed in zip(seen, computed.region_embeds[TRAINED_READING], strict=True)
        ]
    return rows


def _visible_regions(
    numbered: Sequence[tuple[int, StudyRecord]], is_inside: np.ndarray
) -> list[tuple[int, StudyRecord, int]]:
    """(row of the image, its record, which of its regions) of the regions that `is_inside` (A,) bool keeps."""
    every = [(row, record, number) for row, record in numbered for number in range(len(record.regions))]
    return [region for region, keep in zip(every, is_inside, strict=True) if keep]


def _as_example(record: StudyRecord) -> dict[str, Any]:
    """What `embed_batch` looks at."""
    regions = [{"box": region.box} for region in record.regions]
    return {"image_id": record.image_id, "image": record.image, "window": record.window, "regions": regions}


def _image_row(record: StudyRecord, embed: np.ndarray) -> dict[str, Any]:
    """A row of level "images"."""
    own = {"width": record.width, "height": record.height, "caption": record.caption, EMBEDDING: embed}
    return {name: getattr(record, name) for name in _OF_IMAGE} | own


def _region_row(image_row: int, record: StudyRecord, number: int, embed: np.ndarray) -> dict[str, Any]:
    """A row of level "regions": what is said of a region of the image, and its box in original pixels."""
    region = record.regions[number]
    return {
        **{name: getattr(record, name) for name in _OF_IMAGE},
        **{name: getattr(region, name) for name in _OF_REGION},
        "image_row": image_row,
        "region": number,
        "box": list(region.box),
        "is_negated": region.is_negated,
        "description": region.description or describe_region(region),
        EMBEDDING: embed,
    }
