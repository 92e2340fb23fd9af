"""The prepared split: the processor's own frames, the same files for any number of workers, whole or absent."""

import numpy as np
import pytest
import torch
from datasets import Features, Value

from regionmed_clip.processing.corpus.data_spec import parse_data_spec, stream_examples
from regionmed_clip.processing.corpus.image_texts import texts_of_example
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.train import data_stores
from regionmed_clip.train.data_stores import open_data, prepare_data
from regionmed_clip.train.frame_store import STORE_FEATURES, FrameStore, prepare_split, sample_from_example, write_part

DATA = "phantom:num_train=10,num_test=2"
IMAGES = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    prepare_split(folder, DATA, "train", IMAGES, num_workers=2)
    return folder


def test_frames_boxes_and_texts_are_those_of_the_examples_in_order(folder):
    store, examples = FrameStore(folder, 48), list(stream_examples(DATA, "train"))
    assert len(store) == len(examples) == 10
    for stored, example in zip(store.samples(range(10)), examples):
        frame, geometry = IMAGES.frame(example["image"])
        assert stored.sample_id == example["image_id"]
        assert np.array_equal(stored.frame, frame)
        assert (stored.caption, stored.caption_key) == (example["caption"], example["caption_key"])
        assert stored.region_texts == tuple(region["description"] for region in example["regions"])
        boxes = np.array([region["box"] for region in example["regions"]]).reshape(-1, 4)
        np.testing.assert_allclose(stored.boxes, geometry.boxes_to_frame_fractions(boxes), atol=1e-6)


def test_a_window_that_was_saved_with_the_model_changes_no_picture_of_a_corpus():
    windowed = IMAGES.with_overrides(window="lung")
    example = next(iter(stream_examples(DATA, "train")))
    expected, found = (sample_from_example(example, images).frame for images in (IMAGES, windowed))
    assert np.array_equal(found, expected)


def test_facts_and_negatives_are_those_of_the_examples(folder):
    for stored, example in zip(FrameStore(folder, 48).samples(range(10)), stream_examples(DATA, "train")):
        texts = texts_of_example(example)
        assert stored.texts == texts
        assert stored.caption_facts.dtype == stored.region_facts.dtype == np.int64
        assert stored.caption_facts.tolist() == [list(facts) for facts in texts.caption_facts]
        assert stored.region_facts.tolist() == [list(region.facts) for region in texts.regions]
        for index, negatives in enumerate(stored.region_negatives):
            expected = [negative for negative in example["negatives"] if negative["region"] == index]
            assert [negative.text for negative in negatives] == [negative["text"] for negative in expected]
            assert [negative.key for negative in negatives] == [negative["key"] for negative in expected]


def test_frames_of_other_columns_are_prepared_anew(tmp_path, monkeypatch):
    spec = parse_data_spec(DATA)
    prepare_data(spec, "train", tmp_path, IMAGES, num_workers=1)
    assert len(open_data(spec, "train", tmp_path, IMAGES)) == 10
    monkeypatch.setattr(data_stores, "STORE_FEATURES", Features({**STORE_FEATURES, "more": Value("string")}))
    with pytest.raises(ValueError, match="holds no prepared images"):
        open_data(spec, "train", tmp_path, IMAGES)


def test_samples_come_in_the_order_asked_for(folder):
    store = FrameStore(folder, 48)
    names = [sample.sample_id for sample in store.samples(range(10))]
    assert [sample.sample_id for sample in store.samples([7, 0, 7])] == [names[7], names[0], names[7]]


def test_its_examples_frame_to_themselves(folder):
    store = FrameStore(folder, 48)
    for example, stored in zip(store.examples(), store.samples(range(10))):
        frame, geometry = IMAGES.frame(example["image"])
        assert np.array_equal(frame, stored.frame)
        boxes = np.array([region["box"] for region in example["regions"]]).reshape(-1, 4)
        np.testing.assert_allclose(geometry.boxes_to_frame_fractions(boxes), stored.boxes, atol=1e-5)


def test_a_missing_part_is_written_again_with_the_same_bytes(folder):
    part = sorted(folder.glob("part-*.arrow"))[0]
    before = part.read_bytes()
    part.unlink()
    prepare_split(folder, DATA, "train", IMAGES, num_workers=1)
    assert part.read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_a_truncated_image_stops_the_preparation_by_name_and_leaves_no_part(tmp_path):
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    from PIL import Image

    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(noise.numpy()).save(source / "images" / name)
    whole = (source / "images" / "a.jpg").read_bytes()
    row = (
        '{"image": "images/%s.jpg", "width": 64, "height": 64, "boxes_xyxy": [[1, 1, 9, 9]], "labels": ["nerve"], '
        '"caption": null, "qa": null, "patient_id": null, "split": "%s"}\n'
    )
    (source / "annotations.jsonl").write_text(row % ("a", "train") + row % ("b", "test"))
    target = tmp_path / "part.arrow"
    assert write_part(target, f"jsonl:{source}", "train", 0, 1, IMAGES.to_dict()) == 1
    target.unlink()
    (source / "images" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jpg.*truncated"):
        write_part(target, f"jsonl:{source}", "train", 0, 1, IMAGES.to_dict())
    assert not target.exists()


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared images; prepare_split writes them"):
        FrameStore(tmp_path, 48)
