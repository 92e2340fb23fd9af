"""The model-index holds this model's own figures of whole splits, and huggingface_hub reads it back."""

from __future__ import annotations

import dataclasses

import yaml
from huggingface_hub import ModelCard

from regionmed_clip.model_cards.model_index import data_title, eval_results
from regionmed_clip.model_cards.render import check_card, render_card


def test_only_computed_figures_of_this_model_on_the_whole_split_are_listed(results):
    (entry,) = eval_results(results, "regionmed-clip")
    assert (entry.task_type, entry.metric_type, entry.metric_value) == (
        "region-classification",
        "region_to_text_accuracy",
        0.8125,
    )
    assert entry.metric_name == "region → text, top-1; 95 % interval 0.789 to 0.834, n = 1,534"
    assert (entry.dataset_type, entry.dataset_name) == ("phantom", "phantom (pictures drawn by a program)")
    assert (entry.dataset_split, entry.dataset_revision) == ("test", "phantom@1:difficulty=0.5")


def test_another_model_of_the_same_results_can_be_the_one_that_is_published(results):
    (entry,) = eval_results(results, "plain-clip")
    assert entry.metric_value == 0.4123
    assert eval_results(results, "absent") == []


def test_a_figure_that_is_better_when_lower_says_so(make_result):
    (entry,) = eval_results([make_result(metric="region_median_cosine")], "regionmed-clip")
    assert entry.metric_name.startswith("two boxes, one image: median cosine (lower is better); 95 %")


def test_the_tasks_are_those_of_the_hub_where_it_has_them(make_result):
    tasks = ("zero_shot", "vqa", "proposals", "retrieval", "probe")
    found = eval_results([make_result(task=task, metric=f"m{i}") for i, task in enumerate(tasks)], "regionmed-clip")
    assert [entry.task_type for entry in found] == [
        "zero-shot-image-classification",
        "visual-question-answering",
        "object-detection",
        "image-text-retrieval",
        "probe",
    ]


def test_data_are_named_without_their_revisions():
    assert data_title("bccd@86d7+ct_ich@d3a3") == "bccd, ct_ich"
    assert data_title("(bccd@86d7)*2 + (phantom@v1:seed=0)*1") == "bccd, phantom (pictures drawn by a program)"
    assert data_title("one") == "one"


def test_the_card_reads_back_as_the_same_figures(results):
    results = [*results, dataclasses.replace(results[0], task="zero_shot", metric="macro_auroc", value=0.61)]
    card = render_card(results, {"model_name": "Ours: v1"})
    check_card(card, results)
    data = ModelCard(card).data
    assert data.model_name == "Ours: v1"
    assert {(r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("region_to_text_accuracy", 0.8125),
        ("macro_auroc", 0.61),
    }


def test_without_a_figure_there_is_no_model_index():
    assert "model-index" not in yaml.safe_load(render_card([], {}).split("---\n")[1])
