"""Tables of measured figures: each cell is what its file says."""

from __future__ import annotations

import json

import pytest

from regionmed_clip.model_cards.export.export_figures import summarize
from regionmed_clip.model_cards.measured_tables import TABLES, render_measured
from regionmed_clip.model_cards.readme import DOCUMENTS, MEASURED_BLOCK, render_document

ORIGIN = {
    "command": "python measure.py", "model_revision": "abc", "seed": 0, "hardware": "2 cores", "load_at_start": 0.25,
    "data_revision": "d@1",
}  # fmt: skip


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_every_measured_file_is_shown_in_some_document_and_has_a_table(repository):
    shown = [
        match["file"]
        for name in DOCUMENTS
        for match in MEASURED_BLOCK.finditer((repository / name).read_text(encoding="utf-8"))
    ]
    published = {path.name for path in (repository / "model_cards" / "results" / "measured").glob("*.json")}
    assert sorted(shown) == sorted(published) == sorted(TABLES)


def test_search_shows_recall_with_intervals_and_time_as_a_share_of_exact():
    recall = {"value": 0.9961, "low": 0.99, "high": 0.999, "n": 467}
    both = {"regions": recall, "texts": {**recall, "value": 0.974, "low": 0.95, "high": 0.98, "n": 122}}
    exact = {"kind": "exact", "build_s": 0.0, "recall@10": both, "relative_time": 1.0, "ms_per_query": 1.5}
    graph = {**exact, "kind": "hnsw", "search_width": 32, "build_s": 2.04, "relative_time": 0.0125}
    lists = {**graph, "kind": "ivf", "num_lists": 256, "lists_looked_at": 8}
    figures = {
        **ORIGIN, "queries_revision": "d@2", "num_rows": 20_306, "width": 128,
        "num_queries": {"regions": 467, "texts": 122},
        "tuned_search_width": 32, "forms": [exact, graph, {**graph, "search_width": 64}, lists],
        "whole_query_ms": {"image": 6.0, "text": 3.1},
        "making": {"num_images": 13_400, "processor_s": 103.4, "read_ms_per_image": 4.2, "embed_ms_per_image": 2.5},
    }  # fmt: skip
    text = render_measured("search.json", figures)
    assert rows_of(text)[2:] == [
        "| looking at all: exact | 1 | 1 | 1 (1.5 ms) | - |",
        "| HNSW, search width 32, which the tuning chose | 0.996 [0.990, 0.999] | 0.974 [0.950, 0.980] | 0.013 | 2.0 |",
        "| HNSW, search width 64 | 0.996 [0.990, 0.999] | 0.974 [0.950, 0.980] | 0.013 | 2.0 |",
        "| IVF of 256 lists, 8 looked at | 0.996 [0.990, 0.999] | 0.974 [0.950, 0.980] | 0.013 | 2.0 |",
    ]
    assert "asked by 467 regions | by 122 texts" in text
    assert "took 6 by image, 3.1 by text (median ms)" in text
    assert "13,400 images took 103 s" in text
    assert "Command: `python measure.py`. Weights abc. Data: d@1, seed 0. 2 cores, load average 0.25" in text


def test_exports_are_summed_up_by_their_worst_parity_and_all_speeds():
    path = {
        "largest_difference": {"image_embeds": 2e-7}, "bytes": 3_900_000, "batch": 8,
        "int8": {"bytes": 1_500_000, "cosine": {"image_embeds": {"least": 0.9998, "mean": 0.9999}}},
        "times_as_fast_as_eager": {"onnx": 1.4, "int8": 2.4},
    }  # fmt: skip
    inputs = {"source": "d@1", "images": 32, "texts": 79, "regions": 57}
    report = {
        "inputs": inputs,
        "threads": 1,
        "paths": {"image": path},
        "preprocessing": {"largest_pixel_difference": 0.0},
    }
    worse = {**path, "largest_difference": {"image_embeds": 3e-7}, "times_as_fast_as_eager": {"onnx": 1.2}}
    worse["int8"] = {"bytes": 1_500_000, "cosine": {"image_embeds": {"least": 0.98, "mean": 0.9999}}}
    figures = ORIGIN | summarize([report, {**report, "paths": {"image": worse}}])
    text = render_measured("export.json", figures)
    assert rows_of(text)[2] == "| `image` | 3.0e-07 | 0.9800 | 1.3 (1.2, 1.4) | 2.4 (2.4, 2.4) | 3.9, 1.5 |"
    assert "32 images, 57 regions, 79 texts" in text
    never = summarize([{**report, "paths": {"image": worse}}])
    assert "| left out |" in render_measured("export.json", ORIGIN | never)


def test_serving_shows_how_many_refusals_took_too_long():
    good = {"n": 505, "p50_ms": 16.2, "p95_ms": 31.0, "max_ms": 50.4}
    bad = {"n": 495, "p50_ms": 4.1, "p95_ms": 10.0, "max_ms": 62.0, "within_50_ms": 494}
    run = {"requests": 1000, "clients": 4, "memory_mb": [428.0, 429.4], "wrong": [], "good": good, "bad": bad}
    text = render_measured("handler_load.json", ORIGIN | {"runs": [run]})
    assert rows_of(text)[2] == "| 4 | 0 of 1,000 | 16, 31, 50 ms | 4, 10, 62 ms | 494 of 495 | 428, 429 MiB |"


def test_a_measured_block_is_filled_and_an_unknown_one_is_refused(tmp_path):
    (tmp_path / "measured").mkdir()
    figures = json.dumps(ORIGIN | {"runs": []})
    for name in ("handler_load.json", "other.json"):
        (tmp_path / "measured" / name).write_text(figures)
    block = "before\n<!-- measured: {} -->\nold\n<!-- end of measured -->\nafter\n"
    filled = render_document(block.format("handler_load.json"), tmp_path)
    assert "| clients |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert render_document(filled, tmp_path) == filled
    with pytest.raises(ValueError, match=r"no table is known for 'other\.json'"):
        render_document(block.format("other.json"), tmp_path)
