"""What the Hub would refuse in a YAML block is refused here, with the reason."""

from __future__ import annotations

import copy

import pytest

from regionmed_clip.model_cards.card_facts import load_facts
from regionmed_clip.model_cards.card_metadata import check_metadata, split_card
from regionmed_clip.model_cards.render import render_card

WIDGET = {
    "src": "samples/a.png",
    "example_title": "A",
    "candidate_labels": "one, two",
    "output": [{"label": "two", "score": 0.75}, {"label": "one", "score": 0.25}],
}
SOUND = {
    "library_name": "transformers",
    "pipeline_tag": "zero-shot-image-classification",
    "license": "apache-2.0",
    "tags": ["medical"],
    "language": "en",
    "base_model": "openai/clip-vit-base-patch16",
    "datasets": ["lab/chest"],
    "widget": [WIDGET],
    "model-index": [
        {
            "name": "m",
            "results": [
                {
                    "task": {"type": "t"},
                    "dataset": {"type": "d", "name": "d"},
                    "metrics": [{"type": "macro_auroc", "value": 0.5}],
                }
            ],
        }
    ],
}


def changed(**changes):
    return {**copy.deepcopy(SOUND), **changes}


def test_a_sound_block_passes():
    check_metadata(SOUND)
    check_metadata(changed(license="other", license_name="our-terms", language=["en", "deu"]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"library_name": None}, r"lacks \['library_name'\]"),
        ({"pipeline_tag": "image-zero-shot"}, r"pipeline_tag is 'image-zero-shot', which is no name"),
        ({"license": "apache 2"}, r"license is 'apache 2', which is no name"),
        ({"license": "other"}, r"then license_name must name it"),
        ({"language": "english"}, r"language is 'english'"),
        ({"language": [False]}, r"language is False"),  # an unquoted no, Norwegian, in YAML 1.1
        ({"tags": ["medical", 3]}, r"tags hold \[3\]"),
        ({"base_model": "/data/clip"}, r"base_model is '/data/clip', no id of the Hub"),
        ({"datasets": ["a/b/c"]}, r"datasets is 'a/b/c', no id of the Hub"),
        ({"model-index": [{"name": "m", "results": [{"task": {"type": "t"}}]}]}, r"model-index is none"),
        ({"widget": [{**WIDGET, "example_title": ""}]}, r"must have src and example_title"),
        ({"widget": [{**WIDGET, "src": "../a.png"}]}, r"a path within the folder"),
        ({"widget": [{**WIDGET, "src": "/home/me/a.png"}]}, r"a path within the folder"),
        ({"widget": [{**WIDGET, "candidate_labels": "one, three"}]}, r"each of the 2 candidate labels"),
        (
            {"widget": [{**WIDGET, "output": [{"label": "one", "score": 0.9}, {"label": "two", "score": 0.2}]}]},
            "sum to",
        ),
        ({"pipeline_tag": "visual-question-answering"}, r"must have text, and output with answer and score"),
    ],
)
def test_what_the_hub_would_refuse_is_named(change, reason):
    with pytest.raises(ValueError, match=reason):
        check_metadata(changed(**change))


@pytest.mark.parametrize("value", [float("nan"), "0.5", True, None])
def test_a_figure_that_is_no_number_is_refused(value):
    metadata = changed()
    metadata["model-index"][0]["results"][0]["metrics"][0]["value"] = value
    with pytest.raises(ValueError, match="must be a number"):
        check_metadata(metadata)


def test_the_names_of_the_hub_are_lists_without_doubles():
    names = load_facts("hub_names")
    for key in ("pipeline_tags", "licenses"):
        assert len(set(names[key])) == len(names[key]) > 50
        assert all(isinstance(name, str) for name in names[key])


def test_odd_facts_survive_the_yaml(results):
    facts = {"model_name": "A: #1 'model' | x", "tags": ["no", "1e3", "a: b"], "base_model": "lab/base"}
    metadata, body = split_card(render_card(results, facts))
    assert metadata["tags"] == ["no", "1e3", "a: b"]
    assert metadata["model-index"][0]["name"] == "A: #1 'model' | x"
    assert metadata["base_model"] == "lab/base"
    assert body.lstrip().startswith("# A: #1 'model' | x")


def test_dashes_within_the_block_do_not_end_it(results):
    facts = {"model_name": "My model ---", "tags": ["custom_code", "a ---"]}
    metadata, body = split_card(render_card(results, facts))
    assert metadata["tags"] == ["custom_code", "a ---"]
    assert metadata["model-index"][0]["name"] == "My model ---"
    assert body.lstrip().startswith("# My model ---")


def test_a_card_whose_block_is_no_mapping_has_no_entries():
    metadata, _ = split_card("---\n- a\n---\ntext\n")
    assert metadata == {}
