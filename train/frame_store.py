"""A prepared split on disk: every image decoded once into the model's frame, with its boxes and texts.

The store is a folder of Arrow files, one for each shard of the source, read through memory maps: its memory does not
grow with the corpus. It is private to a run (OUTPUT_DIR/cache) and rebuilt where it is missing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tqdm import tqdm

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.captions import write_caption
from regionmed_clip.processing.corpus.data_spec import num_examples, parse_data_spec, stream_examples
from regionmed_clip.processing.corpus.fingerprints import TYPE as FINGERPRINT_TYPE
from regionmed_clip.processing.corpus.fingerprints import fingerprint
from regionmed_clip.processing.corpus.image_texts import ImageTexts, NegativeText, mirror_words, texts_of_example
from regionmed_clip.processing.corpus.shown_image import shown_image
from regionmed_clip.processing.corpus.text_facts import NUM_FACTS
from regionmed_clip.processing.frame_augmentation import FrameAugmentation
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .interruption import shield_worker
from .sample_order import SampleOrder

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
        "caption_facts": Value("binary"),  # (S, F) int64, row-major
        "region_facts": Value("binary"),  # (R, F) int64
        "details": Value("string"),  # JSON
        "fingerprint": Value("binary"),  # of the image as it is stored: one row of `fingerprints.TYPE`
    }
)


@dataclass(frozen=True)
class StoredSample:
    """One prepared image: frame (3, S, S) uint8; boxes (R, 4) float32 fractions of the frame; texts with keys.

    `caption_key` is `NO_TEXT_KEY` where nothing but the kind of image is known. `caption_facts` (S, F) and
    `region_facts` (R, F) int64 are what the texts state (text_facts.py), all zeros for a text of unknown structure.
    `details` is what else is known of the texts, as JSON (image_texts.py); it is read where it is asked for, "" for a
    sample without. `drawn_negatives` are those false texts of each region that are to take part.
    """

    sample_id: str
    frame: np.ndarray
    caption: str
    caption_key: int
    boxes: np.ndarray
    region_texts: tuple[str, ...]
    region_keys: tuple[int, ...]
    region_findings: tuple[str, ...]
    source: str
    caption_facts: np.ndarray = field(default_factory=lambda: np.zeros((0, NUM_FACTS), dtype=np.int64))
    region_facts: np.ndarray | None = None  # None: nothing is known of any region's text
    details: str = ""
    drawn_negatives: tuple[tuple[NegativeText, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.region_facts is None:
            object.__setattr__(self, "region_facts", np.zeros((len(self.region_keys), NUM_FACTS), dtype=np.int64))

    @property
    def texts(self) -> ImageTexts | None:
        """The texts with all that is known of them; None for a sample without details."""
        if not self.details:
            return None
        described = (self.caption, self.caption_key, self.region_texts, self.region_keys)
        return ImageTexts.from_details(*described, self.details)

    @property
    def region_negatives(self) -> tuple[tuple[NegativeText, ...], ...]:
        """For each region the texts that are false of it."""
        texts = self.texts
        return tuple(region.negatives for region in texts.regions) if texts else ((),) * len(self.region_keys)

    def mirrored(self) -> StoredSample | None:
        """The sample with left and right exchanged in frame, boxes, texts, keys and facts.

        None where the texts cannot be told without risk (`ImageTexts.mirrored`), or are not known in detail.
        """
        assert not self.drawn_negatives, "negatives are drawn from the texts of the image as it is shown"
        texts = self.texts
        mirrored = None if texts is None else texts.mirrored()
        if mirrored is None:
            return None
        flip = FrameAugmentation(flip_x=True)
        return replace(
            self,
            frame=flip.frames(self.frame),
            boxes=flip.boxes(self.boxes)[0],
            region_findings=tuple(mirror_words(finding) for finding in self.region_findings),
            **_text_fields(mirrored, has_caption=self.caption_key != NO_TEXT_KEY),
        )


def _text_fields(texts: ImageTexts, *, has_caption: bool) -> dict[str, Any]:
    """The fields of a sample that its texts decide; the key of a caption is left out where it says nothing."""
    caption_facts = np.asarray(texts.caption_facts, dtype=np.int64).reshape(-1, NUM_FACTS)
    region_facts = np.asarray([region.facts for region in texts.regions], dtype=np.int64).reshape(-1, NUM_FACTS)
    return {
        "caption": texts.caption,
        "caption_key": texts.caption_key if has_caption else NO_TEXT_KEY,
        "region_texts": tuple(region.text for region in texts.regions),
        "region_keys": tuple(region.key for region in texts.regions),
        "caption_facts": caption_facts,
        "region_facts": region_facts,
        "details": texts.details(),
    }


def sample_from_example(example: Mapping[str, Any], image_processor: RegionMedClipImageProcessor) -> StoredSample:
    """The sample that an example of the corpus gives, its image decoded, windowed and brought into the frame."""
    frame, geometry = image_processor.frame_picture(shown_image(example))
    regions = example["regions"]
    boxes = np.asarray([region["box"] for region in regions], dtype=np.float64).reshape(-1, 4)
    return StoredSample(
        sample_id=example["image_id"],
        frame=frame,
        boxes=geometry.boxes_to_frame_fractions(boxes).astype(np.float32),
        region_findings=tuple("" if region["is_negated"] else region["finding"] for region in regions),
        source=example["source"],
        **_text_fields(texts_of_example(example), has_caption=not is_caption_bare(example)),
    )


def is_caption_bare(example: Mapping[str, Any]) -> bool:
    """Whether the caption states no more than what kind of image it is, so that it is true of others of the kind too.

    It is what the templates write where neither caption nor regions were given.
    """
    if example["regions"]:
        return False
    return example["caption"] == write_caption(example["modality"], example["view"], (), anatomy=example["anatomy"])


def example_from_sample(sample: StoredSample) -> dict[str, Any]:
    """The sample as an example of the corpus whose image is the frame itself: `image`, `source` and `regions`."""
    size = sample.frame.shape[1]
    described = zip(sample.boxes, sample.region_texts, sample.region_keys, sample.region_findings)
    regions = [
        {"box": (box * size).tolist(), "description": text, "key": key, "finding": finding, "is_negated": not finding}
        for box, text, key, finding in described
    ]
    return {"image": Image.fromarray(sample.frame.transpose(1, 2, 0)), "source": sample.source, "regions": regions}


@dataclass(frozen=True)
class StoreRows:
    """What a store keeps of an example: its columns, and the function of a module that makes a row of them."""

    features: Features
    prepare: Callable[[dict[str, Any], RegionMedClipImageProcessor], dict[str, Any]]


def prepare_split(
    folder: Path,
    data: str,
    split: str,
    image_processor: RegionMedClipImageProcessor,
    num_workers: int,
    rows: StoreRows | None = None,
) -> None:
    """Writes the missing parts of the store of `split` to `folder`, one file per shard, in parallel processes.

    The files are the same for any number of workers. A part is written under a temporary name and renamed when whole.

    Args:
        rows: what is kept of an example; None: what pretraining reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = parse_data_spec(data)
    num_parts = stream_examples(spec, split).num_shards
    settings = image_processor.to_dict()
    missing = [part for part in range(num_parts) if not _part_path(folder, part, num_parts).exists()]
    if not missing:
        return
    progress = tqdm(
        total=num_examples(spec, split),
        desc=f"preparing {split} images",
        unit="image",
        mininterval=1.0,
        disable=None,  # where there is no terminal: a log file needs no bar
    )
    spawning = multiprocessing.get_context("spawn")
    with progress, ProcessPoolExecutor(num_workers, mp_context=spawning, initializer=shield_worker) as pool:
        jobs = [
            pool.submit(write_part, _part_path(folder, part, num_parts), data, split, part, num_parts, settings, rows)
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


def write_part(
    path: Path, data: str, split: str, part: int, num_parts: int, image_settings: dict, rows: StoreRows | None = None
) -> int:
    """Number of images of shard `part` after writing them to `path`; `rows` as in `prepare_split`."""
    rows = StoreRows(STORE_FEATURES, _prepare_example) if rows is None else rows
    image_processor = RegionMedClipImageProcessor.from_dict(image_settings)
    examples = stream_examples(parse_data_spec(data), split).shard(num_shards=num_parts, index=part)
    temporary = path.with_suffix(".partial")
    num_written = 0
    with ArrowWriter(features=rows.features, path=str(temporary)) as writer:
        for example in examples:
            writer.write(rows.prepare(example, image_processor))
            num_written += 1
        writer.finalize()
    temporary.rename(path)
    return num_written


def _prepare_example(example: dict, image_processor: RegionMedClipImageProcessor) -> dict:
    sample = sample_from_example(example, image_processor)
    row = {name: getattr(sample, name) for name in STORE_FEATURES if name != "fingerprint"}
    row["fingerprint"] = fingerprint(example).tobytes()
    arrays = {name: row[name].tobytes() for name in ("frame", "caption_facts", "region_facts")}
    return {**row, **arrays, "boxes": sample.boxes.tolist()}


class FrameStore:
    """Random access to a prepared split."""

    decodes_images = False

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
        rows = columns.drop_columns(["frame", "fingerprint"]).to_pylist()
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
            caption_facts=np.frombuffer(row["caption_facts"], dtype=np.int64).reshape(-1, NUM_FACTS),
            region_facts=np.frombuffer(row["region_facts"], dtype=np.int64).reshape(-1, NUM_FACTS),
            details=row["details"],
        )

    def order(self, seed: int) -> SampleOrder:
        """A fresh permutation of all samples in every epoch."""
        return SampleOrder(len(self), seed)

    def examples(self) -> Iterator[dict[str, Any]]:
        """The samples as examples of the corpus; see `example_from_sample`."""
        for index in range(len(self)):
            yield example_from_sample(self.samples([index])[0])

    def text_keys(self) -> Iterator[tuple[int, Sequence[int]]]:
        """(key of the caption, keys of the regions' texts) of every sample, in order; images are not touched."""
        for batch in self._table.select_columns(["caption_key", "region_keys"]).iter(batch_size=1024):
            for row in batch.to_pylist():
                yield row["caption_key"], row["region_keys"]

    def fingerprints(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(fingerprints (N,) of `fingerprints.TYPE`, their sources) of all samples, block by block."""
        for batch in self._table.select_columns(["fingerprint", "source"]).iter(batch_size=4096):
            prints = b"".join(batch["fingerprint"].to_pylist())
            yield np.frombuffer(prints, dtype=FINGERPRINT_TYPE), batch["source"].to_pylist()

    def texts(self) -> Iterator[str]:
        """Every caption and region text of the split, in order, with repetitions; images are not touched."""
        for batch in self._table.select_columns(["caption", "region_texts"]).iter(batch_size=1024):
            for row in batch.to_pylist():
                yield row["caption"]
                yield from row["region_texts"]
