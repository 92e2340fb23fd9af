"""The benchmark of search: every form against exact, recall with its interval, and where it all comes from."""

from __future__ import annotations

import pytest

pytest.importorskip("faiss", reason="pip install -e '.[search]'")

from regionmed_clip.eval.benchmarks.origin import describe_origin
from regionmed_clip.eval.benchmarks.search_recall import run
from regionmed_clip.eval.tasks.revision import weights_revision


@pytest.fixture(scope="module")
def report(model, processor, tmp_path_factory):
    """Takes about 5 s: sixty phantoms embedded, all forms asked by ten others."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return run(folder, "phantom:num_test=60,num_train=1", "phantom:num_test=10,num_train=1,seed=1", rounds=1)


def test_every_form_is_compared_with_exact_search_in_the_same_run(report):
    exact, *others = report["forms"]
    assert (exact["kind"], exact["relative_time"]) == ("exact", 1.0)
    assert exact["recall@10"]["regions"]["value"] == exact["recall@10"]["texts"]["value"] == 1.0
    assert [(form["kind"], form.get("search_width")) for form in others] == [
        ("hnsw", 16), ("hnsw", 32), ("hnsw", 64), ("ivf", None), ("ivf", None),
    ]  # fmt: skip
    assert others[-1]["lists_looked_at"] == others[-1]["num_lists"] > 1  # of so few rows, fewer lists than 8
    assert others[-1]["recall@10"]["regions"]["value"] == 1.0  # all lists are all rows
    assert all(form["relative_time"] > 0 for form in others)


def test_recall_has_its_interval_and_the_number_of_queries(report):
    for form in report["forms"]:
        for kind, recall in form["recall@10"].items():
            assert 0 <= recall["low"] <= recall["value"] <= recall["high"] <= 1
            assert recall["n"] == report["num_queries"][kind]
    assert report["forms"][3]["recall@10"]["regions"]["value"] == 1.0  # a graph of so few rows, walked widely


def test_the_report_names_both_data_and_what_making_the_index_took(report):
    assert report["data_revision"] == "phantom@phantom-v1:seed=0:difficulty=0.4, split test"
    assert report["queries_revision"] == "phantom@phantom-v1:seed=1:difficulty=0.4, split test"
    assert report["making"]["num_images"] == 60
    assert set(report["whole_query_ms"]) == {"image", "box", "text", "box and text"}


def test_the_origin_repeats_the_command_without_the_place_of_its_output(model):
    arguments = ["--model", "runs/a b", "--output", "x.json", "--rounds", "2"]
    origin = describe_origin("python -m here", arguments, model)
    assert origin["command"] == "python -m here --model 'runs/a b' --rounds 2"
    assert origin["model_revision"] == weights_revision(model)
    assert origin["seed"] == 0
