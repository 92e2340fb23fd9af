"""Rows on their way from the scan to the shards: written in the order of the scan, read back in any order.

A chunk's rows lie in an Arrow file without their images, in small batches, so that one row can be read for the price of
a few; images that were drawn or converted lie one after the other in a file beside it, images of sources stay where
they are. Everything is read by plain file reads: a memory map would count as memory that grows with the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROWS_OF_BATCH = 16
_OPEN_FILES = 48
_EXTENT = (pa.field("image_path", pa.string()), pa.field("offset", pa.int64()), pa.field("num_bytes", pa.int64()))


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses: a killed build may have left one that is still writing."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def images_path(rows_path: Path) -> Path:
    """The file of the images that belong to a file of rows."""
    return rows_path.with_suffix(".images")


class RowWriter:
    """Writes the rows of a chunk; the files get their names when it is closed, that of the rows last.

    Args:
        path: of the rows.
        schema: of a shard.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, staged_schema(schema)
        self._rows_file = temporary_name(path).open("wb")
        self._images_file = temporary_name(images_path(path)).open("wb")
        self._writer = pa.ipc.new_file(self._rows_file, self._schema)
        self._batch: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Nothing; the row is written with those beside it, its image at once."""
        content, offset = row["image"]["bytes"], self._images_file.tell()
        if content is not None:
            self._images_file.write(content)
        extent = {"offset": offset, "num_bytes": len(content or b"")}
        self._batch.append({**row, **extent, "image_path": row["image"]["path"] if content is None else None})
        if len(self._batch) == ROWS_OF_BATCH:
            self._write_batch()

    def close(self) -> None:
        """Nothing; the files are whole from now on."""
        self._write_batch()
        self._writer.close()
        self._rows_file.close()
        self._images_file.close()
        temporary_name(images_path(self._path)).rename(images_path(self._path))
        temporary_name(self._path).rename(self._path)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._rows_file.close()
            self._images_file.close()

    def _write_batch(self) -> None:
        if self._batch:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._batch, self._schema))
            self._batch = []


class StagedRows:
    """The staged rows of all chunks by their position in the scan.

    Args:
        paths: the files of rows in the order of the chunks.
        starts: (chunks + 1,) the position of the first row of every chunk, and the number of rows.
    """

    def __init__(self, paths: Sequence[Path], starts: np.ndarray) -> None:
        self._paths, self._starts = paths, starts
        self._open = lru_cache(maxsize=_OPEN_FILES)(_open_rows)  # not beyond this object: a path may get a new file

    def take(self, positions: np.ndarray) -> pa.Table:
        """The rows at `positions`, in that order, without images."""
        chunks = np.searchsorted(self._starts, positions, "right") - 1
        offsets = positions - self._starts[chunks]
        batches = []
        for chunk, offset in zip(chunks.tolist(), offsets.tolist()):
            batch = self._open(self._paths[chunk]).get_batch(offset // ROWS_OF_BATCH)
            batches.append(batch.slice(offset % ROWS_OF_BATCH, 1))
        return pa.Table.from_batches(batches).combine_chunks()  # one chunk for all: Parquet writes it twice as fast

    def images(self, positions: np.ndarray, rows: pa.Table) -> list[bytes]:
        """The encoded images of the rows that `take` gave for `positions`."""
        chunks = np.searchsorted(self._starts, positions, "right") - 1
        names = ("image_path", "offset", "num_bytes")
        extents = zip(chunks.tolist(), *(rows.column(name).to_pylist() for name in names))
        return [
            _read_part(images_path(self._paths[chunk]), offset, num_bytes) if path is None else Path(path).read_bytes()
            for chunk, path, offset, num_bytes in extents
        ]


def staged_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of staged rows: that of a shard, with where the image lies in the place of the image."""
    return pa.schema([*(field for field in schema if field.name != "image"), *_EXTENT])


def _open_rows(path: Path) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.OSFile(str(path), "rb"))


def _read_part(path: Path, offset: int, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(num_bytes)
