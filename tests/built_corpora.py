"""Small built corpora for the tests of what reads them, and a way to break one on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.medregion import corpus_schema
from regionmed_clip.processing.corpus.shard_writer import sha256_of_file
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec

ABOUT = "# {name}\n- Licence: {license}\n- Modality: chest radiograph\n"


def noise(seed: int, size: tuple[int, int] = (60, 48)) -> np.ndarray:
    """(H, W) uint8: a picture of `size` (width, height) that is near to no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def write_source(
    folder: Path, images: Sequence[np.ndarray], *, license_name: str = "CC BY 4.0", **fields: Sequence[Any]
) -> Path:
    """A jsonl source with a row for each image: two regions with masks, one touching the border; `fields` by row.

    The first image has no region. A field given as None for a row is left as it is by default.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = []
    for number, pixels in enumerate(images):
        height, width = pixels.shape
        row: dict[str, Any] = {"image": f"images/{number:03d}.png", "width": width, "height": height}
        Image.fromarray(pixels).save(folder / row["image"])
        row |= {"boxes_xyxy": [], "labels": [], "caption": None, "qa": None, "patient_id": f"p{number}"}
        if number:
            row |= {"boxes_xyxy": [[4, 3, 21, 12], [30, 20, width, height]], "labels": ["nodule", "effusion"]}
            row["mask"] = f"masks/{number:03d}.png"
            Image.fromarray(masks_of(row["boxes_xyxy"], (width, height))).save(folder / row["mask"])
        row |= {key: values[number] for key, values in fields.items() if values[number] is not None}
        lines.append(json.dumps(row) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines))
    (folder / "SOURCE.md").write_text(ABOUT.format(name=folder.name, license=license_name))
    return folder


def masks_of(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: value k in box k - 1, but for its lower left quarter, so that mask and box differ in area."""
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        values[y0:y1, x0:x1] = number
        values[(y0 + y1) // 2 : y1, x0 : (x0 + x1) // 2] = 0
    return values


def build(out: Path, *roots: Path, **options: Any) -> BuiltCorpus:
    """The corpus of jsonl sources at `roots`, built quietly in one process."""
    specs = [parse_source_spec("jsonl", str(root)) for root in roots]
    return build_corpus(specs, out, num_processes=1, show_progress=False, **options)


def rewrite(folder: Path, split: str, edit: Callable[[list[dict[str, Any]]], Any]) -> BuiltCorpus:
    """The corpus after `edit` has changed the rows of the first shard of `split`; hash and size in the manifest fit."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["splits"][split]["shards"][0]
    path = folder / entry["path"]
    rows = pq.read_table(path).to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=corpus_schema()), path)
    entry |= {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return BuiltCorpus(folder)
