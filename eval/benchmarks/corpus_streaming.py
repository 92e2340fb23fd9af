"""How fast batches of tensors come from the shards of a built corpus, against the processor on bytes in memory.

`python -m regionmed_clip.eval.benchmarks.corpus_streaming [--corpus FOLDER] [--num-images 1024] [--output FILE]`

Without a corpus it builds one of phantoms. All paths end in the same tensors of the same images: the image processor in
its exact mode, at its default size, on one thread. Rounds are interleaved; a speed of 1.0 is that of bytes in memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from regionmed_clip.eval.benchmarks.measure import median_ratio, write_report
from regionmed_clip.processing.corpus.build import build_corpus
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.corpus.sources.registry import parse_source_spec
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

BATCH_SIZE = 32
SPLIT = "train"
TRAINING_COLUMNS = ["image", "window", "image_id", "caption", "caption_key", "regions", "source"]
Path_ = Callable[[], Iterator[dict[str, Any]]]


def main() -> None:
    """Runs the benchmark and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--num-images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="corpus-streaming-") as folder:
        corpus = options.corpus
        if corpus is None:
            spec = parse_source_spec(f"phantom:num_train={options.num_images},num_test=0", None)
            corpus = build_corpus([spec], Path(folder) / "corpus").folder
        write_report(options.output, run(corpus, options.num_images, options.rounds))


def run(corpus: Path, num_images: int, rounds: int) -> dict[str, Any]:
    """The report: the speed of every path relative to bytes in memory, the median of the rounds."""
    rows = list(BuiltCorpus(corpus).rows(SPLIT, 0, num_images, ["image", "regions", "image_id"]))
    paths: dict[str, Path_] = {
        "bytes_in_memory": lambda: ({**row, "image": Image.open(BytesIO(row["image"]["bytes"]))} for row in rows),
        "medregion_stream": lambda: iter(stream_examples(str(corpus), SPLIT, columns=TRAINING_COLUMNS)),
        "medregion_stream_all_columns": lambda: iter(stream_examples(str(corpus), SPLIT)),
        "parquet_stream": lambda: _parquet_stream(corpus),
    }
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    reference = tensors_of(islice(paths["bytes_in_memory"](), BATCH_SIZE))
    for number in tqdm(range(rounds), desc="streaming", unit="round"):
        for name, path in paths.items():
            if number == 0:  # the same tensors, or the comparison says nothing
                assert torch.equal(tensors_of(islice(path(), BATCH_SIZE)), reference), name
            seconds[name].append(_time(path, len(rows)))
    memory = seconds["bytes_in_memory"]
    return {
        "num_images": len(rows),
        "rounds": rounds,
        "images_per_s_from_memory": round(len(rows) / min(memory), 1),
        "relative_speed": {
            name: round(median_ratio(memory, taken), 3) for name, taken in seconds.items() if taken is not memory
        },
    }


def tensors_of(examples: Iterable[dict[str, Any]]) -> torch.Tensor:
    """(B, 3, H, W) float pixel values of a batch of examples."""
    return PROCESSOR([example["image"] for example in examples], return_tensors="pt")["pixel_values"]


PROCESSOR = RegionMedClipImageProcessor()


def _time(path: Path_, num_images: int) -> float:
    """Processor seconds of this process for one pass over the images in batches."""
    started_at = time.process_time()
    examples = iter(islice(path(), num_images))
    while batch := list(islice(examples, BATCH_SIZE)):
        tensors_of(batch)
    return time.process_time() - started_at


def _parquet_stream(corpus: Path) -> Iterator[dict[str, Any]]:
    """The rows through the library's own Parquet reader."""
    from datasets import load_dataset

    files = {SPLIT: [str(path) for path in BuiltCorpus(corpus).shard_paths(SPLIT)]}
    return iter(load_dataset("parquet", data_files=files, split=SPLIT, streaming=True))


if __name__ == "__main__":
    main()
