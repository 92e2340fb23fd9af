"""Data without a test split: what is tested on is what training on questions holds out, by image and by patient."""

from __future__ import annotations

import json

import pytest
from tiny_corpora import write_jsonl_source

from regionmed_clip.eval.tasks.held_out_examples import HELD_OUT_SPLIT, HeldOutExamples
from regionmed_clip.processing.corpus.question_parts import stream_part


def write_without_test(folder, splits: str = "train") -> str:
    """The data spec of 40 images of 20 patients: the last eight validate, the others are in the split of that name."""
    write_jsonl_source(folder / "demo", 40)
    path = folder / "demo" / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = [splits] * 32 + ["validation"] * 8
    rows = [{**row, "split": names[place], "patient_id": f"p{place // 2}"} for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{folder}"


def test_the_parts_are_those_of_training_and_share_no_patient(tmp_path):
    data = write_without_test(tmp_path)
    examples = HeldOutExamples(data, tmp_path)
    assert list(examples) == [HELD_OUT_SPLIT, "validation", "train"]
    tested = list(examples[HELD_OUT_SPLIT]["image_id"])
    assert tested == [example["image_id"] for example in stream_part(data, "test")]
    assert 0 < len(tested) < 32
    patients = [set(examples[name]["patient_id"]) for name in examples]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 20
    assert sum(len(examples[name]) for name in examples) == 40


def test_a_source_with_a_test_split_is_sent_to_it(tmp_path):
    with pytest.raises(ValueError, match=r"has a test split of its own\. Give --split test"):
        HeldOutExamples("phantom:num_train=2,num_test=2", tmp_path)


def test_data_without_training_images_have_nothing_to_hold_out(tmp_path):
    with pytest.raises(ValueError, match="no 'train'"):
        HeldOutExamples(write_without_test(tmp_path, "validation"), tmp_path)
