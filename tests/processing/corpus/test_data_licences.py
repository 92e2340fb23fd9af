"""Licences of what a data spec names: of sources as they say, of a built corpus as its rows say."""

from __future__ import annotations

from built_corpora import build, noise, rewrite, write_source

from regionmed_clip.processing.corpus.data_licences import data_licences
from regionmed_clip.processing.corpus.data_spec import parse_data_spec


def licences(text):
    return [(source["name"], source["license"]) for source in data_licences(parse_data_spec(text))]


def test_drawn_data_have_the_licence_of_this_project():
    assert licences("phantom:num_train=2") == [("phantom", "Apache-2.0")]


def test_jsonl_folders_name_theirs(tmp_path):
    write_source(tmp_path / "b", [noise(1)], license_name="MIT")
    write_source(tmp_path / "a", [noise(2)], license_name="CC0 1.0")
    assert licences(f"jsonl:{tmp_path}") == [("a", "CC0 1.0"), ("b", "MIT")]
    assert licences(f"jsonl:{tmp_path} * 2 + phantom:num_train=2") == [
        ("a", "CC0 1.0"),
        ("b", "MIT"),
        ("phantom", "Apache-2.0"),
    ]


def test_of_a_built_corpus_the_rows_count_and_not_the_manifest(tmp_path):
    write_source(tmp_path / "chest", [noise(i) for i in range(4)], split=["train", "train", "test", "test"])
    corpus = build(tmp_path / "corpus", tmp_path / "chest")
    assert licences(str(corpus.folder)) == [("chest", "CC BY 4.0")]
    rewrite(corpus.folder, "test", lambda rows: rows[0].update(license="unknown"))
    assert licences(str(corpus.folder)) == [("chest", "CC BY 4.0"), ("chest", "unknown")]
