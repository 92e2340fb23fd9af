"""A finished index, opened for reading: its rows as `datasets`, memory-mapped, and what finds the nearest of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as compute

from regionmed_clip.eval.search.corpus_rows import EMBEDDING, LEVELS, features_of
from regionmed_clip.eval.search.neighbours import (
    EXACT,
    GRAPH,
    WAY_OUT,
    hash_file,
    read_index,
    search_exactly,
    search_graph,
)
from regionmed_clip.processing.region_inputs import check_unicode

MANIFEST_NAME = "search.json"
FORMAT = 2  # of 1 the rows had no SHA-256
LEAST_SHARE_OF_GRAPH = 0.1  # who asks for more than this share of the rows is answered faster by looking at all
SHOWN_VALUES = 12  # of a column, in messages
FILTERS = {  # level -> the columns that an answer may be narrowed by
    "images": ("source", "modality", "license"),
    "regions": ("source", "modality", "license", "finding", "anatomy", "laterality", "place", "size", "severity"),
}


class SearchIndex:
    """The index in a folder that `regionmed-search index` has made.

    Attributes:
        manifest: the content of search.json. width: D, of its embeddings.

    Raises:
        ValueError: the folder holds no finished index, or one of another format.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.width = int(self.manifest["width"])
        self._rows: dict[str, datasets.Dataset] = {}
        self._graphs: dict[str, Any] = {}

    def num_rows(self, level: str) -> int:
        """Number of rows of "images" or "regions"; ValueError for another level."""
        if level not in LEVELS:
            raise ValueError(f"level {level!r} is not known; an index has {' and '.join(LEVELS)}.")
        return int(self.manifest["levels"][level]["num_rows"])

    def rows(self, level: str) -> datasets.Dataset:
        """The rows of a level, with the column "embedding".

        When they are first asked for, the SHA-256 of their files is compared with search.json, once: reading them
        whole takes about a second for a gigabyte.

        Raises:
            ValueError: a file is absent or another than was written, or they do not fit search.json.
        """
        if level not in self._rows:
            number = self.num_rows(level)
            if not number:
                return datasets.Dataset.from_list([], features=features_of(level, self.width))
            check_row_files(self.folder / level, self.manifest["levels"][level]["rows_sha256"])
            rows = datasets.load_from_disk(str(self.folder / level))
            if len(rows) != number or rows.features != features_of(level, self.width):
                raise ValueError(
                    f"{self.folder / level} holds {len(rows)} rows, not the {number} with embeddings of {self.width} "
                    f"numbers of {MANIFEST_NAME}. {WAY_OUT}"
                )
            self._rows[level] = rows
        return self._rows[level]

    def search(
        self, level: str, query: np.ndarray, k: int, *, is_exact: bool = False, is_allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) float32 cosines, best first, and (n,) int64 rows; n is k, or the number of rows that there are.

        Args:
            query: (D,) float32 of unit length.
            k: how many are asked for, at least 1.
            is_exact: look at all rows instead of walking the graph.
            is_allowed: (N,) bool, the rows that may be found; then all of these are looked at.
        """
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ValueError(f"k is {k!r}; it must be a whole number of at least 1.")
        num_rows = self.num_rows(level)
        if not num_rows:
            other = next(name for name in LEVELS if name != level)
            raise ValueError(f"the index in {self.folder} has no {level}; search among its {other}.")
        k = min(int(k), num_rows)
        is_graph = self.manifest["levels"][level]["kind"] == GRAPH
        if is_graph and not is_exact and is_allowed is None and k <= LEAST_SHARE_OF_GRAPH * num_rows:
            scores, rows = search_graph(self._graph(level), query[None], k)
            found = rows[0] >= 0
            return scores[0][found], rows[0][found]
        scores, rows = search_exactly(vector_blocks(self.rows(level)), query[None], k, is_allowed)
        return scores[0], rows[0]

    def allowed_rows(self, level: str, where: Mapping[str, str]) -> np.ndarray | None:
        """(N,) bool: the rows whose columns have these values; None where `where` is empty.

        Raises:
            ValueError: no such mapping, a column that is no filter of this level, or a value that no row has.
        """
        if not isinstance(where, Mapping):
            raise ValueError(f"where is {where!r}; it must be a dict, column -> value, such as {{'modality': 'CT'}}.")
        if not where:
            return None
        is_allowed = np.ones(self.num_rows(level), dtype=bool)
        for name, value in where.items():
            if name not in FILTERS[level]:
                raise ValueError(
                    f"{level} cannot be narrowed by {name!r}; they can by {', '.join(FILTERS[level])}. Choose one."
                )
            if not isinstance(value, str):
                raise ValueError(f"where has {name}={value!r}; a value must be a text. Ask again for another value.")
            check_unicode([value])
            values = self.rows(level).data.column(name)
            is_equal = compute.fill_null(compute.equal(values, value), False).to_numpy()
            if not is_equal.any():
                known = sorted(one for one in compute.unique(values).to_pylist() if one is not None)
                shown = ", ".join(repr(one) for one in known[:SHOWN_VALUES]) or "no value"
                more = f" and {len(known) - SHOWN_VALUES} more" if len(known) > SHOWN_VALUES else ""
                raise ValueError(f"no {level[:-1]} has {name}={value!r}; the index has {shown}{more}.")
            is_allowed &= is_equal
        return is_allowed

    def column(self, level: str, name: str) -> list[Any]:
        """The values of a column, row by row."""
        return self.rows(level).data.column(name).to_pylist()

    def row(self, level: str, number: int) -> dict[str, Any]:
        """What the corpus says of a row, without its embedding."""
        return {name: value for name, value in self.rows(level)[int(number)].items() if name != EMBEDDING}

    def _graph(self, level: str) -> Any:
        """What finds neighbours, read once."""
        if level not in self._graphs:
            entry = self.manifest["levels"][level]
            graph = read_index(
                self.folder / f"{level}.faiss", sha256=entry["sha256"], num_rows=entry["num_rows"], width=self.width
            )
            if not hasattr(graph, "hnsw"):
                raise ValueError(f"{self.folder / level}.faiss is no graph, as {MANIFEST_NAME} says it is. {WAY_OUT}")
            self._graphs[level] = graph
        return self._graphs[level]


def hash_row_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 (hex) of every file of a level's rows, their two JSON files included."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir())}


def check_row_files(folder: Path, sha256: Mapping[str, str]) -> None:
    """None; a ValueError where a file of a level's rows is absent, or not the one that was written."""
    for name, wanted in sha256.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing. {WAY_OUT}")
        if hash_file(folder / name) != wanted:  # before Arrow reads it: it trusts what it reads
            raise ValueError(f"{folder / name} is not the file that was written: its SHA-256 differs. {WAY_OUT}")


def vector_blocks(rows: datasets.Dataset) -> list[np.ndarray]:
    """The embeddings of all rows in order, each block (b, D) float32, as they lie in the mapped files."""
    blocks = []
    for chunk in rows.data.column(EMBEDDING).chunks:
        if len(chunk):
            blocks.append(chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1))
    return blocks


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of search.json, checked as far as searching needs it; a ValueError where it is absent or damaged."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        hint = f"{folder}.partial is there: run the same `regionmed-search index` again, it goes on"
        if not folder.with_name(folder.name + ".partial").is_dir():
            hint = "make one with `regionmed-search index`"
        raise ValueError(f"{str(folder)!r} holds no finished index: it has no {MANIFEST_NAME}; {hint}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        is_whole = found != FORMAT or (
            _is_count(manifest["width"])
            and manifest["width"] > 0
            and isinstance(manifest["model"], dict)
            and all(_is_level(manifest["levels"][level], level) for level in LEVELS)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). {WAY_OUT}") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT}. Make the index anew.")
    if not is_whole:
        raise ValueError(f"{path} is damaged: an entry is of another type, kind or file. {WAY_OUT}")
    return manifest


def _is_level(entry: Mapping[str, Any], level: str) -> bool:
    """Whether this is what the manifest says of a level; a KeyError or TypeError where it is nothing like it."""
    hashes = entry["rows_sha256"]
    return (
        _is_count(entry["num_rows"])
        and entry["kind"] in (EXACT, GRAPH)
        and entry.get("file", f"{level}.faiss") == f"{level}.faiss"
        and isinstance(entry["sha256"], str)
        and all(isinstance(value, str) and "/" not in name for name, value in hashes.items())
        and (not entry["num_rows"] or set(hashes) > {"state.json", "dataset_info.json"})
    )


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
