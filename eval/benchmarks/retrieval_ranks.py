"""What ranking a gallery costs, in time and in memory beside the embeddings, at several sizes, against a full matrix.

`python -m regionmed_clip.eval.benchmarks.retrieval_ranks [--galleries 50000 100000] [--peer-galleries 10000]
[--extrapolate 500000] [--width 512] [--output FILE]` (3 minutes)

As many queries as gallery items, unit vectors in float32, one positive each; one thread; each form in a process of its
own. Time is processor time above that of a process which merely makes the embeddings; memory is the peak above that
process's peak. The peer is the form usually written: the whole matrix of scores, and the positives beside it. Memory
that does not grow with the gallery is the claim; time grows with its square, and the largest size is multiplied up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from regionmed_clip.eval.benchmarks.measure import Cost, measure_module, write_report
from regionmed_clip.eval.metrics.ranking import ranks_of_first_positive

MODULE = "regionmed_clip.eval.benchmarks.retrieval_ranks"
NOTHING, BLOCKS, PEER = "embeddings alone", "blocks", "full matrix"
NOISE = 3.0  # of a query about its text, in lengths: hard enough that ranks differ
Ranks = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    """Runs the benchmark and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--galleries", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--peer-galleries", type=int, nargs="*", default=[10_000])
    parser.add_argument("--extrapolate", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=[NOTHING, BLOCKS, PEER], help="run one form once, as it is measured")
    options = parser.parse_args()
    if options.only is not None:
        step(options.only, options.galleries[0], options.width)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are measured
    write_report(options.output, run(options.galleries, options.peer_galleries, options.extrapolate, options.width))


def run(galleries: Sequence[int], peer_galleries: Sequence[int], extrapolate: int, width: int) -> dict[str, Any]:
    """The report: cost by form and gallery, how the memory grows from first to last, and the time at a larger one."""
    wanted = [(BLOCKS, size) for size in galleries] + [(f, size) for size in peer_galleries for f in (BLOCKS, PEER)]
    costs: dict[tuple[str, int], dict[str, float]] = {}
    for form, size in tqdm(sorted(set(wanted), key=lambda pair: pair[1]), desc="retrieval ranks", unit="form"):
        costs[form, size] = cost(form, size, width)
    first, last = costs[BLOCKS, min(galleries)], costs[BLOCKS, max(galleries)]
    grown = (extrapolate / max(galleries)) ** 2
    return {
        "width": width,
        "costs": {f"{form}, {size}": values for (form, size), values in costs.items()},
        "peak_of_largest_over_smallest": round(last["peak_mb"] / first["peak_mb"], 3),
        "time_of_largest_over_smallest": round(last["cpu_s"] / first["cpu_s"], 2),
        "extrapolated": {"gallery": extrapolate, "cpu_s": round(last["cpu_s"] * grown, 1)},
    }


def cost(form: str, size: int, width: int) -> dict[str, float]:
    """{"cpu_s", "peak_mb"} of a form above a process that only holds the embeddings; "embeddings_mb" beside."""

    def measured(name: str) -> Cost:
        return measure_module(MODULE, ["--only", name, "--galleries", str(size), "--width", str(width)])

    whole, alone = measured(form), measured(NOTHING)
    return {
        "cpu_s": round(whole.cpu_s - alone.cpu_s, 2),
        "peak_mb": round(whole.peak_mb - alone.peak_mb, 1),
        "embeddings_mb": round(2 * size * width * 4 / 1e6, 1),
    }


def step(form: str, size: int, width: int) -> None:
    """Nothing; makes the embeddings, and with a form also the ranks."""
    inputs = embeddings(size, width)
    if form == NOTHING:
        time.sleep(0.3)  # to be seen
        return
    FORMS[form](*inputs)


def embeddings(size: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Queries and gallery (size, width) float32 of unit length, then their keys (size,); query i wants text i."""
    generator = np.random.default_rng(0)
    sides = [np.empty((size, width), np.float32) for _ in ("queries", "texts")]
    for start in range(0, size, 1000):  # piece by piece: no peak of its own
        rows = slice(start, start + 1000)
        texts = generator.standard_normal(sides[1][rows].shape, dtype=np.float32)
        queries = texts + NOISE * generator.standard_normal(texts.shape, dtype=np.float32)
        for side, values in zip(sides, (queries, texts), strict=True):
            side[rows] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return *sides, np.arange(size), np.arange(size)


def full_matrix_ranks(
    query_embeds: np.ndarray, gallery_embeds: np.ndarray, query_keys: np.ndarray, gallery_keys: np.ndarray
) -> np.ndarray:
    """(Q,) int64: what `ranks_of_first_positive` gives but for ties, by one matrix (Q, G) of all scores."""
    scores = query_embeds @ gallery_embeds.T
    is_positive = query_keys[:, None] == gallery_keys
    best = np.where(is_positive, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~is_positive).sum(axis=1)


FORMS: dict[str, Ranks] = {BLOCKS: ranks_of_first_positive, PEER: full_matrix_ranks}


if __name__ == "__main__":
    main()
