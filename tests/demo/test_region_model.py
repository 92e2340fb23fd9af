"""The model as the demo loads it gives what the processor and the model give, and the index its nearest regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from regionmed_clip.eval.saved_models import load_model

BOXES = [(2.0, 3.0, 20.0, 18.0), (10.0, 10.0, 40.0, 30.0)]
TEXTS = ["a nodule", "a cyst", "chest"]


@pytest.fixture(scope="module")
def picture():
    values = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_reading_gives_the_softmax_of_the_models_own_logits(region_model, model_folder, picture):
    reading = region_model.read(picture, BOXES, TEXTS)
    model, processor = load_model(model_folder)
    with torch.inference_mode():
        output = model(**processor(images=picture, text=TEXTS, boxes=[BOXES], region_text=TEXTS))
    np.testing.assert_allclose(reading.image, output.logits_per_image.softmax(-1)[0], atol=1e-6)
    np.testing.assert_allclose(reading.regions, output.logits_per_region.softmax(-1)[0], atol=1e-6)
    assert reading.regions.shape == (2, 3)


def test_a_picture_without_boxes_reads_as_the_same_whole(region_model, picture):
    reading = region_model.read(picture, [], TEXTS)
    np.testing.assert_array_equal(reading.image, region_model.read(picture, BOXES, TEXTS).image)
    assert reading.regions.shape == (0, 3)


def test_the_heat_map_has_the_size_of_the_picture(region_model, picture):
    found = region_model.find(picture, "a nodule")
    assert found.heat.shape == (32, 40)
    assert len(found.boxes) == len(found.scores) <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1)])
def test_a_picture_of_extreme_shape_is_read_found_and_searched(region_model, size):
    picture, whole = Image.new("RGB", size, (9, 9, 9)), (0.0, 0.0, float(size[0]), float(size[1]))
    assert region_model.read(picture, [whole], TEXTS).regions.shape == (1, 3)
    assert region_model.find(picture, "a cyst").heat.shape == size[::-1]
    assert np.linalg.norm(region_model.embed_box(picture, whole)) == pytest.approx(1, abs=1e-5)


def test_a_window_that_was_saved_with_the_model_changes_nothing_about_pictures_that_are_open(
    region_model, picture, monkeypatch
):
    def answers():
        found = region_model.find(picture, "a nodule")
        read = region_model.read(picture, BOXES, TEXTS)
        proposed = np.array(region_model.propose(picture, 0.0, 5))
        return (*read, found.heat, proposed, region_model.embed_box(picture, BOXES[0]))

    expected = answers()
    own = region_model._processor
    monkeypatch.setattr(own, "image_processor", own.image_processor.with_overrides(window="lung", frame_index=2))
    for one, other in zip(answers(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_is_proposed_above_a_score_that_nothing_reaches(region_model, picture):
    assert region_model.propose(picture, 1.0, 5) == []
    assert len(region_model.propose(picture, 0.0, 5)) <= 5


def test_a_folder_without_a_model_of_ours_is_refused_by_name(demo, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        demo.region_model.RegionModel(str(tmp_path))


def test_the_nearest_case_of_an_indexed_region_is_itself(demo, space, region_model):
    index = demo.region_model.RegionIndex(space)
    facts = json.loads((space / "index.json").read_text())
    assert len(index) == len(facts["texts"]) > 3
    cases = index.nearest(index._embeds[3], 3)
    assert cases[0].text == facts["texts"][3]
    assert cases[0].score == pytest.approx(1.0, abs=2e-3)  # stored as float16
    assert cases[0].score >= cases[1].score >= cases[2].score
    assert cases[0].tile.size == (96, 96)


def test_the_index_knows_its_own_model_and_no_other(demo, space, region_model):
    index = demo.region_model.RegionIndex(space)
    assert index.belongs_to(region_model)
    index._check_embed = -index._check_embed
    assert not index.belongs_to(region_model)


def test_an_index_with_a_text_missing_is_refused(demo, space, tmp_path):
    for name in ("index.safetensors", "index.webp"):
        (tmp_path / name).write_bytes((space / name).read_bytes())
    facts = json.loads((space / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(facts | {"texts": facts["texts"][1:]}))
    with pytest.raises(ValueError, match="Stage the Space again"):
        demo.region_model.RegionIndex(tmp_path)
