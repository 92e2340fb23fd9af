"""The data of a fine-tuning run: nothing of the test part is in the vocabulary, and parts share no patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from question_fixtures import tiny_processor

from regionmed_clip.processing.corpus.question_parts import stream_part
from regionmed_clip.train.vqa_data import VqaData, open_vqa_data
from regionmed_clip.train.vqa_recipe import load_vqa_recipe


def write_rows(folder: Path, rows: list[dict]) -> Path:
    """A jsonl source: each row has an image of noise of its own, and what it says itself."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, own in enumerate(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        row = {"image": f"images/{number}.png", "width": 32, "height": 32, "boxes_xyxy": [], "labels": []}
        lines.append(json.dumps(row | own) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines))
    return folder


def asked(answer: str, **fields) -> dict:
    return {"qa": [{"q": "What is it?", "a": answer}], **fields}


def open_data(folder: Path, cache: Path) -> VqaData:
    settings = [f"data=jsonl:{folder}", "start=none", "derived_questions=false", "balance_questions=false"]
    return open_vqa_data(load_vqa_recipe("vqa_smoke", settings), cache, tiny_processor())


def test_an_answer_of_the_test_or_validation_split_alone_is_not_in_the_vocabulary(tmp_path):
    rows = [asked("cow", split="train"), asked("The hen.", split="train"), asked("cow", split="train")]
    rows += [asked("yak", split="validation"), asked("zebra", split="test"), asked("hen", split="test")]
    data = open_data(write_rows(tmp_path / "animals", rows), tmp_path / "cache")
    assert data.vocabulary.answers == ("cow", "hen")
    assert data.counts["validation_answers_unknown"] == 1
    assert len(data.train) == 3


def test_what_is_held_out_of_one_split_adds_no_answer_to_the_vocabulary(tmp_path):
    names = [f"animal {number}" for number in range(40)]
    rows = [asked(name, split="train", patient_id=f"p{number // 2}") for number, name in enumerate(names)]
    folder = write_rows(tmp_path / "animals", rows)
    data = open_data(folder, tmp_path / "cache")
    parts = {part: list(stream_part(f"jsonl:{folder}", part)) for part in ("train", "validation", "test")}
    answers = {part: {example["qa"][0]["answer"] for example in found} for part, found in parts.items()}
    assert set(data.vocabulary.answers) == answers["train"]  # every image has an answer of its own
    assert answers["test"]
    assert answers["validation"]
    assert set.union(*answers.values()) == set(names)
    patients = [{example["patient_id"] for example in found} for found in parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
