"""The card: sound YAML, the statements that must stand in it, and no number without a result."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from regionmed_clip.model_cards.card_facts import load_facts
from regionmed_clip.model_cards.card_metadata import split_card
from regionmed_clip.model_cards.render import check_card, render_card


def test_the_metadata_parses_and_names_library_task_and_licence(results):
    card = render_card(results, {})
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    assert metadata["license"] == "apache-2.0"
    assert {"custom_code", "medical"} <= set(metadata["tags"])


def test_the_metadata_satisfies_the_hub_library(results):
    from huggingface_hub import ModelCard

    card = ModelCard(render_card(results, {}))
    assert card.data.pipeline_tag == "zero-shot-image-classification"


def test_the_card_says_what_must_be_said(results):
    card = " ".join(render_card(results, {}).split())
    assert "**Not a medical device.**" in card
    assert "arXiv:2508.05244, which its authors withdrew; no code or weights of it exist, and only its abstract" in card
    assert "not clinical evidence" in card
    assert 'pipeline("zero-shot-image-classification"' in card


def test_without_phantom_data_the_phantom_note_is_absent(make_result):
    card = render_card([make_result(data_revision="jsonl@1", source="bccd")], {})
    assert "procedurally drawn" not in card


def test_every_figure_stands_with_interval_n_revision_and_seed(results):
    card = render_card(results, {})
    assert "0.812 [0.789, 0.834]" in card
    assert "1,534" in card
    assert "phantom@1:difficulty=0.5" in card
    assert "seed 7" in card
    assert "step-1250" in card
    assert "12 unique texts, fewer than 20" in card
    assert "dense_mean 0.301, crop 0.412" in card
    assert "(chance 0.071)" in card
    check_card(card, results)


def test_a_number_without_a_result_is_found(results):
    card = render_card(results, {})
    with pytest.raises(ValueError, match=r"shows 0\.912, which no result holds"):
        check_card(card.replace("0.812 [", "0.912 ["), results)
    with pytest.raises(ValueError, match=r"model-index has region_to_text_accuracy 0\.9125, which no result holds"):
        check_card(card.replace("value: 0.8125", "value: 0.9125"), results)


def test_a_number_in_the_title_of_a_figure_is_not_taken_for_a_result(results):
    results = [*results, dataclasses.replace(results[0], task="proposals", metric="proposal_recall")]
    card = render_card(results, {})
    assert "recall at IoU 0.5" in card
    check_card(card, results)


def test_broken_or_lacking_metadata_is_found(results):
    card = render_card(results, {})
    with pytest.raises(ValueError, match="does not begin with a YAML block"):
        check_card(card[4:], results)
    with pytest.raises(ValueError, match="YAML does not parse"):
        check_card(card.replace("license: apache-2.0", "license: [apache"), results)
    with pytest.raises(ValueError, match=r"lacks \['license'\]"):
        check_card(card.replace("license: apache-2.0\n", ""), results)


def test_facts_override_and_unknown_facts_are_refused(results):
    card = render_card(results, {"training": ["global: 600 steps"], "num_parameters": 2_345_678, "data": "Drawn data."})
    assert "- global: 600 steps" in card
    assert "Parameters: 2,345,678." in card
    with pytest.raises(ValueError, match=r"facts \['num_params'\] are not known"):
        render_card(results, {"num_params": 3})
    with pytest.raises(ValueError, match="facts 'absent' have no file"):
        load_facts("absent")


def test_a_card_without_results_says_so():
    assert "No results were recorded" in render_card([], {})


def test_the_whole_split_stands_first_and_sources_and_strata_behind_a_fold(results):
    evaluation = render_card(results, {}).partition("## Evaluation")[2].partition("## Limits")[0]
    open_part, folded = evaluation.split("<details>")
    assert "| region → text, top-1 | all |" in open_part
    assert "phantom: fundus photograph" not in open_part
    assert "| region → text, top-1 | phantom: fundus photograph |" in folded
    assert "\n\n| figure" in folded  # without the empty line the Hub shows the source of the table


def test_a_withdrawn_paper_is_not_linked_or_the_hub_would_tag_the_model_with_it(results):
    card = render_card(results, {"training_data": TRAINED})
    assert "arXiv:2508.05244" in card
    assert "arxiv.org" not in card.lower()
    assert not any(tag.startswith("arxiv") for tag in yaml.safe_load(card.split("---\n")[1])["tags"])


TRAINED = {
    "data": [
        {"kind": "corpus", "sources": [{"name": "chest|x", "license": "unknown"}, {"name": "b", "license": "MIT"}]}
    ],
    "start": {"name": "clip", "unknown": "start clip: the folder has no training_data.json", "data": []},
    "images": {"sha256": "0" * 64, "num_images": 12, "num_patients": 3, "sources": {"chest|x": 9, "b": 2, "c": 1}},
}


def test_the_training_data_stand_in_a_table_with_their_licences(results):
    card = render_card(results, {"training_data": TRAINED})
    assert "12 images with 3 patient ids." in card
    assert "| chest\\|x | 9 | unknown | not as far as we know |" in card
    assert "| b | 2 | MIT | yes |" in card
    assert "| c | 1 | not recorded | not known |" in card
    assert "The images of chest\\|x, c are not part of this repository" in " ".join(card.split())
    assert "**Not all training data are known**: start clip: the folder has no training_data.json." in card
    assert "Not recorded for these weights." in render_card(results, {}).partition("## Training data")[2]


def test_leaks_are_told_before_the_figures(make_result):
    leaked = make_result(protocol={"leaks": "3 of 48 test images are among 90 training images (3 by hash)"})
    card = render_card([leaked, make_result(model="plain-clip", protocol={"leaks": "of another model"})], {})
    told = (
        "**Read this first: test data seen in training: 3 of 48 test images are among 90 training images (3 by hash)**"
    )
    assert told in card
    assert card.index(told) < card.index("| figure |")
    assert "of another model" not in card


def test_a_smoke_run_says_so(make_result):
    card = render_card([make_result(protocol={"smoke": "30 steps"})], {})
    assert "**A smoke run (30 steps): it tells that everything runs, and nothing about a model.**" in card


@pytest.mark.parametrize(("seconds", "words"), [(46.2, "46 s"), (119.9, "120 s"), (600, "10 min"), (12240, "3.4 h")])
def test_the_cost_is_what_was_measured(results, seconds, words):
    card = " ".join(render_card(results, {"training_seconds": seconds, "training_hardware": "2 cores"}).split())
    assert f"The optimiser steps took {words} on 2 cores, as measured." in card
    assert "Energy and emissions were not measured, and no estimate is given." in card


def test_a_cost_that_is_not_known_is_not_guessed(results):
    cost = render_card(results, {}).partition("## Environmental cost")[2].partition("##")[0]
    assert "The time of the training was not recorded for these weights." in " ".join(cost.split())
    assert not any(character.isdigit() for character in cost)


def test_the_citation_is_that_of_the_project(results, repository):
    cited = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert load_facts()["citation"] == {"title": cited["title"], "author": cited["authors"][0]["name"]}
    card = render_card(results, {"repo_id": "lab/regionmed-clip"})
    assert f"title   = {{{cited['title']}}}," in card
    assert f"author  = {{{{{cited['authors'][0]['name']}}}}}," in card
    assert f"version = {{{cited['version']}}}," in card
    assert "url     = {https://huggingface.co/lab/regionmed-clip}," in card
    assert "url     =" not in render_card(results, {})


def test_the_table_of_samples_says_where_the_model_is_wrong(results):
    labels = ["Chest radiograph with a cavity.", "Chest radiograph with a mass.", "Normal chest radiograph."]
    output = [{"label": label, "score": score} for label, score in zip(labels, (0.5, 0.3, 0.2))]
    entry = {"src": "samples/a.png", "candidate_labels": ", ".join(labels), "output": output}
    wrong = {**entry, "src": "samples/b.png", "example_title": "Drawn chest radiograph: mass"}
    box = {"src": "samples/a.png", "box": [1, 2, 3, 4], "truth": "left mass", "best": "right mass", "score": 0.75}
    box |= {"num_texts": 9, "choices": ["left mass", "right mass"]}
    facts = {"widget": [{**entry, "example_title": "Drawn chest radiograph: cavity, mass"}, wrong]}
    card = render_card(results, {**facts, "region_examples": [box, {**box, "best": "left mass"}]})
    rows = [line for line in card.splitlines() if line.startswith("| ![")]
    assert "| ✓ Chest radiograph with a cavity. (0.500) |" in rows[0]
    assert "✗ left mass; said: right mass (0.750)<br>✓ left mass (0.750)" in rows[0]
    assert "| ✗ Chest radiograph with a cavity. (0.500) |" in rows[1]
    assert 'Image.open("samples/a.png")' in card
    assert "boxes = [(1, 2, 3, 4)]" in card
    check_card(card, results)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"limits": "none known"}, "fact 'limits' is 'none known'; it must be a list"),
        ({"license": None}, "fact 'license' is None; it must be a str"),
        ({"repo_id": "regionmed-clip"}, "it must be ORG/NAME"),
        ({"repo_id": 'lab/a"; x'}, "it must be ORG/NAME"),
        ({"citation": {}}, "fact 'citation' is {}; it must have title and author"),
        ({"citation": {"title": "T", "author": 3}}, "it must have title and author"),
        ({"training_seconds": "abc"}, "fact 'training_seconds' is 'abc'; it must be a int or float"),
        ({"training_data": "text"}, "fact 'training_data' is 'text'; it must be a dict"),
        ({"training_data": {"images": {"num_images": 3}, "data": ["chest"]}}, "not of the form that training writes"),
        ({"training_data": {"images": {"num_images": 3, "sources": [1]}}}, "not of the form that training writes"),
        ({"num_parameters": True}, "fact 'num_parameters' is True; it must be a int"),
        ({"intended_use": [{"a": "b"}]}, "fact 'intended_use' holds .*; each entry must be a str"),
        ({"model_name": "My\n---\n# Hacked"}, "fact 'model_name' is .*; it must be one line"),
        ({"evaluated_as": "nobody"}, "no results; the results are of colour-size-probe, plain-clip, regionmed-clip"),
    ],
)
def test_a_fact_of_another_kind_is_refused(results, facts, reason):
    with pytest.raises(ValueError, match=reason):
        render_card(results, facts)


def test_licences_of_weights_and_code_are_two_and_another_has_name_and_address():
    card = render_card([], {"license": "cc-by-nc-4.0", "language": ["en", "de"]})
    assert "Licence of the weights: cc-by-nc-4.0.\nLicence of the code: apache-2.0, see `code_license.txt`." in card
    assert split_card(card)[0]["language"] == ["en", "de"]
    check_card(card, [])
    other = {"license": "other", "license_name": "clinic-terms", "license_link": "https://clinic.org/terms"}
    card = render_card([], other)
    check_card(card, [])
    assert {key: split_card(card)[0][key] for key in other} == other
    assert "Licence of the weights: clinic-terms (https://clinic.org/terms)." in card
    assert "Licence of the code: apache-2.0, see `LICENSE`." in render_card([], {})
    with pytest.raises(ValueError, match="then license_name must name it"):
        check_card(render_card([], {"license": "other"}), [])


def test_facts_and_results_begin_no_html_and_no_heading(make_result):
    bad = "x <script>alert(1)</script>\n\n# Hacked"
    result = make_result(hardware=bad, metric="a|b<b>", command=f"`{bad}", protocol={"smoke": bad, "split": f"`{bad}"})
    facts = {"limits": [bad], "training": [bad], "data": "`<img src=x>", "citation": {"title": bad, "author": "a"}}
    card = render_card([result], facts)
    body = re.sub(r"`[^`\n]*`", "", split_card(card)[1])  # in code nothing is HTML
    assert "&lt;script>" in body
    assert not re.search(r"<(script|img|b>)", body)
    assert "\n# Hacked" not in body
    assert "| a\\|b&lt;b> | all |" in card
    check_card(card, [result], facts)


def test_what_a_card_must_say_is_asked_of_every_card(results):
    card = render_card(results, {})
    for words, reason in (
        ("**Not a medical device.**", "does not say 'Not a medical device'"),
        ("which its authors withdrew", "does not say 'arXiv:2508.05244, which its authors withdrew'"),
    ):
        assert words in card
        with pytest.raises(ValueError, match=reason):
            check_card(card.replace(words, ""), results)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r"interval\s+0\.789\s+to", "interval 0.001 to", "model-index is not that of the results"),
        (r"n\s+=\s+1,534", "n = 999,999", "model-index is not that of the results"),
        (r"model-index:\n[\s\S]*?\n---\n", "---\n", "model-index is not that of the results"),
        (r"\| 1,534 \|", "| 99,999 |", "a row that is no row of the results"),
        (r"\[0\.789, 0\.834\]", "[0.812, 0.834]", "a row that is no row of the results"),
    ],
)
def test_figures_changed_by_hand_are_refused(results, old, new, reason):
    card, number = re.subn(old, new, render_card(results, {}), count=1)
    assert number == 1
    with pytest.raises(ValueError, match=reason):
        check_card(card, results)


def test_a_model_whose_results_have_another_name_is_indexed_by_the_fact(make_result):
    results = [make_result(model="final")]
    card = render_card(results, {"evaluated_as": "final"})
    assert len(split_card(card)[0]["model-index"][0]["results"]) == 1
    check_card(card, results, {"evaluated_as": "final"})


def test_of_a_published_model_the_code_names_the_repository(results):
    box = {"src": "samples/a.png", "box": [1, 2, 3, 4], "truth": "a", "best": "a", "score": 0.75}
    box |= {"num_texts": 2, "choices": ["a", "b"]}
    card = render_card(results, {"repo_id": "lab/regionmed-clip", "region_examples": [box]})
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert 'path = "lab/regionmed-clip"' in code
    assert 'hf_hub_download(path, "samples/a.png")' in code


def test_only_models_that_stand_in_the_table_are_explained(results, make_result):
    assert "`plain-clip` is the same recipe with the region terms off" in " ".join(render_card(results, {}).split())
    alone = render_card([make_result()], {})
    assert "plain-clip" not in alone
    assert "colour-size-probe" not in alone
