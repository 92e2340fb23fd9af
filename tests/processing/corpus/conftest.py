"""One small built corpus for all tests of this folder; who changes it takes a copy."""

from __future__ import annotations

import shutil

import pytest
from built_corpora import build, noise, write_source

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus

SPLITS = ["train", "train", "train", "train", "validation", "test", "test", "train"]
QUESTIONS = [None, [{"q": "Is there a nodule?", "a": "yes"}], *[None] * 6]
CAPTIONS = [None, None, "Nodule in the right lung, 10 x 12 mm.", *[None] * 5]


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """The corpus of a source "chest" with 8 images: 5 train, 1 validation, 2 test; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    images = [noise(seed) for seed in range(8)]
    root = write_source(folder / "chest", images, split=SPLITS, qa=QUESTIONS, caption=CAPTIONS)
    return build(folder / "corpus", root, name="tiny")


@pytest.fixture
def built(built_once, tmp_path):
    """A copy of the corpus that a test may change."""
    return BuiltCorpus(shutil.copytree(built_once.folder, tmp_path / "corpus"))
