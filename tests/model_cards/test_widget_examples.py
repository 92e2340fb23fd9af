"""The card's examples are this model's own answers, to pictures that are drawn and taken by a fixed rule."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.model_cards.card_metadata import check_metadata, split_card
from regionmed_clip.model_cards.render import check_card, render_card
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.model_cards.widget_examples import region_examples, sample_records, widget_examples

KINDS = ["chest radiograph", "CT", "fundus photograph", "blood smear"]
NAMES = ["chest_radiograph.png", "ct.png", "fundus_photograph.png", "blood_smear.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flat")


@pytest.fixture(scope="module")
def entries(model, processor, folder):
    return widget_examples(model, processor, folder)


@pytest.fixture(scope="module")
def question_model(model):
    """The tiny encoder with a new head for three answers."""
    torch.manual_seed(1)
    config = type(model.config).from_dict(model.config.to_dict() | {"id2label": {0: "yes", 1: "no", 2: "left"}})
    return RegionMedClipForVisualQuestionAnswering(config).eval()


def test_one_picture_of_each_kind_is_written_small(entries, folder):
    assert [record.modality for record in sample_records()] == KINDS
    assert [entry["src"] for entry in entries] == [f"samples/{name}" for name in NAMES]
    for record, entry in zip(sample_records(), entries, strict=True):
        assert (folder / entry["src"]).read_bytes() == record.image
        assert (folder / entry["src"]).stat().st_size < 50_000
        assert record.split == "test"
        assert record.regions
    assert entries[0]["example_title"] == "Drawn chest radiograph: cavity"


def test_the_scores_are_those_of_the_pipeline(model, processor, entries, folder):
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    classify = pipeline("zero-shot-image-classification", model=model, **parts)
    for entry in entries:
        labels = entry["candidate_labels"].split(", ")
        told = classify(Image.open(folder / entry["src"]), candidate_labels=labels, hypothesis_template="{}")
        scores = {one["label"]: one["score"] for one in told}
        for one in entry["output"]:
            assert one["score"] == pytest.approx(scores[one["label"]], abs=6e-5)
        assert [one["score"] for one in entry["output"]] == sorted(scores_of(entry), reverse=True)
        assert len(set(labels)) == len(labels)
        assert labels[-1].startswith("Normal ")


def scores_of(entry):
    return [one["score"] for one in entry["output"]]


def test_other_weights_give_other_scores(model, processor, entries, tmp_path):
    torch.manual_seed(5)
    other = type(model)(model.config).eval()
    found = widget_examples(other, processor, tmp_path)
    assert [scores_of(entry) for entry in found] != [scores_of(entry) for entry in entries]


def test_every_box_is_compared_with_all_descriptions_of_its_kind(model, processor):
    examples = region_examples(model, processor)
    regions = [region for record in sample_records() for region in record.regions]
    assert [example["truth"] for example in examples] == [region.description for region in regions]
    assert [tuple(example["box"]) for example in examples] == [region.box for region in regions]
    first = examples[0]
    assert first["num_texts"] == 34
    assert first["truth"] in first["choices"]
    assert len(first["choices"]) == 4
    assert 1 / 34 <= first["score"] <= 1  # the best of 34 has at least its even share


def test_a_model_that_answers_is_asked_another_question_about_each_picture(question_model, processor, tmp_path):
    entries = widget_examples(question_model, processor, tmp_path)
    asked = [record.qa[number] for number, record in enumerate(sample_records())]
    assert [entry["text"] for entry in entries] == [one.question for one in asked]
    assert len({one.question for one in asked}) == 4
    assert [entry["example_title"].partition(", true answer: ")[2] for entry in entries] == [q.answer for q in asked]
    assert all(entry["output"]["answer"] in ("yes", "no", "left") for entry in entries)
    assert all(0 <= entry["output"]["score"] <= 1 for entry in entries)
    facts = {"widget": entries, "num_answers": 3, "region_examples": region_examples(question_model, processor)}
    card = render_card([], facts)
    check_card(card, [])
    answered = {"answer": asked[1].answer, "score": 0.5}
    assert f"{asked[0].question} ✗ {entries[0]['output']['answer']} (" in card  # its head knows no modality
    assert f"{asked[1].question} ✓ {asked[1].answer} (0.500)" in render_card(
        [], {**facts, "widget": [{**entries[1], "output": answered}]}
    )
    assert split_card(card)[0]["pipeline_tag"] == "visual-question-answering"


def test_the_entries_pass_the_check_and_survive_the_card(entries, results):
    card = render_card(results, {"widget": entries})
    metadata, _ = split_card(card)
    assert metadata["widget"] == entries
    check_metadata(metadata)


def test_the_code_of_the_card_runs_as_it_stands(model, processor, tmp_path):
    """In a process without our packages, in the staged folder; it takes some seconds for the imports."""
    folder = stage_flat_folder(model, processor, tmp_path / "final", results=[])
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert "region-classification" in blocks[0]
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**keep, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", blocks[0]]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("tensor(") == 2
