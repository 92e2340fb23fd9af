"""A built corpus folder: its manifest, and its rows by split and position."""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.records import SPLITS

MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"
CARD_NAME = "README.md"
DATA_FOLDER = "data"
FORMAT = 1  # of the manifest and the shards
_ENTRIES = ("tool", "sources", "seed", "options", "num_near_duplicates", "num_moved_to_another_split")
_ENTRIES_OF_SOURCE = ("name", "license", "revision", "options", "num_images", "num_quarantined", "num_exact_duplicates")
_ENTRIES_OF_SHARD = ("path", "num_images", "num_bytes", "sha256")
_SHARD_PATH = re.compile(rf"{DATA_FOLDER}/[\w-][\w.-]*\.parquet")


class BuiltCorpus:
    """A folder that `regionmed-corpus build` has finished, opened for reading; nothing of its rows is held in memory.

    Raises:
        ValueError: the folder has no manifest, one that is damaged or of another format, or lacks a shard that the
            manifest names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} has no {MANIFEST_NAME}; a built corpus has one, written last. Build it with "
                "`regionmed-corpus build`, or run an interrupted build again."
            )
        content = path.read_bytes()
        try:
            self.manifest: dict[str, Any] = json.loads(content)
            found = self.manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest ({error!r}); restore it or build the corpus again.") from error
        if found != FORMAT:
            raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT}. Build the corpus again.")
        problem = _problem_of(self.manifest)
        if problem:
            raise ValueError(f"{path} is damaged: {problem}. Restore it or build the corpus again.")
        for split in self.splits():
            for shard in self.shard_paths(split):
                if not shard.is_file():
                    raise ValueError(f"{shard} is missing; the manifest names it. Restore it or build again.")
        self.revision = f"{self.manifest['name']}@{hashlib.sha256(content).hexdigest()[:12]}"

    def check_manifest(self) -> None:
        """Nothing; ValueError where the manifest lacks an entry, also one that is not needed to read the rows."""
        manifest = self.manifest
        missing = [key for key in _ENTRIES if key not in manifest]
        for key_of, entries in (
            (_ENTRIES_OF_SOURCE, manifest.get("sources") or ()),
            (_ENTRIES_OF_SHARD, [shard for split in manifest["splits"].values() for shard in split["shards"]]),
        ):
            missing += sorted({key for entry in entries for key in key_of if key not in entry})
        if missing:
            path = self.folder / MANIFEST_NAME
            raise ValueError(f"{path} lacks {', '.join(missing)}; a build writes them. Restore it or build again.")

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one image, in the order train, validation, test."""
        return tuple(split for split in SPLITS if split in self.manifest["splits"])

    def num_images(self, split: str) -> int:
        """Number of images of `split`; ValueError for a split that this corpus lacks."""
        return self._split(split)["num_images"]

    def shard_paths(self, split: str) -> list[Path]:
        """The Parquet files of `split` in the order of their rows."""
        return [self.folder / shard["path"] for shard in self._split(split)["shards"]]

    def rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows [start, stop) of `split` as plain dicts; at most one row group of the chosen columns is in memory."""
        for table in self.tables(split, start, stop, columns):
            yield from table.to_pylist()

    def tables(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The same rows as one Arrow table for each row group that they touch."""
        stop = self.num_images(split) if stop is None else min(stop, self.num_images(split))
        shards = self._split(split)["shards"]
        first_rows = [0, *accumulate(shard["num_images"] for shard in shards)]
        index = max(bisect.bisect_right(first_rows, start) - 1, 0)
        for shard, first_row in zip(shards[index:], first_rows[index:]):
            if first_row >= stop:
                return
            with pq.ParquetFile(self.folder / shard["path"], memory_map=True) as file:
                yield from _tables_of_file(file, start - first_row, stop - first_row, columns)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest["splits"]:
            raise ValueError(
                f"{self.folder} has no split {split!r}; it has {', '.join(self.splits()) or 'none'}. Name one of these."
            )
        return self.manifest["splits"][split]


def _problem_of(manifest: dict[str, Any]) -> str:
    """What keeps the rows of a manifest's shards from being read, or "": its structure, a path out of the corpus."""
    try:
        numbers = [manifest["splits"][split]["num_images"] for split in manifest["splits"]]
        shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        numbers += [shard["num_images"] for shard in shards]
        outside = [shard["path"] for shard in shards if not _SHARD_PATH.fullmatch(shard["path"])]
        is_whole = isinstance(manifest["name"], str) and all(isinstance(number, int) for number in numbers)
    except (KeyError, TypeError, AttributeError) as error:
        return f"it has another structure ({error!r})"
    if outside:
        return f"shard {outside[0]!r} does not lie in {DATA_FOLDER}/"
    return "" if is_whole else "its name is no text, or a number of images is none"


def _tables_of_file(file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Rows [start, stop) of a Parquet file, a table for each row group; the bounds may lie outside the file."""
    first_row = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        low, high = max(start - first_row, 0), min(stop - first_row, num_rows)
        if low < high:
            table = file.read_row_group(group, columns=None if columns is None else list(columns))
            yield table.slice(low, high - low)
        first_row += num_rows


def is_built_corpus(folder: str | Path) -> bool:
    """Whether `folder` holds the manifest of a built corpus."""
    return (Path(folder) / MANIFEST_NAME).is_file()
