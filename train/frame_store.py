"""A prepared split on disk: every image decoded once into the model's frame, with its boxes and texts.

The store is a folder of Arrow files, one for each shard of the source, read through memory maps: its memory does not
grow with the corpus. It is private to a run (OUTPUT_DIR/cache) and rebuilt where it is missing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tqdm import tqdm

from regionmed_clip.processing.corpus.data_spec import num_examples, parse_data_spec, stream_examples
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

STORE_FEATURES = Features(
    {
        "sample_id": Value("string"),
        "frame": Value("binary"),  # (3, S, S) uint8, row-major
        "caption": Value("string"),
        "caption_key": Value("int64"),
        "boxes": List(List(Value("float32"), length=4)),  # fractions of the frame
        "region_texts": List(Value("string")),
        "region_keys": List(Value("int64")),
        "region_findings": List(Value("string")),  # empty where the finding is denied
        "source": Value("string"),
    }
)


@dataclass(frozen=True)
class StoredSample:
    """One prepared image: frame (3, S, S) uint8; boxes (R, 4) float32 fractions of the frame; texts with keys."""

    sample_id: str
    frame: np.ndarray
    caption: str
    caption_key: int
    boxes: np.ndarray
    region_texts: tuple[str, ...]
    region_keys: tuple[int, ...]
    region_findings: tuple[str, ...]
    source: str


def prepare_split(
    folder: Path, data: str, split: str, image_processor: RegionMedClipImageProcessor, num_workers: int
) -> None:
    """Writes the missing parts of the store of `split` to `folder`, one file per shard, in parallel processes.

    The files are the same for any number of workers. A part is written under a temporary name and renamed when whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = parse_data_spec(data)
    num_parts = stream_examples(spec, split).num_shards
    settings = image_processor.to_dict()
    missing = [part for part in range(num_parts) if not _part_path(folder, part, num_parts).exists()]
    if not missing:
        return
    progress = tqdm(total=num_examples(spec, split), desc=f"preparing {split} images", unit="image", mininterval=1.0)
    with progress, ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(write_part, _part_path(folder, part, num_parts), data, split, part, num_parts, settings)
            for part in missing
        ]
        try:
            for job in as_completed(jobs):
                progress.update(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a bad image is told at once, not after all other parts
            raise


def _part_path(folder: Path, part: int, num_parts: int) -> Path:
    return folder / f"part-{part:05d}-of-{num_parts:05d}.arrow"


def write_part(path: Path, data: str, split: str, part: int, num_parts: int, image_settings: dict) -> int:
    """Number of images of shard `part` after writing them to `path`."""
    image_processor = RegionMedClipImageProcessor.from_dict(image_settings)
    examples = stream_examples(parse_data_spec(data), split).shard(num_shards=num_parts, index=part)
    temporary = path.with_suffix(".partial")
    num_written = 0
    with ArrowWriter(features=STORE_FEATURES, path=str(temporary)) as writer:
        for example in examples:
            writer.write(_prepare_example(example, image_processor))
            num_written += 1
        writer.finalize()
    temporary.rename(path)
    return num_written


def _prepare_example(example: dict, image_processor: RegionMedClipImageProcessor) -> dict:
    frame, geometry = image_processor.frame(example["image"], example["image_id"])
    regions = example["regions"]
    boxes = np.asarray([region["box"] for region in regions], dtype=np.float64).reshape(-1, 4)
    return {
        "sample_id": example["image_id"],
        "frame": np.ascontiguousarray(frame).tobytes(),
        "caption": example["caption"],
        "caption_key": example["caption_key"],
        "boxes": geometry.boxes_to_frame_fractions(boxes).astype(np.float32).tolist(),
        "region_texts": [region["description"] for region in regions],
        "region_keys": [region["key"] for region in regions],
        "region_findings": ["" if region["is_negated"] else region["finding"] for region in regions],
        "source": example["source"],
    }


class FrameStore:
    """Random access to a prepared split."""

    def __init__(self, folder: Path, image_size: int):
        paths = sorted(folder.glob("part-*.arrow"))
        if not paths:
            raise ValueError(f"{folder} holds no prepared images; prepare_split writes them.")
        self.image_size = image_size
        self._table = concatenate_datasets([Dataset.from_file(str(path)) for path in paths]).with_format("arrow")

    def __len__(self) -> int:
        return self._table.num_rows

    def samples(self, indices: Sequence[int] | np.ndarray) -> list[StoredSample]:
        """The samples at `indices`, in that order."""
        columns = self._table[[int(index) for index in indices]]
        frames = columns["frame"].to_pylist()
        rows = columns.drop_columns(["frame"]).to_pylist()
        return [self._sample(row, frame) for row, frame in zip(rows, frames)]

    def _sample(self, row: dict, frame: bytes) -> StoredSample:
        return StoredSample(
            sample_id=row["sample_id"],
            frame=np.frombuffer(frame, dtype=np.uint8).reshape(3, self.image_size, self.image_size),
            caption=row["caption"],
            caption_key=row["caption_key"],
            boxes=np.asarray(row["boxes"], dtype=np.float32).reshape(-1, 4),
            region_texts=tuple(row["region_texts"]),
            region_keys=tuple(row["region_keys"]),
            region_findings=tuple(row["region_findings"]),
            source=row["source"],
        )

    def examples(self) -> Iterator[dict]:
        """The samples as examples of the corpus whose image is the frame itself: `image`, `source` and `regions`."""
        for index in range(len(self)):
            (sample,) = self.samples([index])
            described = zip(sample.boxes, sample.region_texts, sample.region_keys, sample.region_findings)
            regions = [
                {
                    "box": (box * self.image_size).tolist(),
                    "description": text,
                    "key": key,
                    "finding": finding,
                    "is_negated": not finding,
                }
                for box, text, key, finding in described
            ]
            image = Image.fromarray(sample.frame.transpose(1, 2, 0))
            yield {"image": image, "source": sample.source, "regions": regions}

    def texts(self) -> Iterator[str]:
        """Every caption and region text of the split, in order, with repetitions; images are not touched."""
        for batch in self._table.select_columns(["caption", "region_texts"]).iter(batch_size=1024):
            for row in batch.to_pylist():
                yield row["caption"]
                yield from row["region_texts"]
