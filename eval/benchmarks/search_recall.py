"""What an index finds of what looking at all rows finds, and what either costs: HNSW and IVF against exact search.

`OMP_NUM_THREADS=1 python -m regionmed_clip.eval.benchmarks.search_recall --model runs/quickstart/final [--output FILE]`
(6 minutes)

An index of --data is made as `regionmed-search index` makes it, and asked by the regions of --queries, which it does
not hold, and by their texts. Processor time, one thread, one query at a time, all forms by turns; a form's time is the
median over rounds of its share of the exact search's in the same round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from regionmed_clip.eval.benchmarks.measure import median_ratio, write_report
from regionmed_clip.eval.benchmarks.origin import describe_origin
from regionmed_clip.eval.intervals import proportion_interval
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.search.building import IndexSettings, build_index
from regionmed_clip.eval.search.corpus_rows import EMBEDDING, REGIONS, CorpusImages, embed_rows
from regionmed_clip.eval.search.neighbours import (
    EXACT,
    GRAPH,
    RECALL_AT,
    are_neighbours,
    build,
    import_faiss,
    search_exactly,
)
from regionmed_clip.eval.search.queries import Searcher
from regionmed_clip.eval.search.search_index import SearchIndex, vector_blocks
from regionmed_clip.eval.tasks.embedding import embed_texts

MODULE = "regionmed_clip.eval.benchmarks.search_recall"
DATA = "phantom:num_test=13400,num_train=1"
QUERIES = "phantom:num_test=320,num_train=1,seed=1"
SEARCH_WIDTHS, LISTS_LOOKED_AT = (16, 32, 64), (1, 8)
NUM_LISTS, ROWS_PER_LIST = 256, 39  # FAISS wants as many rows to train a list on
WHOLE_QUERIES = 15  # of each kind, through `Searcher`
Answer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Form:
    """A way to search: `answer` gives (Q, k) cosines and rows of queries (Q, D)."""

    kind: str
    setting: dict[str, int]
    build_s: float
    answer: Callable[[np.ndarray], Answer]


@dataclass(frozen=True)
class Queries:
    """(Q, D) float32 of unit length, and what stands together: (Q,) the image of a region; None: each for itself."""

    vectors: np.ndarray
    clusters: np.ndarray | None


def main() -> None:
    """Runs the benchmark and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--queries", default=QUERIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_faiss().omp_set_num_threads(1)
    origin = describe_origin(f"OMP_NUM_THREADS=1 python -m {MODULE}", sys.argv[1:], load_model(options.model)[0])
    write_report(options.output, origin | run(options.model, options.data, options.queries, options.rounds))


def run(model_folder: str | Path, data: str, query_data: str, rounds: int) -> dict[str, Any]:
    """The report: of every form recall@10 with its interval and its time relative to exact; what making it all took."""
    model, processor = load_model(model_folder)
    with tempfile.TemporaryDirectory(prefix="search-recall-") as work:
        started_at = time.process_time()
        folder = Path(work) / "index"
        manifest = build_index(IndexSettings(model=model_folder, data=data, output=folder, kind=GRAPH, device="cpu"))
        making_s = time.process_time() - started_at
        index = SearchIndex(folder)
        blocks = vector_blocks(index.rows(REGIONS))
        queries, corpus, costs = _embed_queries(model, processor, query_data)
        report = {
            "data_revision": f"{manifest['data']['revision']}, split {manifest['data']['split']}",
            "queries_revision": f"{corpus.revision}, split {corpus.split}",
            "num_rows": index.num_rows(REGIONS),
            "width": index.width,
            "num_queries": {kind: len(asked.vectors) for kind, asked in queries.items()},
            "tuned_search_width": manifest["levels"][REGIONS]["search_width"],
            "forms": _compare(_forms(blocks), queries, rounds),
            "whole_query_ms": _time_whole_queries(Searcher(index, model, processor), corpus),
            "making": {"num_images": manifest["data"]["num_images"], "processor_s": round(making_s, 1), **costs},
        }
    return report


def _embed_queries(model: Any, processor: Any, data: str) -> tuple[dict[str, Queries], CorpusImages, dict[str, float]]:
    """Regions and their texts as queries, where they are from, and milliseconds an image to draw and to embed."""
    corpus = CorpusImages(data, "test")
    started_at = time.process_time()
    records = list(corpus.records(0, corpus.num_images))
    drawn_at = time.process_time()
    rows = embed_rows(model, processor, iter(records), 0, batch_size=64, device="cpu")[REGIONS]
    taken_s = {"read": drawn_at - started_at, "embed": time.process_time() - drawn_at}
    vectors = np.stack([np.asarray(row[EMBEDDING], dtype=np.float32) for row in rows])
    texts = embed_texts(model, processor, sorted({row["description"] for row in rows}))
    queries = {
        "regions": Queries(vectors, np.array([row["image_row"] for row in rows])),
        "texts": Queries(texts, None),
    }
    return queries, corpus, {f"{name}_ms_per_image": round(1000 * s / len(records), 2) for name, s in taken_s.items()}


def _forms(blocks: Sequence[np.ndarray]) -> list[Form]:
    """Exact search first, then HNSW and IVF at several widths, each kind built once."""
    faiss = import_faiss()
    width = blocks[0].shape[1]
    forms = [Form(EXACT, {}, 0.0, lambda asked: search_exactly(blocks, asked, RECALL_AT))]
    started_at = time.process_time()
    graph = build(blocks, width, GRAPH)
    build_s = round(time.process_time() - started_at, 2)
    for search_width in SEARCH_WIDTHS:
        chosen = faiss.SearchParametersHNSW(efSearch=search_width)
        forms.append(Form(GRAPH, {"search_width": search_width}, build_s, _searching(graph, chosen)))
    started_at = time.process_time()
    rows = np.concatenate(blocks)
    num_lists = max(1, min(NUM_LISTS, len(rows) // ROWS_PER_LIST))
    lists = faiss.index_factory(width, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(rows)
    lists.add(rows)
    build_s = round(time.process_time() - started_at, 2)
    for number in sorted({min(number, num_lists) for number in LISTS_LOOKED_AT}):
        setting = {"num_lists": num_lists, "lists_looked_at": number}
        forms.append(Form("ivf", setting, build_s, _searching(lists, faiss.SearchParametersIVF(nprobe=number))))
    return forms


def _searching(index: Any, chosen: Any) -> Callable[[np.ndarray], Answer]:
    return lambda asked: index.search(asked, RECALL_AT, params=chosen)


def _compare(forms: Sequence[Form], queries: dict[str, Queries], rounds: int) -> list[dict[str, Any]]:
    """Of every form {"kind", its setting, "build_s", "recall@10", "relative_time", "ms_per_query"}, exact first."""
    single = [vector[None] for asked in queries.values() for vector in asked.vectors]
    seconds: list[list[float]] = [[] for _ in forms]
    for number in tqdm(range(rounds + 1), desc="search", unit="round"):
        for form, taken in zip(forms, seconds, strict=True):
            started_at = time.process_time()
            for vector in single:
                form.answer(vector)
            if number:  # the first round warms up
                taken.append(time.process_time() - started_at)
    exact = {kind: forms[0].answer(asked.vectors)[0] for kind, asked in queries.items()}
    found = []
    for form, taken in zip(forms, seconds, strict=True):
        recalls = {kind: _recall(exact[kind], form.answer(asked.vectors), asked) for kind, asked in queries.items()}
        figures = {
            f"recall@{RECALL_AT}": recalls,
            "relative_time": round(median_ratio(taken, seconds[0]), 4),
            "ms_per_query": round(1000 * median(taken) / len(single), 4),
        }
        found.append({"kind": form.kind, **form.setting, "build_s": form.build_s, **figures})
    return found


def _recall(exact_scores: np.ndarray, answer: Answer, asked: Queries) -> dict[str, float]:
    """{"value", "low", "high", "n"}: share of the exact neighbours that were found; n counts queries."""
    is_found = are_neighbours(exact_scores, *answer)
    num_queries, k = is_found.shape
    clusters = np.arange(num_queries) if asked.clusters is None else asked.clusters
    low, high = proportion_interval(is_found.ravel(), np.repeat(clusters, k))
    values = {"value": is_found.mean(), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()} | {"n": num_queries}


def _time_whole_queries(searcher: Searcher, corpus: CorpusImages) -> dict[str, float]:
    """Kind of query -> median milliseconds of processor time through `Searcher`, model included."""
    record = next(record for record in corpus.records(0, corpus.num_images) if record.regions)
    image, box = Image.open(BytesIO(record.image)), record.regions[0].box
    text = searcher.index.row(REGIONS, 0)["description"]
    kinds: dict[str, dict[str, Any]] = {"image": {"image": image}, "box": {"image": image, "box": box}}
    kinds |= {"text": {"text": text}, "box and text": {"image": image, "box": box, "text": text}}
    found = {}
    for name, asked in kinds.items():
        taken = []
        for number in range(WHOLE_QUERIES + 1):
            started_at = time.process_time()
            searcher.search(**asked)
            if number:
                taken.append(time.process_time() - started_at)
        found[name] = round(1000 * median(taken), 1)
    return found


if __name__ == "__main__":
    main()
