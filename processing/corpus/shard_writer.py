"""The second pass of a build: staged rows, in their shuffled order, to Parquet shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.manifest import write_whole
from regionmed_clip.processing.corpus.scan import rows_path, temporary_name
from regionmed_clip.processing.corpus.sources.source_files import sha256_of_file

ROWS_OF_GROUP = 64  # a reader holds one row group; a batch of neighbours costs one read
_OPEN_CHUNKS = 48  # memory maps kept open at once
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
    """The positions of the images of a split, by the scan's order, in their shuffled order: (N,) int64."""
    return work / f"order-{split}.npy"


def starts_path(work: Path) -> Path:
    """The scan position of the first image of every chunk, and the number of images: (chunks + 1,) int64."""
    return work / "starts.npy"


def write_shard(work: Path, out: Path, shard: Shard, schema: pa.Schema) -> dict[str, Any]:
    """The manifest's entry of a shard, after writing its file; a shard with an entry on disk is not written again."""
    path = out / shard.path
    entry_path = work / "entries" / f"{PurePosixPath(shard.path).name}.json"
    if entry_path.is_file() and path.is_file():
        return json.loads(entry_path.read_text(encoding="utf-8"))
    positions = np.load(order_path(work, shard.split), mmap_mode="r", allow_pickle=False)[shard.start : shard.stop]
    starts = np.load(starts_path(work), allow_pickle=False)
    temporary = temporary_name(work / path.name)
    options = {"compression": _compression(schema), "use_dictionary": _dictionary_columns(schema)}
    with pq.ParquetWriter(temporary, schema, **options) as writer:
        for start in range(0, len(positions), ROWS_OF_GROUP):
            group = np.asarray(positions[start : start + ROWS_OF_GROUP])
            writer.write_table(_group_table(work, group, starts, shard.split, schema), row_group_size=ROWS_OF_GROUP)
    entry = {
        "path": shard.path,
        "num_images": shard.stop - shard.start,
        "num_bytes": temporary.stat().st_size,
        "sha256": sha256_of_file(temporary),
    }
    temporary.rename(path)
    write_whole(entry_path, json.dumps(entry), work)
    return entry


def take_rows(work: Path, positions: np.ndarray, starts: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The staged rows at `positions` of the scan, in that order."""
    chunks = np.searchsorted(starts, positions, "right") - 1
    by_chunk = np.argsort(chunks, kind="stable")
    edges = np.flatnonzero(np.diff(chunks[by_chunk])) + 1
    parts = []
    for members in np.split(by_chunk, edges):
        chunk = int(chunks[members[0]])
        table = _staged_table(rows_path(work, chunk))
        table = table if columns is None else table.select(list(columns))
        parts.append(table.take(positions[members] - starts[chunk]))
    back = np.empty(len(positions), dtype=np.int64)
    back[by_chunk] = np.arange(len(positions))
    return pa.concat_tables(parts).take(back)


@lru_cache(maxsize=_OPEN_CHUNKS)
def _staged_table(path: Path) -> pa.Table:
    """The staged rows of a chunk through a memory map."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _group_table(work: Path, positions: np.ndarray, starts: np.ndarray, split: str, schema: pa.Schema) -> pa.Table:
    """The rows of one row group with their final split and the bytes of their images."""
    table = take_rows(work, positions, starts)
    images = table.column("image").to_pylist()
    identities = zip(table.column("image_id").to_pylist(), table.column("sha256").to_pylist(), strict=True)
    finished = [_image_bytes(image, *identity) for image, identity in zip(images, identities, strict=True)]
    columns = {
        "image": pa.array(finished, schema.field("image").type),
        "split": pa.array([split] * len(positions), schema.field("split").type),
    }
    return pa.Table.from_arrays([columns.get(name, table.column(name)) for name in schema.names], schema=schema)


def _image_bytes(image: dict[str, Any], image_id: str, sha256: str) -> dict[str, Any]:
    """The image as bytes with a file name; ValueError where the file has changed since the scan."""
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"{image_id}: its file {image['path']} has changed during the build; the sources must stay as they are. "
            "Delete the output folder and build again."
        )
    name = PurePosixPath(image_id).name
    suffix = _SUFFIX_OF_START.get(content[:2], "")
    return {"bytes": content, "path": name if name.lower().endswith((suffix, ".jpeg")) else name + suffix}


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Codec by leaf column: images are compressed already, everything else takes zstd."""
    return {leaf: "none" if leaf == "image.bytes" else "zstd" for leaf in _leaves(schema)}


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
