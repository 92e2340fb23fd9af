"""A split of a built corpus as training samples, decoded when asked for: nothing is written, little kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.fingerprints import COLUMNS as FINGERPRINT_COLUMNS
from regionmed_clip.processing.corpus.fingerprints import TYPE as FINGERPRINT_TYPE
from regionmed_clip.processing.corpus.fingerprints import fingerprint
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .frame_store import StoredSample, example_from_sample, is_caption_bare, sample_from_example
from .sample_order import BlockOrder

_IN_REGION = "regions.list.element."  # as Parquet names the leaves of a list of dicts
STUDY_COLUMNS = ("modality", "view", "anatomy")
SAMPLE_COLUMNS = (
    *("image.bytes", "image_id", "window", "source", "caption", "caption_key", *STUDY_COLUMNS),
    *(_IN_REGION + name for name in ("box", "description", "key", "finding", "is_negated")),
    *(_IN_REGION + name for name in ("anatomy", "laterality", "place", "size", "severity", "certainty")),
    *("negatives.list.element." + name for name in ("region", "text", "key", "changed")),
)
TEXT_COLUMNS = ("caption", f"{_IN_REGION}description")
KEY_COLUMNS = ("caption", "caption_key", *STUDY_COLUMNS, f"{_IN_REGION}key")
CACHE_BYTES = 256 << 20  # of row groups kept by one process


class ShardStore:
    """Random access to the rows of a split of a built corpus, in the order of its files.

    Whole row groups are read and the latest kept, so that neighbours cost one read. No file stays open: the store may
    be handed to worker processes.

    Args:
        folder: a built corpus.
        split: its split.
        image_processor: brings the images into the model's frame.

    Raises:
        ValueError: no built corpus, no such split, or a shard with another number of rows than the manifest says.
    """

    decodes_images = True

    def __init__(self, folder: str | Path, split: str, image_processor: RegionMedClipImageProcessor):
        self._corpus = BuiltCorpus(folder)
        self._split = split
        self._image_processor = image_processor
        self._block_sizes = _row_group_sizes(self._corpus, split)
        self._block_ends = np.cumsum(self._block_sizes)
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()  # by block, the latest used last

    def __len__(self) -> int:
        return self._corpus.num_images(self._split)

    def samples(self, indices: Sequence[int] | np.ndarray) -> list[StoredSample]:
        """The samples at `indices`, in that order; ValueError names the image that cannot be decoded."""
        wanted = np.asarray(indices, dtype=np.int64)
        blocks = np.searchsorted(self._block_ends, wanted, side="right")
        rows: dict[int, dict[str, Any]] = {}  # by place in `wanted`
        for block in dict.fromkeys(blocks.tolist()):
            places = np.flatnonzero(blocks == block)
            first = self._block_ends[block] - self._block_sizes[block]
            table = self._table(block).take(pa.array(wanted[places] - first))
            rows.update(zip(places.tolist(), table.to_pylist()))
        return [sample_from_example(rows[place], self._image_processor) for place in range(len(wanted))]

    def order(self, seed: int) -> BlockOrder:
        """The order of the files, then blocks of them in fresh orders."""
        return BlockOrder(self._block_sizes, seed)

    def examples(self) -> Iterator[dict[str, Any]]:
        """The samples as examples of the corpus; see `example_from_sample`."""
        for index in range(len(self)):
            yield example_from_sample(self.samples([index])[0])

    def text_keys(self) -> Iterator[tuple[int, Sequence[int]]]:
        """(key of the caption, keys of the regions' texts) of every sample, in order; images are not touched."""
        for row in self._corpus.rows(self._split, columns=KEY_COLUMNS):
            caption_key = NO_TEXT_KEY if is_caption_bare(row) else row["caption_key"]
            yield caption_key, [region["key"] for region in row["regions"]]

    def fingerprints(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(fingerprints (N,) of `fingerprints.TYPE`, their sources) of all samples; images are not touched."""
        for table in self._corpus.tables(self._split, columns=FINGERPRINT_COLUMNS):
            rows = table.to_pylist()
            yield np.array([fingerprint(row) for row in rows], dtype=FINGERPRINT_TYPE), [row["source"] for row in rows]

    def texts(self) -> Iterator[str]:
        """Every caption and region text of the split, in order, with repetitions; images are not touched."""
        for row in self._corpus.rows(self._split, columns=TEXT_COLUMNS):
            yield row["caption"]
            yield from (region["description"] for region in row["regions"])

    def _table(self, block: int) -> pa.Table:
        """The rows of a row group, from memory if it was among the latest."""
        if block not in self._tables:
            stop = int(self._block_ends[block])
            start = stop - self._block_sizes[block]
            (self._tables[block],) = self._corpus.tables(self._split, start, stop, SAMPLE_COLUMNS)
            while len(self._tables) > 1 and sum(table.nbytes for table in self._tables.values()) > CACHE_BYTES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(block)
        return self._tables[block]


def _row_group_sizes(corpus: BuiltCorpus, split: str) -> list[int]:
    """Numbers of rows of all row groups of a split, in order, read from the ends of its files."""
    sizes: list[int] = []
    for path in corpus.shard_paths(split):
        footer = pq.read_metadata(path)
        sizes += [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if sum(sizes) != corpus.num_images(split):
        raise ValueError(
            f"{corpus.folder}: the shards of {split!r} hold {sum(sizes)} rows and the manifest says "
            f"{corpus.num_images(split)}; they must agree. Run `regionmed-corpus check`, or build the corpus again."
        )
    return [size for size in sizes if size]
