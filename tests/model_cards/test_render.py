"""The card: sound YAML, the statements that must stand in it, and no number without a result."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from regionmed_clip.model_cards.render import check_card, load_facts, render_card


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
    card = render_card(results, {}).replace("0.812", "0.912")
    with pytest.raises(ValueError, match=r"shows 0\.912, which no result holds"):
        check_card(card, results)


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
