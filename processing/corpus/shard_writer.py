"""The second pass of a build: staged rows, in their shuffled order, to Parquet shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.manifest import write_whole
from regionmed_clip.processing.corpus.sources.source_files import sha256_of_file
from regionmed_clip.processing.corpus.staging import StagedRows, temporary_name

ROWS_OF_GROUP = 128  # a reader holds one row group; a batch of neighbours costs one read
BYTES_OF_GROUP = 16_000_000  # of images; a row group of large ones has fewer rows
ORDER_TYPE = np.dtype([("position", "<i8"), ("num_bytes", "<u4")])  # in the scan; of the encoded image
_SUFFIX_OF_START = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"II": ".tif", b"MM": ".tif", b"BM": ".bmp"}


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows [start, stop) of a split's shuffled order, and the path of their file within the corpus."""

    split: str
    path: str
    start: int
    stop: int


def plan_shards(split: str, num_images: int, num_bytes: int, shard_bytes: int) -> list[Shard]:
    """The shards of a split: of about `shard_bytes` each, equal numbers of images to within one.

    A small split is cut into up to 8 shards of at least 256 images all the same, so that processes and workers can
    share it.
    """
    number = max(-(-num_bytes // shard_bytes), min(8, -(-num_images // 256)))
    number = max(1, min(number, num_images))
    edges = [num_images * k // number for k in range(number + 1)]
    return [
        Shard(split, f"data/{split}-{k:05d}-of-{number:05d}.parquet", edges[k], edges[k + 1]) for k in range(number)
    ]


def order_path(work: Path, split: str) -> Path:
    """The images of a split in their shuffled order: (N,) of ORDER_TYPE."""
    return work / f"order-{split}.npy"


def write_shard(work: Path, out: Path, shard: Shard, staged: StagedRows, schema: pa.Schema) -> dict[str, Any]:
    """The manifest's entry of a shard, after writing its file; a shard with an entry on disk is not written again."""
    path = out / shard.path
    entry_path = work / "entries" / f"{PurePosixPath(shard.path).name}.json"
    if entry_path.is_file() and path.is_file():
        return json.loads(entry_path.read_text(encoding="utf-8"))
    order = np.load(order_path(work, shard.split), mmap_mode="r", allow_pickle=False)[shard.start : shard.stop]
    positions, num_bytes = order["position"], order["num_bytes"]
    temporary = temporary_name(work / path.name)
    options = {"compression": _compression(schema), "use_dictionary": _dictionary_columns(schema)}
    with pq.ParquetWriter(temporary, schema, **options) as writer:
        for start, stop in _groups(num_bytes):
            writer.write_table(_group_table(staged, positions[start:stop], shard.split, schema))
    entry = {
        "path": shard.path,
        "num_images": shard.stop - shard.start,
        "num_bytes": temporary.stat().st_size,
        "sha256": sha256_of_file(temporary),
    }
    temporary.rename(path)
    write_whole(entry_path, json.dumps(entry), work)
    return entry


def _groups(num_bytes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of rows for the row groups, given the sizes of their images."""
    start = total = 0
    for row, size in enumerate(num_bytes.tolist()):
        if row > start and (row - start == ROWS_OF_GROUP or total + size > BYTES_OF_GROUP):
            yield start, row
            start, total = row, 0
        total += size
    if start < len(num_bytes):
        yield start, len(num_bytes)


def _group_table(staged: StagedRows, positions: np.ndarray, split: str, schema: pa.Schema) -> pa.Table:
    """The rows of one row group with their final split and the bytes of their images."""
    table = staged.take(positions)
    contents = staged.images(positions, table)
    image_ids = table.column("image_id").to_pylist()
    for content, image_id, sha256 in zip(contents, image_ids, table.column("sha256").to_pylist(), strict=True):
        _refuse_changed(content, image_id, sha256)
    names = [_file_name(content, image_id) for content, image_id in zip(contents, image_ids, strict=True)]
    image = schema.field("image").type
    columns = {
        "image": pa.StructArray.from_arrays([pa.array(contents, pa.binary()), pa.array(names)], fields=list(image)),
        "split": pa.array([split] * len(positions), schema.field("split").type),
    }
    return pa.Table.from_arrays(
        [columns[name] if name in columns else table.column(name) for name in schema.names], schema=schema
    )


def _refuse_changed(content: bytes, image_id: str, sha256: str) -> None:
    """Nothing; ValueError where the image's file has changed since the scan."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"{image_id}: its file has changed during the build; the sources must stay as they are. "
            "Delete the output folder and build again."
        )


def _file_name(content: bytes, image_id: str) -> str:
    """A file name for the image: the last part of its id, with the suffix of its format."""
    name = PurePosixPath(image_id).name
    suffix = _SUFFIX_OF_START.get(content[:2], "")
    return name if name.lower().endswith((suffix, ".jpeg")) else name + suffix


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Codec by leaf column: images are compressed already; of the rest snappy costs half the time of zstd."""
    return {leaf: "none" if leaf == "image.bytes" else "snappy" for leaf in _leaves(schema)}


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """The leaf columns written with dictionaries: all but the images and what is never equal."""
    never_equal = ("image.bytes", "image.path", "image_id", "sha256", "phash")
    return [leaf for leaf in _leaves(schema) if leaf not in never_equal]


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of the leaf columns as Parquet names them, such as regions.list.element.finding."""
    empty = pa.BufferOutputStream()
    with pq.ParquetWriter(empty, schema) as writer:
        writer.write_table(schema.empty_table())
    found = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [found.column(k).path for k in range(len(found))]
