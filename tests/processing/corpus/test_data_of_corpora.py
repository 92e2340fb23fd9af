"""Data specs of built corpora and mixtures: streams, numbers, revisions and hashes."""

from __future__ import annotations

from collections import Counter

import pytest
from tiny_corpora import small_corpus, write_corpus, write_jsonl_source

from regionmed_clip.processing.corpus.corpus_source import CorpusSource, record_from_example
from regionmed_clip.processing.corpus.data_spec import (
    data_revision,
    num_examples,
    open_sources,
    parse_data_spec,
    split_sha256,
    stream_examples,
)
from regionmed_clip.processing.corpus.examples import example_from_record
from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource
from regionmed_clip.processing.corpus.sources.phantom import PhantomSource


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """14 training and 6 test images, and the jsonl folder of which they are made beside it."""
    return small_corpus(tmp_path_factory.mktemp("corpora") / "a", num_images=20)


@pytest.fixture(scope="module")
def mixture(corpus, tmp_path_factory):
    """(spec of two parts by 3 to 1, ids of their training images)."""
    folder = write_jsonl_source(tmp_path_factory.mktemp("mixed") / "b", 10)
    ids_of_parts = ids(corpus.rows("train")), ids(JsonlSource(folder).records("train"))
    return f"{corpus.folder}*3 + jsonl:{folder}*1", ids_of_parts


def ids(items):
    return [item["image_id"] if isinstance(item, dict) else item.image_id for item in items]


def test_a_built_corpus_is_named_by_its_folder(corpus):
    spec = str(corpus.folder)
    assert (num_examples(spec, "train"), num_examples(spec, "test")) == (14, 6)
    assert data_revision(spec) == corpus.revision
    assert ids(stream_examples(spec, "train")) == ids(corpus.rows("train"))
    (example,) = stream_examples(spec, "train", columns=["image_id", "caption"]).take(1)
    assert list(example) == ["image_id", "caption"]
    masks = [region["mask"] for example in stream_examples(spec, "train") for region in example["regions"]]
    assert masks == [None] * 14
    assert next(iter(stream_examples(spec, "test", with_masks=True)))["regions"][0]["mask"]["size"] == [6, 8]


def test_the_hash_of_a_split_is_that_of_the_source_it_was_built_from(corpus):
    source = f"jsonl:{corpus.folder}_source"
    assert split_sha256(str(corpus.folder), "test") == split_sha256(source, "test")


def test_a_missing_split_of_a_corpus_is_refused(corpus):
    for read in (stream_examples, num_examples, split_sha256):
        with pytest.raises(ValueError, match="no split 'validation'; it has"):
            read(str(corpus.folder), "validation")


def test_a_corpus_gives_its_records_back(corpus):
    (source,) = open_sources(str(corpus.folder))
    assert isinstance(source, CorpusSource)
    original = list(JsonlSource(f"{corpus.folder}_source", with_masks=True).records("test"))
    for found, record in zip(source.records("test"), original, strict=True):
        assert (found.sha256, found.regions, found.qa) == (record.sha256, record.regions, record.qa)
    assert (source.name, source.license, source.splits()) == ("tiny", "CC0 1.0", ("train", "test"))
    assert ids(source.records("train", 3, 6)) == ids(corpus.rows("train"))[3:6]
    assert list(source.read("train")) == list(source.records("train"))
    assert list(source.bad_items()) == []


def test_a_row_that_was_damaged_after_the_build_is_a_bad_item(corpus, tmp_path):
    rows = list(corpus.rows("test"))
    rows[1]["regions"][0]["box"] = [0.0, 0.0, 99.0, 5.0]
    (source,) = open_sources(str(write_corpus(tmp_path / "damaged", {"test": rows}).folder))
    with pytest.raises(ValueError, match="must lie within the image of 8x6 pixels"):
        list(source.records("test"))
    bad = list(source.read("test"))[1]
    assert bad.key == rows[1]["image_id"]
    assert "must lie within the image" in bad.reason


def test_examples_and_records_are_two_forms_of_one_thing():
    for record in PhantomSource(num_train=8, num_test=0).records("train"):
        assert record_from_example(example_from_record(record)) == record


def test_training_on_a_mixture_draws_by_weight_until_every_part_was_seen_whole(mixture):
    spec, (first, second) = mixture
    stream = list(stream_examples(spec, "train", columns=["image_id", "source"]))
    seen = Counter(ids(stream))
    assert set(seen) == {*first, *second}
    num_first = sum(seen[name] for name in first)
    assert 0.6 < num_first / len(stream) < 0.9
    assert ids(stream) == ids(stream_examples(spec, "train"))
    assert ids(stream) != ids(stream_examples(spec, "train", seed=1))


def test_a_mixed_stream_resumes_with_the_very_next_example(mixture):
    stream = stream_examples(mixture[0], "train", columns=["image_id"])
    reader = iter(stream)
    for _ in range(9):
        next(reader)
    resumed = stream_examples(mixture[0], "train", columns=["image_id"])
    resumed.load_state_dict(stream.state_dict())
    assert ids(resumed) == ids(reader)


def test_other_splits_of_a_mixture_follow_each_other_each_example_once(mixture, corpus):
    spec, (first, second) = mixture
    tests = ids(stream_examples(spec, "test"))
    assert tests[:6] == ids(corpus.rows("test"))
    assert len(tests) == len(set(tests)) == 9 == num_examples(spec, "test")
    assert ids(stream_examples(spec, "train", is_interleaved=False)) == first + second


def test_a_mixture_has_the_revisions_of_its_parts_and_a_hash_of_its_own(mixture, corpus):
    spec = parse_data_spec(mixture[0])
    jsonl = spec.parts[1][0]
    assert data_revision(spec) == f"({corpus.revision})*3 + ({data_revision(jsonl)})*1"
    assert num_examples(spec, "train") == 14 + 7
    assert [source.name for source in open_sources(spec)] == ["tiny", "b"]
    assert len({split_sha256(spec, "test"), split_sha256(jsonl, "test"), split_sha256(str(corpus.folder), "test")}) == 3


def test_every_part_of_a_mixture_must_train_and_one_at_least_must_hold_out(corpus, tmp_path):
    untested = write_jsonl_source(tmp_path / "untested", 1)  # its one image is held out: 70 % of 1 is 0
    spec = f"{corpus.folder} + jsonl:{untested}"
    assert len(list(stream_examples(spec, "test"))) == 7
    with pytest.raises(ValueError, match="untested' has no split 'train'; it has untested: test"):
        stream_examples(spec, "train")
    with pytest.raises(ValueError, match="no split 'validation'"):
        stream_examples(spec, "validation")
