"""The questions of a split on disk: every image decoded once into the model's frame, with its boxes and its questions.

The store is one of frame_store.py with other columns, in OUTPUT_DIR/cache, and rebuilt where it is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

from regionmed_clip.processing.corpus.data_spec import DataSpec, data_revision
from regionmed_clip.processing.corpus.fingerprints import TYPE as FINGERPRINT_TYPE
from regionmed_clip.processing.corpus.fingerprints import fingerprint
from regionmed_clip.processing.corpus.shown_image import shown_image
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion, questions_of_example
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .frame_store import StoreRows, prepare_split

QUESTION_FEATURES = Features(
    {
        "image_id": Value("string"),
        "source": Value("string"),
        "patient_id": Value("string"),  # null: unknown
        "frame": Value("binary"),  # (3, S, S) uint8, row-major
        "boxes": List(List(Value("float32"), length=4)),  # of all regions, in fractions of the frame
        "questions": List(
            {
                "question": Value("string"),
                "answer": Value("string"),
                "kind": Value("string"),
                "marked": Value("int32"),  # -1: none
            }
        ),
        "fingerprint": Value("binary"),  # of the image as it is stored: one row of `fingerprints.TYPE`
    }
)


def prepare_questions(
    spec: DataSpec,
    split: str,
    cache: Path,
    image_processor: RegionMedClipImageProcessor,
    num_workers: int,
    *,
    derived: bool,
) -> Path:
    """The folder in `cache` with the store of a spec that is no mixture; it is written where it is missing.

    Args:
        derived: whether the questions that regions answer by rule are among them.
    """
    settings = [str(spec), data_revision(spec), image_processor.to_dict(), QUESTION_FEATURES.to_dict(), derived]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    folder = cache / f"questions-{split}-{digest[:16]}"
    prepare_split(folder, str(spec), split, image_processor, num_workers, question_rows(derived))
    return folder


def question_rows(derived: bool) -> StoreRows:
    """What the store keeps of an example; `derived` as in `prepare_questions`."""
    return StoreRows(QUESTION_FEATURES, _row_with_derived if derived else _row_as_given)


def _row_with_derived(example: dict[str, Any], image_processor: RegionMedClipImageProcessor) -> dict[str, Any]:
    return _row(example, image_processor, derived=True)


def _row_as_given(example: dict[str, Any], image_processor: RegionMedClipImageProcessor) -> dict[str, Any]:
    return _row(example, image_processor, derived=False)


def _row(example: Mapping[str, Any], image_processor: RegionMedClipImageProcessor, *, derived: bool) -> dict[str, Any]:
    frame, geometry = image_processor.frame_picture(shown_image(example))
    pixel = np.asarray([region["box"] for region in example["regions"]], dtype=np.float64).reshape(-1, 4)
    questions = [
        {
            "question": question.question,
            "answer": question.answer,
            "kind": question.kind,
            "marked": -1 if question.marked is None else question.marked,
        }
        for question in questions_of_example(example, derived=derived)
    ]
    return {
        "image_id": example["image_id"],
        "source": example["source"],
        "patient_id": example["patient_id"],
        "frame": np.ascontiguousarray(frame).tobytes(),
        "boxes": geometry.boxes_to_frame_fractions(pixel).astype(np.float32).tolist(),
        "questions": questions,
        "fingerprint": fingerprint(example).tobytes(),
    }


class QuestionStore:
    """Random access to the frames, boxes and questions of prepared folders, one after the other.

    `image_ids`, `sources`, `patient_ids` (None: unknown), `boxes` (each (R, 4) float32 fractions of the frame) and
    `questions` have an entry for every image; frames are read from the memory map when they are asked for.
    """

    def __init__(self, folders: Sequence[Path], image_size: int):
        paths = [path for folder in folders for path in sorted(folder.glob("part-*.arrow"))]
        if not paths:
            raise ValueError(f"{', '.join(map(str, folders))}: no prepared questions; prepare_questions writes them.")
        self.image_size = image_size
        self._table = concatenate_datasets([Dataset.from_file(str(path)) for path in paths]).with_format("arrow")
        self.image_ids: list[str] = self._column("image_id")
        self.sources: list[str] = self._column("source")
        self.patient_ids: list[str | None] = self._column("patient_id")
        self.boxes = [np.asarray(rows, dtype=np.float32).reshape(-1, 4) for rows in self._column("boxes")]
        self.questions = [
            [_question(image_id, row) for row in rows]
            for image_id, rows in zip(self.image_ids, self._column("questions"))
        ]
        prints = b"".join(self._column("fingerprint"))
        self.fingerprints = np.frombuffer(prints, dtype=FINGERPRINT_TYPE)

    def _column(self, name: str) -> list[Any]:
        blocks = self._table.select_columns([name]).iter(batch_size=4096)
        return [value for block in blocks for value in block[name].to_pylist()]

    def __len__(self) -> int:
        return self._table.num_rows

    def frames(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, 3, S, S) uint8 frames of the images at `rows`, in that order."""
        found = self._table[[int(row) for row in rows]]["frame"].to_pylist()
        shape = (3, self.image_size, self.image_size)
        return np.stack([np.frombuffer(frame, dtype=np.uint8).reshape(shape) for frame in found])

    def blocks_of_fingerprints(self, rows: Sequence[int]) -> Iterator[tuple[np.ndarray, list[str]]]:
        """(fingerprints (N,) of `fingerprints.TYPE`, their sources) of the images at `rows`, as one block."""
        yield self.fingerprints[np.asarray(rows, dtype=np.int64)], [self.sources[row] for row in rows]


def _question(image_id: str, row: Mapping[str, Any]) -> VisualQuestion:
    marked = row["marked"] if row["marked"] >= 0 else None
    return VisualQuestion(image_id, row["question"], row["answer"], row["kind"], marked)
