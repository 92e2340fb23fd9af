"""Miniature jsonl sources and built corpora whose shards and row groups are as small as a test wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from regionmed_clip.processing.corpus.built_corpus import FORMAT, BuiltCorpus
from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.medregion import corpus_schema
from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource


def write_jsonl_source(folder: Path, num_images: int, **fields: Any) -> Path:
    """The folder of a new jsonl source without splits: noise of 8 x 6 pixels, one boxed nerve with a mask each."""
    (folder / "images").mkdir(parents=True)
    (folder / "SOURCE.md").write_text("- Licence: CC0 1.0\n- Modality: B-mode ultrasound (neck)\n")
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:5, 1:4] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    rows = []
    for index in range(num_images):
        noise = np.random.default_rng(index).integers(0, 256, (6, 8), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"images/{index:03d}.png")
        row = {"image": f"images/{index:03d}.png", "width": 8, "height": 6, "mask": "mask.png"}
        row |= {"boxes_xyxy": [[1, 1, 4, 5]], "labels": ["Nerve"], "qa": [{"q": "Is it?", "a": "yes"}]}
        rows.append(json.dumps(row | fields) + "\n")
    (folder / "annotations.jsonl").write_text("".join(rows))
    return folder


def write_corpus(
    folder: Path, rows_of_split: dict[str, Sequence[dict[str, Any]]], *, rows_of_shard: int = 8, rows_of_group: int = 3
) -> BuiltCorpus:
    """A corpus of rows as given: no shuffling, no checks, only what a reader looks at in the manifest."""
    (folder / "data").mkdir(parents=True)
    splits = {}
    for split, rows in rows_of_split.items():
        parts = [rows[start : start + rows_of_shard] for start in range(0, len(rows), rows_of_shard)]
        shards = []
        for number, part in enumerate(parts):
            path = f"data/{split}-{number:05d}-of-{len(parts):05d}.parquet"
            table = pa.Table.from_pylist(list(part), schema=corpus_schema())
            pq.write_table(table, folder / path, row_group_size=rows_of_group)
            shards.append({"path": path, "num_images": len(part)})
        splits[split] = {"num_images": len(rows), "shards": shards}
    sources = [{"name": "demo", "license": "CC0 1.0"}]
    manifest = {"format": FORMAT, "name": "tiny", "sources": sources, "splits": splits, "folder": folder.name}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return BuiltCorpus(folder)


def small_corpus(folder: Path, num_images: int = 20, **layout: int) -> BuiltCorpus:
    """A corpus of a jsonl source of so many images, written beside it; 70 % of them train."""
    source = JsonlSource(write_jsonl_source(folder.with_name(f"{folder.name}_source"), num_images), with_masks=True)
    return write_corpus(folder, {split: rows_of(source.records(split)) for split in source.splits()}, **layout)


def rows_of(records: Any, looked_for: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The rows that a build makes of the records of a source that looked for these findings, images as bytes."""
    rows = []
    for record in records:
        row = example_from_record(record, seed=0, phash="0" * 80, looked_for=looked_for)
        path = row["image"]["path"]
        rows.append(row | {"image": {"bytes": Path(path).read_bytes(), "path": Path(path).name}} if path else row)
    return rows
