"""The nearest rows to a query by cosine: exactly, by looking at all, or by a FAISS graph that looks at few.

The graph (HNSW, arXiv:1603.09320) is tuned when it is built: its search is made wider until what it finds agrees with
the exact answer for rows of the index and for texts, which lie further from the rows than these from each other.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXACT, GRAPH = "exact", "hnsw"
KINDS = ("auto", EXACT, GRAPH)
MIN_GRAPH_ROWS = 5_000  # below, looking at all takes under a millisecond
LINKS_PER_ROW, BUILD_WIDTH = 32, 200  # HNSW's M and efConstruction
SEARCH_WIDTHS = (32, 64, 128, 256, 512, 1024)  # efSearch, narrowest first
TARGET_RECALL, RECALL_AT = 0.99, 10
TIE = 1e-6  # cosines closer than that are equal: another order of additions tells them apart no better
ROWS_AT_ONCE = 16_384
WAY_OUT = "Copy the index folder again, or make it anew with `regionmed-search index`."
Blocks = Sequence[np.ndarray]


def import_faiss() -> Any:
    """The module; a ValueError says what to install where it is absent."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            f"search needs FAISS, which cannot be imported ({error}): pip install faiss-cpu, or in a checkout "
            'pip install -e ".[search]".'
        ) from error
    return faiss


def search_exactly(
    blocks: Blocks, queries: np.ndarray, k: int, is_allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, n) float32 cosines, best first, and (Q, n) int64 rows; n <= k, fewer where there are fewer rows.

    Args:
        blocks: the rows' embeddings one after the other, each (b, D) float32 of unit length.
        queries: (Q, D) float32 of unit length.
        is_allowed: (N,) bool, the rows that may be found; None: all.
    """
    found = [_best(np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64), k)]
    first = 0
    for block in _pieces(blocks):
        rows = np.arange(first, first + len(block))
        first += len(block)
        if is_allowed is not None:
            kept = is_allowed[rows]
            block, rows = block[kept], rows[kept]
        scores = queries @ block.T
        found.append(_best(scores, np.broadcast_to(rows, scores.shape), k))
        joined = [np.concatenate(parts, axis=1) for parts in zip(*found)]
        found = [_best(joined[0], joined[1], k)]
    return found[0]


def build(blocks: Blocks, width: int, kind: str) -> Any:
    """A FAISS index of the rows by inner product: "exact" or "hnsw"."""
    faiss = import_faiss()
    if kind == EXACT:
        index = faiss.IndexFlatIP(width)
    else:
        index = faiss.IndexHNSWFlat(width, LINKS_PER_ROW, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_WIDTH
    for block in _pieces(blocks):
        index.add(np.ascontiguousarray(block))
    return index


def tune(index: Any, blocks: Blocks, queries: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """What was measured at each search width, narrowest first; the graph keeps the first that reaches TARGET_RECALL.

    An entry: "search_width"; "ms_per_query"; "recall@10" by the kind of query. The last reaches the target, or is the
    widest.

    Args:
        queries: kind -> (Q, D) float32 of unit length.
    """
    asked = {kind: vectors for kind, vectors in queries.items() if len(vectors)}
    exact = {kind: search_exactly(blocks, vectors, RECALL_AT) for kind, vectors in asked.items()}
    measured: list[dict[str, Any]] = []
    for width in SEARCH_WIDTHS:
        index.hnsw.efSearch = width
        recalls, started = {}, time.perf_counter()
        answers = {kind: index.search(vectors, RECALL_AT) for kind, vectors in asked.items()}
        elapsed_s = time.perf_counter() - started
        for kind, (scores, rows) in answers.items():
            recalls[kind] = round(recall_of(exact[kind][0], scores, rows), 4)
        num_queries = sum(map(len, asked.values()))
        ms_per_query = round(1000 * elapsed_s / num_queries, 3)
        measured.append({"search_width": width, "ms_per_query": ms_per_query, f"recall@{RECALL_AT}": recalls})
        if min(recalls.values()) >= TARGET_RECALL:
            break
    return measured


def recall_of(exact_scores: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> float:
    """Mean share of the exact neighbours that were found; arguments as of `are_neighbours`."""
    return float(are_neighbours(exact_scores, scores, rows).mean())


def are_neighbours(exact_scores: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(Q, k) bool: which of what was found is one of the exact neighbours, or as near as the furthest of them.

    Args:
        exact_scores: (Q, k) cosines of the exact neighbours, best first.
        scores, rows: (Q, k) what was found; row -1: nothing.
    """
    return ((scores >= exact_scores[:, -1:] - TIE) & (rows >= 0))[:, : exact_scores.shape[1]]


def search_graph(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) cosines and rows by the graph, its search at least twice as wide as what is asked for; row -1: nothing."""
    faiss = import_faiss()
    width = max(index.hnsw.efSearch, 2 * k)
    return index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=width))


def write_index(index: Any, path: Path) -> str:
    """The SHA-256 (hex) of the file, after writing it in FAISS's own format."""
    import_faiss().write_index(index, str(path))
    return hash_file(path)


def read_index(path: Path, *, sha256: str, num_rows: int, width: int) -> Any:
    """The FAISS index of a file.

    Raises:
        ValueError: the file is absent, is not the one that was written, or holds other rows.
    """
    faiss = import_faiss()
    if not path.is_file():
        raise ValueError(f"{path} is missing; an index has one file for each level. {WAY_OUT}")
    if hash_file(path) != sha256:  # before FAISS reads it: it trusts what it reads
        raise ValueError(f"{path} is not the file that was written: its SHA-256 differs. {WAY_OUT}")
    index = faiss.read_index(str(path))
    if (index.ntotal, index.d) != (num_rows, width):
        raise ValueError(
            f"{path} holds {index.ntotal} rows of {index.d} numbers; the rows beside it are {num_rows} of {width}. "
            f"{WAY_OUT}"
        )
    return index


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(blocks: Blocks) -> Iterator[np.ndarray]:
    """The same rows, at most ROWS_AT_ONCE at a time."""
    for block in blocks:
        for start in range(0, len(block), ROWS_AT_ONCE):
            yield block[start : start + ROWS_AT_ONCE]


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The at most k best of each line, best first, of equals the earlier row first."""
    if scores.shape[1] > k:
        kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
