"""The first pass of a build: items of the sources -> staged rows, an index of their hashes, and the bad ones.

A chunk of items is the unit of work. Its files are written under temporary names and renamed, the index last: a chunk
with an index is done. All of it lies in the build's work folder and disappears with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.perceptual_hash import NUM_WORDS, hash_of_bytes, hex_of_hash
from regionmed_clip.processing.corpus.phi_patterns import PHI_KINDS, find_phi
from regionmed_clip.processing.corpus.records import SPLITS, StudyRecord
from regionmed_clip.processing.corpus.sources import BadItem, Source
from regionmed_clip.processing.corpus.splits import patient_key
from regionmed_clip.processing.corpus.staging import RowWriter, temporary_name
from regionmed_clip.processing.image_errors import DECODE_ERRORS

ITEMS_OF_CHUNK = 512
_MEMORY_FILE = re.compile(r"<_io\.BytesIO object at 0x[0-9a-fA-F]+>")  # Pillow's name for it, new in every process
_KINDS_IN_PATHS = ("dicom-uid", "url")  # the pseudonyms by which data sets name their files
INDEX_TYPE = np.dtype(
    [
        ("order", "<u8"),  # hash of seed and image id: its rank is the place in the shuffled corpus
        ("sha256_start", "<u8"),  # its first 16 hex digits, to find candidates
        ("sha256", "S64"),  # all hex digits, to confirm them
        ("patient", "<u8"),  # hash of source and patient; 0 where unknown
        ("phash", "<u8", (NUM_WORDS,)),
        ("num_bytes", "<u4"),
        ("num_regions", "<u4"),
        ("num_questions", "<u4"),
        ("source", "<u2"),
        ("split", "u1"),  # index in SPLITS
    ]
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items [start, stop) of a split of the source with this index."""

    number: int
    source: int
    split: str
    start: int
    stop: int


def chunks_of(sources: Sequence[Source]) -> Iterator[Chunk]:
    """The chunks of all sources, splits and items in their order."""
    number = 0
    for index, source in enumerate(sources):
        for split in source.splits():
            num_records = source.num_records(split)
            for start in range(0, num_records, ITEMS_OF_CHUNK):
                yield Chunk(number, index, split, start, min(start + ITEMS_OF_CHUNK, num_records))
                number += 1


def rows_path(work: Path, number: int) -> Path:
    """The staged rows of a chunk, an Arrow file."""
    return work / f"scan/{number:06d}.arrow"


def index_path(work: Path, number: int) -> Path:
    """The index of a chunk, an array of INDEX_TYPE; it is there when the chunk is done."""
    return work / f"scan/{number:06d}.npy"


def bad_path(work: Path, number: int) -> Path:
    """The bad items of a chunk, one JSON object a line."""
    return work / f"scan/{number:06d}.bad.jsonl"


class ScanIndex:
    """The indexes of all chunks, read a column at a time: 8 bytes an image of an 8-byte column, not the whole.

    Args:
        paths: the index files in the order of the chunks.
        fine_path: where the fine words of the hashes are joined in one file, read only where two images are compared.
    """

    def __init__(self, paths: Sequence[Path], fine_path: Path) -> None:
        self._paths, self._fine_path = paths, fine_path
        self.starts = np.cumsum([0, *(len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> np.ndarray:
        """One column of all images, in the order of the scan; of "phash" the coarse word."""
        whole = np.empty(len(self), dtype=INDEX_TYPE["phash"].subdtype[0] if name == "phash" else INDEX_TYPE[name])
        for start, path in zip(self.starts, self._paths):
            part = np.load(path, allow_pickle=False)[name]
            whole[start : start + len(part)] = part[:, 0] if name == "phash" else part
        return whole

    def sha256(self, position: int) -> bytes:
        """The sha256 of an image, in hex."""
        chunk = int(np.searchsorted(self.starts, position, "right")) - 1
        part = np.load(self._paths[chunk], mmap_mode="r", allow_pickle=False)
        return bytes(part["sha256"][position - self.starts[chunk]])

    def fine_words(self) -> np.ndarray:
        """(N, 4) uint64: the fine words of the hashes, as a memory map of a file of their own."""
        shape = (len(self), NUM_WORDS - 1)
        with self._fine_path.open("wb") as file:
            for path in self._paths:
                file.write(np.load(path, allow_pickle=False)["phash"][:, 1:].tobytes())
        return np.memmap(self._fine_path, dtype="<u8", mode="r", shape=shape) if len(self) else np.empty(shape, "<u8")


def scan_chunk(work: Path, source: Source, chunk: Chunk, seed: int, schema: pa.Schema) -> int:
    """Number of items of the chunk, after staging their rows and writing their index and the bad ones.

    Images that are files are staged by their path alone, images made from something else by their bytes.
    """
    index: list[tuple[Any, ...]] = []
    bad: list[BadItem] = []
    with RowWriter(rows_path(work, chunk.number), schema) as writer:
        for item in source.read(chunk.split, chunk.start, chunk.stop):
            staged = item if isinstance(item, BadItem) else _stage(item, chunk.source, seed, source.looked_for_in(item))
            if isinstance(staged, BadItem):
                bad.append(staged)
                continue
            row, entry = staged
            index.append(entry)
            writer.add(row)
    write_lines(bad_path(work, chunk.number), bad)
    temporary = temporary_name(index_path(work, chunk.number))
    with temporary.open("wb") as file:
        np.save(file, np.array(index, dtype=INDEX_TYPE), allow_pickle=False)
    temporary.rename(index_path(work, chunk.number))
    return chunk.stop - chunk.start


def write_lines(path: Path, bad: Sequence[BadItem]) -> None:
    """Nothing; writes bad items as JSON lines, whole or not at all."""
    temporary = temporary_name(path)
    lines = ({"source": item.source, "item": item.key, "reason": _told(item.reason)} for item in bad)
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.rename(path)


def _told(reason: str) -> str:
    """A reason for the quarantine file: the same in every build, and without what looks like personal data."""
    reason = _MEMORY_FILE.sub("in memory", reason)
    parts, stop = [], 0
    for hit in find_phi(reason):
        if hit.kind in _KINDS_IN_PATHS:
            continue
        if hit.start >= stop:
            parts += [reason[stop : hit.start], f"[withheld: {PHI_KINDS[hit.kind]}]"]
        stop = max(stop, hit.stop)
    return "".join((*parts, reason[stop:]))


def hash_64(*parts: str) -> int:
    """63 bits of the blake2b of the parts, never 0, which stands for "unknown"."""
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def _stage(
    record: StudyRecord, source: int, seed: int, looked_for: frozenset[str]
) -> tuple[dict[str, Any], tuple[Any, ...]] | BadItem:
    """The row and the index entry of a record; a BadItem where its image cannot be decoded."""
    content = Path(record.image).read_bytes() if isinstance(record.image, str) else record.image
    try:
        phash = hash_of_bytes(content)
    except DECODE_ERRORS as error:
        key = record.image_id.partition("/")[2] or record.image_id
        return BadItem(record.source, key, f"the image cannot be decoded ({error}); replace it or drop its row.")
    row = example_from_record(record, seed=seed, phash=hex_of_hash(phash), looked_for=looked_for)
    patient = hash_64("patient", patient_key(record.source, record.patient_id)) if record.patient_id else 0
    entry = (
        hash_64("order", str(seed), record.image_id),
        int(record.sha256[:16], 16),
        record.sha256.encode(),
        patient,
        phash,
        len(content),
        len(record.regions),
        len(record.qa),
        source,
        SPLITS.index(record.split),
    )
    return row, entry
