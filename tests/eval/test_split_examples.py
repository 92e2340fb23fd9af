"""Which images are tested on, tuned on and trained on: never one in two places, and decided by names alone."""

from __future__ import annotations

import json

import pytest
from tiny_corpora import small_corpus, write_jsonl_source

from regionmed_clip.eval.tasks import split_examples
from regionmed_clip.eval.tasks.split_examples import SplitExamples
from regionmed_clip.processing.corpus.data_spec import split_sha256


def ids_of(examples) -> list[str]:
    """The image ids in their order."""
    return [example["image_id"] for example in examples]


def set_splits(folder, splits, patients=None) -> None:
    """None; the rows of a jsonl source then name these splits (and patients)."""
    path = folder / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, (row, split) in enumerate(zip(rows, splits, strict=True)):
        row["split"] = split
        if patients:
            row["patient_id"] = patients[place]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_phantoms_without_validation_are_tuned_on_phantoms_that_nobody_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(split_examples, "NUM_DRAWN_TO_TUNE", 3)
    monkeypatch.setattr(split_examples, "MAX_TRAINING_IMAGES", 4)
    examples = SplitExamples("phantom:num_train=90,num_test=2", "test", tmp_path)
    assert list(examples) == ["test", "validation", "train"]
    assert ids_of(examples["test"]) == [f"phantom-0-test-{i:06d}" for i in range(2)]
    assert ids_of(examples["validation"]) == [f"phantom-0-validation-{i:06d}" for i in range(3)]
    assert ids_of(examples["train"]) == [f"phantom-0-train-{i:06d}" for i in range(4)]  # only so many are drawn
    assert examples.sha256() == split_sha256("phantom:num_train=90,num_test=2", "test")
    assert examples["test"] is examples["test"]
    assert "bytes" in examples["test"][0]["image"]


def test_a_validation_split_is_taken_where_the_source_has_one(tmp_path):
    write_jsonl_source(tmp_path / "demo", 12)
    set_splits(tmp_path / "demo", ["train"] * 6 + ["validation"] * 4 + ["test"] * 2)
    examples = SplitExamples(f"jsonl:{tmp_path}", "test", tmp_path)
    assert list(examples) == ["test", "validation", "train"]
    assert [len(list(examples[name])) for name in examples] == [2, 4, 6]  # and all of training is left to train on


def test_sources_without_validation_lend_a_tenth_of_their_patients_to_tuning(tmp_path):
    write_jsonl_source(tmp_path / "with_one", 6)
    set_splits(tmp_path / "with_one", ["train"] * 3 + ["validation"] * 2 + ["test"])
    write_jsonl_source(tmp_path / "without", 61)
    patients = [f"p{index // 3}" for index in range(60)] + ["q"]
    set_splits(tmp_path / "without", ["train"] * 60 + ["test"], patients)
    examples = SplitExamples(f"jsonl:{tmp_path}", "test", tmp_path / "copies_are_made_here")
    (tmp_path / "copies_are_made_here").mkdir()
    assert list(examples) == ["test", "tuning", "train"]
    tuning, train = list(examples["tuning"]), list(examples["train"])
    of_one = [e for e in tuning if e["source"] == "with_one"]
    lent = [e for e in tuning if e["source"] == "without"]
    assert {e["split"] for e in of_one} == {"validation"}
    assert len(of_one) == 2
    assert 3 <= len(lent) <= 18  # 2 of the 20 patients are expected, and at most 6 in 99.8 % of all drawings
    assert len(train) == 3 + 60 - len(lent)
    assert not set(ids_of(tuning)) & set(ids_of(train))
    of_patients = [{e["patient_id"] for e in part if e["source"] == "without"} for part in (tuning, train)]
    assert not of_patients[0] & of_patients[1]


def test_which_images_are_taken_depends_on_their_names_alone(tmp_path, monkeypatch):
    for name, number in (("short", 30), ("long", 50)):
        write_jsonl_source(tmp_path / name / "demo", number)
        set_splits(tmp_path / name / "demo", ["train"] * (number - 1) + ["test"])
    few, many = (SplitExamples(f"jsonl:{tmp_path / name}", "test", tmp_path / name) for name in ("short", "long"))
    lent = set(ids_of(few["tuning"]))
    assert lent == {name for name in ids_of(many["tuning"]) if name in set(ids_of(few["train"])) | lent}
    kept = set(ids_of(many["train"]))
    monkeypatch.setattr(split_examples, "MAX_TRAINING_IMAGES", 20)
    thin = SplitExamples(f"jsonl:{tmp_path / 'long'}", "test", tmp_path / "short")
    assert 8 <= len(list(thin["train"])) <= 32  # 20 are expected; so it is in 99.9 % of all drawings
    assert set(ids_of(thin["train"])) < kept


def test_where_validation_is_under_test_tuning_is_taken_from_training(tmp_path, monkeypatch):
    monkeypatch.setattr(split_examples, "MAX_TRAINING_IMAGES", 20)
    monkeypatch.setattr(split_examples, "MAX_TUNING_IMAGES", 20)
    examples = SplitExamples("phantom:num_train=90,num_test=0,num_validation=2", "validation", tmp_path)
    assert list(examples) == ["validation", "tuning", "train"]
    assert len(examples["validation"]) == 2
    assert {e["split"] for e in examples["tuning"]} == {"train"}
    assert not set(ids_of(examples["tuning"])) & set(ids_of(examples["train"]))


def test_a_built_corpus_is_read_from_its_place_again_and_again(tmp_path):
    corpus = small_corpus(tmp_path / "corpus", 20)
    examples = SplitExamples(str(tmp_path / "corpus"), "test", tmp_path)
    first = ids_of(examples["test"])
    assert first == ids_of(examples["test"])
    assert len(first) == corpus.num_images("test")
    assert not list(tmp_path.glob("test*.arrow"))


def test_asking_whether_there_is_a_split_draws_nothing(tmp_path):
    examples = SplitExamples("phantom:num_train=5,num_test=2", "test", tmp_path)
    assert "validation" in examples
    assert "train" in examples
    assert "exam" not in examples
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError):
        examples["exam"]


def test_smoke_takes_a_few_images_of_every_split_and_term(tmp_path, monkeypatch):
    monkeypatch.setattr(split_examples, "NUM_SMOKE_IMAGES", 2)
    write_jsonl_source(tmp_path / "demo", 12)
    set_splits(tmp_path / "demo", ["train"] * 5 + ["validation"] * 3 + ["test"] * 4)
    data = f"phantom:num_train=5,num_test=5 + jsonl:{tmp_path}"
    examples = SplitExamples(data, "test", tmp_path, is_smoke=True)
    assert [len(list(examples[name])) for name in ("test", "validation", "train")] == [4, 4, 4]


def test_data_without_the_split_under_test_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no split 'exam'"):
        SplitExamples("phantom:num_train=5", "exam", tmp_path)
    with pytest.raises(ValueError, match="no split 'validation'"):
        SplitExamples("phantom:num_train=5", "validation", tmp_path)  # none is drawn to be tested on
