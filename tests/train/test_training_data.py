"""The record of training images: all parts of all stages once, the start's too, found again beside the model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from built_corpora import build, noise, write_source

from regionmed_clip.processing.corpus.data_spec import open_sources, stream_examples
from regionmed_clip.processing.corpus.fingerprints import part_of_examples
from regionmed_clip.processing.corpus.training_images import (
    FACTS_FILE,
    IMAGES_FILE,
    find_training_images,
    read_fingerprints,
)
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.train import frame_store
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.stage_data import prepare_training_data
from regionmed_clip.train.training_data import read_training_data, write_training_data

IMAGES = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Frames are prepared in a thread: to start processes takes longer than all else here."""
    monkeypatch.setattr(frame_store, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(a mixture of a jsonl folder and a built corpus, the jsonl folder alone, a cache): 3 + 2 training images."""
    root = tmp_path_factory.mktemp("data")
    split = ["train", "train", "train", "test"]
    folder = write_source(
        root / "chest", [noise(i) for i in range(4)], split=split, patient_id=["p0", "p0", "p1", "p2"]
    )
    other = write_source(root / "abdomen", [noise(i) for i in (10, 11, 12)], split=["train", "train", "test"])
    corpus = build(root / "corpus", other)
    return f"jsonl:{folder} + {corpus.folder}", f"jsonl:{folder}", root / "cache"


def train_on(output_dir, data, joint_data, cache, **overrides):
    """What a run writes of its data before it trains; its last stage is on `joint_data`, at another size."""
    given = [f"data={data}", "image_size=32", f"stages.joint.data={joint_data}", "stages.joint.image_size=48"]
    given.append("preparation_workers=1")
    recipe = load_recipe(RECIPES_FOLDER / "smoke.yaml", given + [f"{k}={v}" for k, v in overrides.items()]).settled()
    output_dir.mkdir(exist_ok=True)
    prepare_training_data(recipe, cache, IMAGES)
    write_training_data(recipe, cache, IMAGES, output_dir)
    return read_training_data(output_dir)


def test_every_training_image_of_every_part_is_told_once_as_the_data_have_it(tmp_path, data):
    facts = train_on(tmp_path, *data)
    assert facts["images"]["num_images"] == 5
    assert facts["images"]["sources"] == {"abdomen": 2, "chest": 3}
    assert facts["images"]["num_patients"] == 4  # two of chest; abdomen's are p0 and p1 too, and others
    assert [(part["kind"], part["split"], part["num_images"]) for part in facts["data"]] == [
        ("jsonl", "train", 3),
        ("corpus", "train", 2),
    ]
    found = np.sort(read_fingerprints(tmp_path / IMAGES_FILE))
    expected = part_of_examples("train", stream_examples(data[0], "train", is_interleaved=False))
    np.testing.assert_array_equal(found, np.sort(expected.prints))
    hashes = [record.sha256 for source in open_sources(data[0]) for record in source.records("train")]
    assert found["sha256"].tolist() == sorted(digest.encode() for digest in hashes)


def test_the_record_names_no_path_no_patient_and_no_image(tmp_path, data):
    train_on(tmp_path, *data)
    for name in (FACTS_FILE, IMAGES_FILE):
        content = (tmp_path / name).read_bytes()
        assert str(tmp_path.parent).encode() not in content
        assert b"images/000" not in content
        assert b"p0" not in content


def test_a_run_that_starts_from_another_counts_its_images_too(tmp_path, data):
    first = tmp_path / "first"
    facts = train_on(first, data[0], data[1], data[2])
    (first / "final").mkdir()
    (first / "final" / FACTS_FILE).write_text(json.dumps(facts))
    second = train_on(tmp_path / "second", data[1], data[1], data[2], **start_at(first / "final"))
    assert second["images"]["num_images"] == 3 + 5
    assert second["start"] == {"name": "final", "unknown": "", "data": facts["data"]}
    assert find_training_images(tmp_path / "second").unknown == ""


def test_a_start_without_a_record_leaves_a_part_unknown(tmp_path, data):
    (tmp_path / "clip").mkdir()
    train_on(tmp_path / "run", data[1], data[1], data[2], **start_at(tmp_path / "clip"))
    record = find_training_images(tmp_path / "run")
    assert record.images == tmp_path / "run" / IMAGES_FILE
    assert record.unknown == f"start clip: the folder has no {FACTS_FILE}"


def start_at(folder) -> dict[str, str]:
    """Overrides of a recipe that starts from a checkpoint; it is not opened here."""
    return {"model": json.dumps({"start": str(folder)}), "tokenizer.source": "start"}
