"""What a model was trained on, as fingerprints of its training images: written by training, asked by the evaluation.

A run leaves `training_images.parquet`, a row for each training image: sha256 and perceptual hash of the image, a hash
of the patient, the source; no name, no path. `training_data.json`, which also travels with the model, says what data
that was and names the file by its sha256. Ids of patients are hashed without salt, so that two corpora agree on them:
who knows the ids can recognise them, and so the file stays with the run and is not published.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.fingerprints import TYPE
from regionmed_clip.processing.corpus.sources.source_files import sha256_of_file

IMAGES_FILE, FACTS_FILE = "training_images.parquet", "training_data.json"
FORMAT = "regionmed_clip training images 1"
FOLDERS_OF_A_RUN = ("final", "best", "adapter")  # in OUTPUT_DIR, where the file is
NUM_HASH_BYTES = TYPE["phash"].itemsize
SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.string(), nullable=False),  # 64 hex digits; "": unknown
        pa.field("phash", pa.binary(NUM_HASH_BYTES), nullable=False),  # of perceptual_hash.py, little-endian words
        pa.field("patient", pa.uint64(), nullable=False),  # hash of the id; 0: unknown
        pa.field("source", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT},
)
Block = tuple[np.ndarray, Sequence[str]]  # fingerprints (N,) of TYPE, and the source of each


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of the training images of a model in a folder.

    Attributes:
        images: the file of their fingerprints, the very one that training wrote; None where it is not at hand.
        facts: what training_data.json says; empty where there is none.
        unknown: why images are not known, or not all of them; "" where all are.
    """

    images: Path | None
    facts: Mapping[str, Any]
    unknown: str

    @property
    def unknown_of_start(self) -> str:
        """Why the training images of the checkpoint that it starts from are not all known; "" where they are."""
        return (self.facts.get("start") or {}).get("unknown") or ""


def write_training_images(path: Path, blocks: Iterable[Block]) -> dict[str, Any]:
    """What training_data.json says of the file, after writing it whole: its name, sha256 and numbers of images.

    Args:
        blocks: of all training images, in any number; one is in memory at a time.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sources: Counter[str] = Counter()
    patients: list[np.ndarray] = []
    try:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for prints, names in blocks:
                writer.write_table(_table_of(prints, names))
                sources.update(names)
                patients.append(np.unique(prints["patient"]))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    known = np.unique(np.concatenate(patients)) if patients else np.zeros(0, dtype=np.uint64)
    return {
        "file": path.name,
        "sha256": sha256_of_file(path),
        "num_images": sources.total(),
        "num_patients": int((known != 0).sum()),
        "sources": dict(sorted(sources.items())),
    }


def read_blocks(path: Path) -> Iterator[Block]:
    """The blocks of a file that `write_training_images` wrote; ValueError for any other file."""
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} with a list of training images; give the one of a run.")
    try:
        parquet = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read ({error}); give the {IMAGES_FILE} that training wrote.") from error
    with parquet as file:
        if not file.schema_arrow.equals(SCHEMA, check_metadata=False) or (
            (file.schema_arrow.metadata or {}).get(b"format") != FORMAT.encode()
        ):
            raise ValueError(f"{path} is no list of training images ({FORMAT}); give the one that training wrote.")
        for batch in file.iter_batches():
            prints = np.zeros(batch.num_rows, dtype=TYPE)
            prints["sha256"] = np.array(batch["sha256"].to_pylist(), dtype=TYPE["sha256"])
            hashes = b"".join(batch["phash"].to_pylist())
            prints["phash"] = np.frombuffer(hashes, dtype="<u8").reshape(-1, NUM_HASH_BYTES // 8)
            prints["patient"] = batch["patient"].to_numpy()
            yield prints, batch["source"].to_pylist()


def read_fingerprints(path: Path) -> np.ndarray:
    """(N,) of `fingerprints.TYPE`, 112 bytes an image; ValueError for another file."""
    blocks = [prints for prints, _ in read_blocks(path)]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=TYPE)


def find_training_images(folder: str | Path) -> TrainingRecord:
    """The record of the model in `folder`: OUTPUT_DIR/final or /best of a run, or a copy with the file put into it.

    A file whose sha256 is not the one that the model's training_data.json names is another run's and not taken.

    Raises:
        ValueError: training_data.json is not a JSON object.
    """
    folder = Path(folder).resolve()
    places = [folder, *([folder.parent] if folder.name in FOLDERS_OF_A_RUN else [])]
    facts_path = next((place / FACTS_FILE for place in places if (place / FACTS_FILE).is_file()), None)
    if facts_path is None:
        return TrainingRecord(None, {}, f"the folder has no {FACTS_FILE}")
    facts = _read_facts(facts_path)
    named = facts["images"]["sha256"]
    found = [place / IMAGES_FILE for place in places if (place / IMAGES_FILE).is_file()]
    images = next((path for path in found if sha256_of_file(path) == named), None)
    if images is None:
        reason = "is of another training" if found else "is not at hand"
        return TrainingRecord(None, facts, f"{IMAGES_FILE} {reason}; put that of the run into the model's folder")
    known = TrainingRecord(images, facts, "")
    return replace(known, unknown=known.unknown_of_start)


def _read_facts(path: Path) -> dict[str, Any]:
    """What a training_data.json says."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        is_sound = isinstance(facts["images"]["sha256"], str)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what training writes ({error!r}); take it from the run again.") from error
    if not is_sound:
        raise ValueError(f"{path}: images.sha256 is no text; take the file from the run again.")
    return facts


def _table_of(prints: np.ndarray, sources: Sequence[str]) -> pa.Table:
    """The rows of a block."""
    words = np.ascontiguousarray(prints["phash"].astype("<u8", copy=False))
    hashes = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(NUM_HASH_BYTES), len(prints), [None, pa.py_buffer(words.tobytes())]
    )
    digests = pa.array([digest.decode() for digest in prints["sha256"].tolist()], type=pa.string())
    patients = pa.array(np.ascontiguousarray(prints["patient"]), type=pa.uint64())
    return pa.table([digests, hashes, patients, pa.array(list(sources), type=pa.string())], schema=SCHEMA)
