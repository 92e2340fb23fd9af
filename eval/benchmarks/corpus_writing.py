"""What building a corpus costs: against `Dataset.from_generator` + `to_parquet`, and by the number of images.

`python -m regionmed_clip.eval.benchmarks.corpus_writing [--num-images 20000] [--output FILE]`

Writing: the same ready rows (phantoms, drawn once) are written by the code of a build, in one process and in one for
each core, and by the peer, as they come and shuffled. Only a build checks every image against its hash, and hashes the
shards. Building: the whole `build_corpus`, drawing and hashing included, at a quarter, a half and all of the images,
with its peak memory; and the peer with the same drawing in its generator.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
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
from regionmed_clip.processing.corpus.shard_writer import ORDER_TYPE, Shard, order_path, plan_shards, write_shard
from regionmed_clip.processing.corpus.sources.phantom import FINDINGS, draw_phantom
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec
from regionmed_clip.processing.corpus.staging import RowWriter, StagedRows

MODULE = "regionmed_clip.eval.benchmarks.corpus_writing"
SPLIT = "train"
ROWS_OF_BATCH = 32  # in the file of ready rows; a chunk holds a whole number of them
WRITING_PARTS = ("write", "write-parallel", "peer-write", "peer-write-shuffled")


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
    costs: dict[str, list[Cost]] = {part: [] for part in WRITING_PARTS}
    for _ in tqdm(range(rounds), desc="writing", unit="round"):
        for part, found in costs.items():
            found.append(_measure(part, folder, num_images))
    sizes = [num_images // 4, num_images // 2, num_images]
    builds = [_measure("build", folder, size) for size in tqdm(sizes, desc="building", unit="size")]
    peer_build = _measure("peer-build", folder, num_images)
    num_processes = os.cpu_count() or 1
    return {
        "num_images": num_images,
        "rounds": rounds,
        "writing": {
            f"{part}/{peer}": {
                "wall": round(median_ratio(*([cost.wall_s for cost in costs[name]] for name in (part, peer))), 3),
                "cpu": round(median_ratio(*([cost.cpu_s for cost in costs[name]] for name in (part, peer))), 3),
            }
            for part in WRITING_PARTS[:2]
            for peer in WRITING_PARTS[2:]
        },
        "writing_peak_mb": {part: round(max(cost.peak_mb for cost in found)) for part, found in costs.items()},
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
        for start in tqdm(range(0, num_images, ROWS_OF_BATCH), desc="drawing", unit="batch"):
            records = (draw_phantom(0, index) for index in range(start, min(start + ROWS_OF_BATCH, num_images)))
            rows = [example_from_record(record, looked_for=FINDINGS) for record in records]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def ready_rows(folder: Path, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """The drawn rows [start, stop) as dicts; `start` is a multiple of ROWS_OF_BATCH."""
    with pa.OSFile(str(folder / "rows.arrow"), "rb") as file:
        reader = pa.ipc.open_file(file)
        last = reader.num_record_batches if stop is None else -(-stop // ROWS_OF_BATCH)
        for number in range(start // ROWS_OF_BATCH, last):
            yield from reader.get_batch(number).to_pylist()


def write(folder: Path, num_images: int) -> None:
    """Nothing; stages and shuffles the ready rows and writes them as shards, by the code of a build."""
    _write(folder, num_images, num_processes=1)


def write_parallel(folder: Path, num_images: int) -> None:
    """Nothing; the same with one process for each core."""
    _write(folder, num_images, num_processes=os.cpu_count() or 1)


def _write(folder: Path, num_images: int, num_processes: int) -> None:
    for made in (folder / "work/scan", folder / "work/entries", folder / "out/data"):
        made.mkdir(parents=True, exist_ok=True)
    starts = [*range(0, num_images, ITEMS_OF_CHUNK), num_images]
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        run_all = map if num_processes == 1 else pool.map
        staged = list(run_all(_stage_chunk, repeat(folder), starts[:-1], starts[1:]))
        ranks, sizes = (np.concatenate(parts) for parts in zip(*staged))
        order = np.empty(num_images, dtype=ORDER_TYPE)
        order["position"] = np.argsort(ranks)
        order["num_bytes"] = sizes[order["position"]]
        np.save(order_path(folder / "work", SPLIT), order, allow_pickle=False)
        shards = plan_shards(SPLIT, num_images, int(sizes.sum()), 128_000_000)
        list(run_all(_write_shard, repeat(folder), repeat(starts), shards))


def _stage_chunk(folder: Path, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranks and image sizes of a chunk of rows, after staging them."""
    ranks, sizes = [], []
    with RowWriter(rows_path(folder / "work", start // ITEMS_OF_CHUNK), corpus_schema()) as writer:
        for row in ready_rows(folder, start, stop):
            writer.add(row)
            ranks.append(hash_64("order", "0", row["image_id"]))
            sizes.append(len(row["image"]["bytes"]))
    return np.array(ranks, dtype=np.uint64), np.array(sizes)


def _write_shard(folder: Path, starts: list[int], shard: Shard) -> None:
    staged = StagedRows([rows_path(folder / "work", k) for k in range(len(starts) - 1)], np.array(starts))
    write_shard(folder / "work", folder / "out", shard, staged, corpus_schema())


def peer_write(folder: Path, num_images: int, *, is_shuffled: bool = False) -> None:
    """Nothing; writes the ready rows by `from_generator` and `to_parquet`."""
    from datasets import Dataset

    options = {"features": corpus_features(), "gen_kwargs": {"folder": folder}, "cache_dir": str(folder / "cache")}
    made = Dataset.from_generator(ready_rows, **options)
    (made.shuffle(seed=0) if is_shuffled else made).to_parquet(str(folder / "peer.parquet"))


def peer_write_shuffled(folder: Path, num_images: int) -> None:
    """Nothing; the same with the rows shuffled, as a build shuffles them."""
    peer_write(folder, num_images, is_shuffled=True)


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
    return (example_from_record(draw_phantom(0, index), looked_for=FINDINGS) for index in range(number))


def _measure(part: str, folder: Path, num_images: int) -> Cost:
    """The cost of one part in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        if (folder / "rows.arrow").is_file():
            os.link(folder / "rows.arrow", Path(own) / "rows.arrow")
        return measure_module(MODULE, ["--part", part, "--folder", own, "--num-images", str(num_images)])


PARTS = {
    "write": write,
    "write-parallel": write_parallel,
    "peer-write": peer_write,
    "peer-write-shuffled": peer_write_shuffled,
    "build": build,
    "peer-build": peer_build,
}


if __name__ == "__main__":
    main()
