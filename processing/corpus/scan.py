"""The first pass of a build: items of the sources -> staged rows, an index of their hashes, and the bad ones.

A chunk of items is the unit of work. Its files are written under temporary names and renamed, the index last: a chunk
with an index is done. All of it lies in the build's work folder and disappears with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.perceptual_hash import NUM_WORDS, hash_of_bytes, hex_of_hash
from regionmed_clip.processing.corpus.records import SPLITS, StudyRecord
from regionmed_clip.processing.corpus.sources import BadItem, Source
from regionmed_clip.processing.corpus.splits import patient_key
from regionmed_clip.processing.image_errors import DECODE_ERRORS

ITEMS_OF_CHUNK = 512
_ROWS_OF_BATCH = 32  # held in memory before they are written
INDEX_TYPE = np.dtype(
    [
        ("order", "<u8"),  # hash of seed and image id: its rank is the place in the shuffled corpus
        ("sha256_start", "<u8"),  # its first 16 hex digits, to find candidates
        ("sha256", "S64"),  # all hex digits, to confirm them
        ("patient", "<u8"),  # hash of source and patient; 0 where unknown
        ("phash", "<u8", (NUM_WORDS,)),
        ("num_bytes", "<u4"),
        ("num_regions", "<u4"),
        ("num_questions", "<u4"),
        ("source", "<u2"),
        ("split", "u1"),  # index in SPLITS
    ]
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items [start, stop) of a split of the source with this index."""

    number: int
    source: int
    split: str
    start: int
    stop: int


def chunks_of(sources: Sequence[Source]) -> Iterator[Chunk]:
    """The chunks of all sources, splits and items in their order."""
    number = 0
    for index, source in enumerate(sources):
        for split in source.splits():
            num_records = source.num_records(split)
            for start in range(0, num_records, ITEMS_OF_CHUNK):
                yield Chunk(number, index, split, start, min(start + ITEMS_OF_CHUNK, num_records))
                number += 1


def rows_path(work: Path, number: int) -> Path:
    """The staged rows of a chunk, an Arrow file."""
    return work / f"scan/{number:06d}.arrow"


def index_path(work: Path, number: int) -> Path:
    """The index of a chunk, an array of INDEX_TYPE; it is there when the chunk is done."""
    return work / f"scan/{number:06d}.npy"


def bad_path(work: Path, number: int) -> Path:
    """The bad items of a chunk, one JSON object a line."""
    return work / f"scan/{number:06d}.bad.jsonl"


class RowWriter:
    """Writes rows to an Arrow file, a few at a time; the file gets its name when it is closed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._temporary = temporary_name(path)
        self._file = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._batch: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Nothing; the row is written with those beside it."""
        self._batch.append(row)
        if len(self._batch) == _ROWS_OF_BATCH:
            self._write_batch()

    def close(self) -> None:
        """Nothing; the file is whole from now on."""
        self._write_batch()
        self._writer.close()
        self._file.close()
        self._temporary.rename(self._path)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _write_batch(self) -> None:
        if self._batch:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._batch, self._schema))
            self._batch = []


def scan_chunk(work: Path, source: Source, chunk: Chunk, seed: int, schema: pa.Schema) -> int:
    """Number of items of the chunk, after staging their rows and writing their index and the bad ones.

    Images that are files are staged by their path alone, images made from something else by their bytes.
    """
    index: list[tuple[Any, ...]] = []
    bad: list[BadItem] = []
    with RowWriter(rows_path(work, chunk.number), schema) as writer:
        for item in source.read(chunk.split, chunk.start, chunk.stop):
            staged = item if isinstance(item, BadItem) else _stage(item, chunk.source, seed)
            if isinstance(staged, BadItem):
                bad.append(staged)
                continue
            row, entry = staged
            index.append(entry)
            writer.add(row)
    write_lines(bad_path(work, chunk.number), bad)
    temporary = temporary_name(index_path(work, chunk.number))
    with temporary.open("wb") as file:
        np.save(file, np.array(index, dtype=INDEX_TYPE), allow_pickle=False)
    temporary.rename(index_path(work, chunk.number))
    return chunk.stop - chunk.start


def write_lines(path: Path, bad: Sequence[BadItem]) -> None:
    """Nothing; writes bad items as JSON lines, whole or not at all."""
    temporary = temporary_name(path)
    lines = (json.dumps({"source": item.source, "item": item.key, "reason": item.reason}) + "\n" for item in bad)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.rename(path)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses: a killed build may have left one that is still writing."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def hash_64(*parts: str) -> int:
    """63 bits of the blake2b of the parts, never 0, which stands for "unknown"."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def _stage(record: StudyRecord, source: int, seed: int) -> tuple[dict[str, Any], tuple[Any, ...]] | BadItem:
    """The row and the index entry of a record; a BadItem where its image cannot be decoded."""
    content = Path(record.image).read_bytes() if isinstance(record.image, str) else record.image
    try:
        phash = hash_of_bytes(content)
    except DECODE_ERRORS as error:
        key = record.image_id.partition("/")[2] or record.image_id
        return BadItem(record.source, key, f"the image cannot be decoded ({error}); replace it or drop its row.")
    row = example_from_record(record, seed=seed, phash=hex_of_hash(phash))
    patient = hash_64("patient", patient_key(record.source, record.patient_id)) if record.patient_id else 0
    entry = (
        hash_64("order", str(seed), record.image_id),
        int(record.sha256[:16], 16),
        record.sha256.encode(),
        patient,
        phash,
        len(content),
        len(record.regions),
        len(record.qa),
        source,
        SPLITS.index(record.split),
    )
    return row, entry
