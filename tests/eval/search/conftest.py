"""A tiny model on disk and an index of ten phantoms made with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from regionmed_clip.eval.search.building import IndexSettings, build_index
from regionmed_clip.eval.search.search_index import SearchIndex

DATA = "phantom:num_test=10,num_train=1"


@pytest.fixture(scope="session")
def model_folder(model, processor, tmp_path_factory) -> Path:
    """The folder of a tiny untrained model with its processor."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_index(model_folder):
    """A function that makes an index in a folder, of ten phantoms unless told otherwise."""

    def make(output: Path, **changes) -> dict:
        return build_index(IndexSettings(**{"model": model_folder, "data": DATA, "output": output, **changes}))

    return make


@pytest.fixture(scope="session")
def index(make_index, tmp_path_factory) -> SearchIndex:
    """An index of ten phantoms in parts of four, opened."""
    folder = tmp_path_factory.mktemp("search") / "index"
    make_index(folder, images_per_part=4, kind="hnsw")
    return SearchIndex(folder)
