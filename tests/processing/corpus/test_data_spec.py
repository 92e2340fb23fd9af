"""Data specs: what parses, what is refused, and what the helpers over a spec give."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.data_spec import (
    DataSpec,
    data_revision,
    num_examples,
    open_sources,
    parse_data_spec,
    split_sha256,
    stream_examples,
)


def write_source(folder, num_images, value=0):
    """A jsonl source of grey images, each with one box; gives the folder back."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(num_images):
        Image.new("L", (8, 6), color=value + index).save(folder / f"images/{index}.png")
        made = {
            "image": f"images/{index}.png",
            "width": 8,
            "height": 6,
            "boxes_xyxy": [[1, 1, 4, 5]],
            "labels": ["nerve"],
        }
        rows.append(json.dumps(made) + "\n")
    (folder / "annotations.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("phantom", DataSpec("phantom")),
        ("phantom:", DataSpec("phantom")),
        (" phantom: seed = 3 , num_train=20,", DataSpec("phantom", (("num_train", 20), ("seed", 3)))),
        ("phantom:difficulty=1", DataSpec("phantom", (("difficulty", 1.0),))),
        ("jsonl:../shared/data", DataSpec("jsonl", folder="../shared/data")),
        ("jsonl:../shared/data/", DataSpec("jsonl", folder="../shared/data")),  # as a shell completes it
        ("jsonl:/odd:name,with=signs", DataSpec("jsonl", folder="/odd:name,with=signs")),
        ("jsonl:/odd*name", DataSpec("jsonl", folder="/odd*name")),
        ("phantom*2", DataSpec("phantom")),  # alone, a weight says nothing
    ],
)
def test_a_spec_is_parsed(text, spec):
    assert parse_data_spec(text) == spec


options = st.fixed_dictionaries(
    {},
    optional={
        "num_train": st.integers(0, 10**9),
        "num_test": st.integers(0, 10**9),
        "num_validation": st.integers(0, 10**9),
        "seed": st.integers(0, 2**63),
        "difficulty": st.floats(0, 1),
    },
)


@given(options, st.randoms())
def test_options_parse_in_any_order_and_a_spec_reads_back_what_it_writes(chosen, random):
    items = list(chosen.items())
    random.shuffle(items)
    spec = parse_data_spec("phantom:" + ",".join(f"{name}={value}" for name, value in items))
    assert dict(spec.options) == chosen
    assert parse_data_spec(str(spec)) == spec


def test_a_mixture_is_parsed_with_its_weights_and_reads_back_what_it_writes(tmp_path):
    text = f"phantom:seed=3*2 + jsonl:a b * 0.5 + {tmp_path}"
    (tmp_path / "manifest.json").write_text("{}")
    spec = parse_data_spec(text)
    parts = (
        DataSpec("phantom", (("seed", 3),)),
        DataSpec("jsonl", folder="a b"),
        DataSpec("corpus", folder=str(tmp_path)),
    )
    assert spec == DataSpec("mixture", parts=tuple(zip(parts, (2.0, 0.5, 1.0))))
    assert spec.terms() == spec.parts
    assert parts[0].terms() == ((parts[0], 1.0),)
    assert str(spec) == f"phantom:seed=3*2 + jsonl:a b*0.5 + {tmp_path}*1"
    assert parse_data_spec(str(spec)) == spec


def test_a_folder_that_is_no_built_corpus_is_told_why(tmp_path):
    with pytest.raises(ValueError, match=r"has no known form.*The folder has no manifest.json"):
        parse_data_spec(str(tmp_path))


def test_a_folder_of_rows_without_its_form_is_told_the_form(tmp_path):
    write_source(tmp_path / "mine", 1)
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match=f"write jsonl:{folder}"):
            parse_data_spec(str(folder))


@given(st.text(max_size=30).filter(lambda text: not text.strip().startswith(("phantom", "jsonl"))))
def test_any_other_text_is_refused_with_a_message_that_quotes_it(text):
    with pytest.raises(ValueError, match="has no known form") as error:
        parse_data_spec(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("phantom:num_trian=3", ("'num_trian=3'", "num_train, num_test, num_validation, seed, difficulty")),
        ("phantom:seed", ("'seed'", "as key=value")),
        ("phantom:seed=1,seed=2", ("seed is given twice",)),
        ("phantom:seed=one", ("seed is 'one'", "a whole number from 0")),
        ("phantom:num_test=-1", ("num_test is '-1'", "a whole number from 0")),
        ("phantom:difficulty=1.5", ("difficulty is '1.5'", "a number from 0 to 1")),
        ("phantom:difficulty=nan", ("difficulty is 'nan'", "a number from 0 to 1")),
        ("jsonl:", ("names no folder", "jsonl:FOLDER")),
        ("coco:/data", ("'coco:/data' has no known form", "phantom[:key=value,...], jsonl:FOLDER, the folder")),
        ("", ("'' has no known form",)),
        ("phantom + ", ("'phantom + ' has no known form", "'' is none of them")),
        ("phantom + coco:/data*2", ("'phantom + coco:/data*2' has no known form", "'coco:/data' is none of them")),
        ("phantom*0", ("the weight of 'phantom' is '0'", "a number above 0")),
        ("phantom + jsonl:a*-1", ("the weight of 'jsonl:a' is '-1'",)),
        ("phantom*1e999", ("the weight of 'phantom' is '1e999'",)),
    ],
)
def test_a_bad_spec_is_refused_with_the_known_ones(text, parts):
    with pytest.raises(ValueError) as error:
        parse_data_spec(text)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_several_sources_follow_each_other_by_name(tmp_path):
    write_source(tmp_path / "b", 10)
    write_source(tmp_path / "a", 5, value=100)
    spec = parse_data_spec(f"jsonl:{tmp_path}")
    assert [source.name for source in open_sources(spec)] == ["a", "b"]
    examples = list(stream_examples(spec, "train"))
    assert [example["source"] for example in examples] == ["a"] * 3 + ["b"] * 7
    assert [example["image"].getpixel((0, 0)) for example in examples] == [100, 101, 102, 0, 1, 2, 3, 4, 5, 6]
    assert num_examples(spec, "train") == 10
    assert num_examples(str(spec), "test") == 5


def test_a_missing_split_is_refused_with_those_that_exist(tmp_path):
    spec = f"jsonl:{write_source(tmp_path / 'a', 5)}"
    for read in (stream_examples, num_examples, split_sha256):
        with pytest.raises(ValueError, match="has no split 'validation'; it has a: train, test"):
            read(spec, "validation")


def test_the_revision_names_every_source(tmp_path):
    first, second = write_source(tmp_path / "a", 2), write_source(tmp_path / "b", 3)
    revisions = [
        hashlib.sha256((folder / "annotations.jsonl").read_bytes()).hexdigest()[:12] for folder in (first, second)
    ]
    assert data_revision(f"jsonl:{tmp_path}") == f"a@{revisions[0]}+b@{revisions[1]}"


def test_the_hash_of_a_split_is_that_of_its_ordered_images(tmp_path):
    folder = write_source(tmp_path / "a", 10)
    lines = [
        f"a/images/{index}.png\t{hashlib.sha256((folder / f'images/{index}.png').read_bytes()).hexdigest()}\n"
        for index in (7, 8, 9)
    ]
    assert split_sha256(f"jsonl:{folder}", "test") == hashlib.sha256("".join(lines).encode()).hexdigest()
    Image.new("L", (8, 6), color=200).save(folder / "images/8.png")
    assert split_sha256(f"jsonl:{folder}", "test") != hashlib.sha256("".join(lines).encode()).hexdigest()
