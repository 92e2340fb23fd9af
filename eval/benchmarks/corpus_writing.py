"""What building a corpus costs: against `Dataset.from_generator` + `to_parquet`, and by the number of images.

`python -m regionmed_clip.eval.benchmarks.corpus_writing [--num-images 20000] [--output FILE]`

Writing: the same ready rows (phantoms, drawn once) are written by both, one process each. Building: the whole
`build_corpus`, drawing and hashing included, at a quarter, a half and all of the images, with its peak memory; and the
peer with the same drawing in its generator.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from regionmed_clip.eval.benchmarks.measure import Cost, measure_module, median_ratio, write_report
from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.medregion import corpus_features, corpus_schema
from regionmed_clip.processing.corpus.scan import ITEMS_OF_CHUNK, hash_64, rows_path
from regionmed_clip.processing.corpus.shard_writer import ORDER_TYPE, order_path, plan_shards, write_shard
from regionmed_clip.processing.corpus.sources.phantom import draw_phantom
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec
from regionmed_clip.processing.corpus.staging import RowWriter, StagedRows

MODULE = "regionmed_clip.eval.benchmarks.corpus_writing"


def main() -> None:
    """Runs the benchmark, or, in a process of its own, one part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](options.folder, options.num_images)
        return
    with tempfile.TemporaryDirectory(prefix="corpus-writing-") as folder:
        write_report(options.output, run(Path(folder), options.num_images, options.rounds))


def run(folder: Path, num_images: int, rounds: int) -> dict[str, Any]:
    """The report of the whole benchmark."""
    draw_rows(folder, num_images)
    ours, theirs = [], []
    for number in tqdm(range(rounds), desc="writing", unit="round"):
        ours.append(_measure("write", folder, num_images, number))
        theirs.append(_measure("peer-write", folder, num_images, number))
    sizes = [num_images // 4, num_images // 2, num_images]
    builds = [_measure("build", folder, size, rounds) for size in tqdm(sizes, desc="building", unit="size")]
    peer_build = _measure("peer-build", folder, num_images, rounds)
    num_processes = os.cpu_count() or 1
    return {
        "num_images": num_images,
        "rounds": rounds,
        "writing_ratio_wall": median_ratio([cost.wall_s for cost in ours], [cost.wall_s for cost in theirs]),
        "writing_ratio_cpu": median_ratio([cost.cpu_s for cost in ours], [cost.cpu_s for cost in theirs]),
        "writing_peak_mb": [round(cost.peak_mb) for cost in ours],
        "peer_writing_peak_mb": [round(cost.peak_mb) for cost in theirs],
        "building_ratio_wall": builds[-1].wall_s / peer_build.wall_s,
        "peer_building_peak_mb": round(peer_build.peak_mb),
        "num_processes": num_processes,
        "builds": [
            {
                "num_images": size,
                "wall_s": round(cost.wall_s, 1),
                "images_per_s_per_core": round(size / cost.wall_s / num_processes, 1),
                "peak_mb": round(cost.peak_mb),
            }
            for size, cost in zip(sizes, builds, strict=True)
        ],
    }


def draw_rows(folder: Path, num_images: int) -> None:
    """Nothing; writes the rows of phantoms to one Arrow file that all parts read."""
    schema = corpus_schema()
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in tqdm(range(0, num_images, 32), desc="drawing", unit="batch"):
            records = (draw_phantom(0, index) for index in range(start, min(start + 32, num_images)))
            rows = [example_from_record(record) for record in records]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def ready_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The drawn rows as dicts, from a memory map."""
    with pa.memory_map(str(folder / "rows.arrow")) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).to_pylist()


def write(folder: Path, num_images: int) -> None:
    """Nothing; stages and shuffles the ready rows and writes them as shards, by the code of a build."""
    schema = corpus_schema()
    work, out = folder / "work", folder / "out"
    for made in (work / "scan", work / "entries", out / "data"):
        made.mkdir(parents=True, exist_ok=True)
    rows, starts, ranks = ready_rows(folder), [0], []
    sizes: list[int] = []
    while part := list(islice(rows, ITEMS_OF_CHUNK)):
        with RowWriter(rows_path(work, len(starts) - 1), schema) as writer:
            for row in part:
                writer.add(row)
                ranks.append(hash_64("order", "0", row["image_id"]))
                sizes.append(len(row["image"]["bytes"]))
        starts.append(starts[-1] + len(part))
    order = np.empty(num_images, dtype=ORDER_TYPE)
    order["position"] = np.argsort(np.array(ranks, dtype=np.uint64))
    order["num_bytes"] = np.array(sizes)[order["position"]]
    np.save(order_path(work, "train"), order, allow_pickle=False)
    staged = StagedRows([rows_path(work, number) for number in range(len(starts) - 1)], np.array(starts))
    for shard in plan_shards("train", num_images, sum(sizes), 128_000_000):
        write_shard(work, out, shard, staged, schema)


def peer_write(folder: Path, num_images: int) -> None:
    """Nothing; writes the ready rows by `from_generator` and `to_parquet`."""
    from datasets import Dataset

    cache = str(folder / "cache")
    made = Dataset.from_generator(
        ready_rows, features=corpus_features(), gen_kwargs={"folder": folder}, cache_dir=cache
    )
    made.to_parquet(str(folder / "peer.parquet"))


def build(folder: Path, num_images: int) -> None:
    """Nothing; builds the corpus of as many phantoms."""
    spec = parse_source_spec(f"phantom:num_train={num_images},num_test=0", None)
    build_corpus([spec], folder / f"built-{num_images}", show_progress=False)


def peer_build(folder: Path, num_images: int) -> None:
    """Nothing; draws and writes the phantoms by `from_generator` and `to_parquet`."""
    from datasets import Dataset

    made = Dataset.from_generator(
        _drawn_rows, features=corpus_features(), gen_kwargs={"number": num_images}, cache_dir=str(folder / "cache")
    )
    made.to_parquet(str(folder / "peer.parquet"))


def _drawn_rows(number: int) -> Iterator[dict[str, Any]]:
    return (example_from_record(draw_phantom(0, index)) for index in range(number))


def _measure(part: str, folder: Path, num_images: int, number: int) -> Cost:
    """The cost of one part in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        if (folder / "rows.arrow").is_file():
            os.link(folder / "rows.arrow", Path(own) / "rows.arrow")
        return measure_module(MODULE, ["--part", part, "--folder", own, "--num-images", str(num_images)])


PARTS = {"write": write, "peer-write": peer_write, "build": build, "peer-build": peer_build}


if __name__ == "__main__":
    main()
