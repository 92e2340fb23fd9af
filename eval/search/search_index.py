"""A finished index, opened for reading: its rows as `datasets`, memory-mapped, and what finds the nearest of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as compute

from regionmed_clip.eval.search.corpus_rows import EMBEDDING, LEVELS, features_of
from regionmed_clip.eval.search.neighbours import GRAPH, read_index, search_exactly, search_graph

MANIFEST_NAME = "search.json"
FORMAT = 1
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
        """The rows of a level, with the column "embedding"; nothing is read before it is asked for.

        Raises:
            ValueError: they cannot be read, or are not as many as search.json says.
        """
        if level not in self._rows:
            number = self.num_rows(level)
            if not number:
                return datasets.Dataset.from_list([], features=features_of(level, self.width))
            try:
                rows = datasets.load_from_disk(str(self.folder / level))
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.folder / level} cannot be read ({error}). Copy the index folder again, or make it anew."
                ) from error
            if len(rows) != number:
                raise ValueError(
                    f"{self.folder / level} holds {len(rows)} rows; {MANIFEST_NAME} says {number}. Copy the index "
                    "folder again, or make it anew."
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
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; it must be a whole number of at least 1.")
        num_rows = self.num_rows(level)
        if not num_rows:
            other = next(name for name in LEVELS if name != level)
            raise ValueError(f"the index in {self.folder} has no {level}; search among its {other}.")
        k = min(k, num_rows)
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
            ValueError: a column that is no filter of this level, or a value that no row has.
        """
        if not where:
            return None
        is_allowed = np.ones(self.num_rows(level), dtype=bool)
        for name, value in where.items():
            if name not in FILTERS[level]:
                raise ValueError(
                    f"{level} cannot be narrowed by {name!r}; they can by {', '.join(FILTERS[level])}. Choose one."
                )
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
            self._graphs[level] = read_index(
                self.folder / f"{level}.faiss", sha256=entry["sha256"], num_rows=entry["num_rows"], width=self.width
            )
        return self._graphs[level]


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
            manifest["width"] > 0
            and isinstance(manifest["model"], dict)
            and all(isinstance(manifest["levels"][level][name], kind) for level in LEVELS for name, kind in _ENTRIES)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). Copy the index folder again, or make it anew.") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT}. Make the index anew.")
    if not is_whole:
        raise ValueError(f"{path} is damaged: an entry has another type. Copy the index folder again.")
    return manifest


_ENTRIES = (("num_rows", int), ("kind", str), ("sha256", str))
