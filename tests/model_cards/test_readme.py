"""The published tables are what their result files say, and nothing else in the document changes."""

import json
from dataclasses import replace

import pytest

from regionmed_clip.eval.results import Result, write_results
from regionmed_clip.model_cards.readme import BLOCK, DOCUMENTS, render_document

RESULT = Result(
    model="regionmed-clip", task="region", metric="region_to_text_accuracy", value=0.8125, low=0.75, high=0.875, n=16,
    source=None, stratum=None, protocol={
        "gallery": 4, "unique_texts": 4, "split": "test", "split_sha256": "a" * 64, "prompts_sha256": None
    },
    model_revision="m", data_revision="d@1", seed=0, hardware="2 cores", command="train",
)  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_show_what_their_result_files_say(repository, name):
    text = (repository / name).read_text(encoding="utf-8")
    assert render_document(text) == text, "run `make cards`"


def test_every_published_result_file_is_shown_in_some_document(repository):
    shown = {match["file"] for name in DOCUMENTS for match in BLOCK.finditer((repository / name).read_text("utf-8"))}
    assert shown == {path.name for path in (repository / "model_cards" / "results").glob("*.json")}


@pytest.mark.parametrize("name", ["quickstart.json", "proposals.json"])
def test_the_published_models_tell_two_boxes_of_one_image_apart(repository, name):
    """The guarantee of DESIGN.md section 3 that only a trained model can keep, as it was measured last."""
    rows = json.loads((repository / "model_cards" / "results" / name).read_text(encoding="utf-8"))
    cosines = [
        row["value"] for row in rows
        if (row["model"], row["metric"], row["source"]) == ("regionmed-clip", "region_median_cosine", None)
    ]  # fmt: skip
    assert len(cosines) == 1
    assert cosines[0] <= 0.6


def test_a_block_is_filled_and_the_rest_is_left_alone(tmp_path):
    write_results(tmp_path / "a.json", [RESULT])
    text = "before\n<!-- results: a.json -->\nold\n<!-- end of results -->\nafter\n"
    filled = render_document(text, tmp_path)
    assert "0.812 [0.750, 0.875]" in filled
    assert "d@1" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert render_document(filled, tmp_path) == filled


def test_a_block_may_show_some_metrics_only_and_names_one_that_is_not_there(tmp_path):
    auroc = replace(RESULT, metric="macro_auroc", value=0.25, low=0.125, high=0.375)
    of_kind = replace(auroc, stratum="kind closed", value=0.0625, low=0.0, high=0.5)
    write_results(tmp_path / "a.json", [RESULT, auroc, of_kind])
    block = "<!-- results: a.json only {} -->\n<!-- end of results -->\n"
    shown = render_document(block.format("macro_auroc"), tmp_path)
    assert "0.250 [0.125, 0.375]" in shown
    assert "0.812" not in shown
    assert "0.062" not in shown
    with pytest.raises(ValueError, match="no result has the metric 'mean_iou'"):
        render_document(block.format("macro_auroc mean_iou"), tmp_path)


def test_a_study_of_many_arms_has_its_arms_as_rows(tmp_path):
    protocol = {**RESULT.protocol, "seeds": [0, 1]}
    difference = {"model": "joint minus default", "value": 0.0625, "low": -0.1, "high": 0.2}
    per_source = replace(RESULT, model="default", protocol=protocol, source="bccd", value=0.5, low=0.5, high=0.5)
    named = [replace(RESULT, protocol=protocol, model=name) for name in ("default", "joint")]
    auroc = replace(named[0], metric="macro_auroc", value=0.75, low=0.7, high=0.8, n=9)
    auroc = replace(auroc, protocol={**protocol, "chance": 0.5})
    write_results(tmp_path / "a.json", [*named, auroc, replace(named[0], **difference), per_source])
    text = render_document("<!-- results: a.json arms -->\n<!-- end of results -->\n", tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| arm | region → text, top-1 | zero-shot finding, macro AUROC |",
        "| --- | ---: | ---: |",
        "| default | 0.812 [0.750, 0.875] | 0.750 [0.700, 0.800] |",
        "| joint | 0.812 [0.750, 0.875] | - |",
        "| joint minus default | +0.062 [-0.100, +0.200] | - |",
        "| n | 16 | 9 |",
        "| chance | - | 0.500 |",
    ]
    assert "Means over the seeds 0, 1." in text
    assert render_document(text, tmp_path) == text
