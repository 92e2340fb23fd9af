"""The picture of grounded phrases shows boxes only where there are some, and agrees with the processor on pixels."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from tiny_models import tiny_model

from regionmed_clip.eval.grounding_pictures import draw_grounding, draw_grounding_of, ground_images
from regionmed_clip.eval.selection import Shown
from regionmed_clip.eval.style import HIT, MAX_BYTES, TRUTH
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8))
PHRASES = ["nodule", "effusion"]
TEXT_TOWER = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 2, "vocab_size": 300}  # fmt: skip


def answer(labels, boxes) -> dict:
    return {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.full((len(labels),), 0.8),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


def count_colour(path, colour: str) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - ImageColor.getrgb(colour)).sum(axis=-1) < 12).sum())


def test_boxes_are_drawn_for_a_phrase_that_was_found_and_none_for_an_absent_one(tmp_path):
    heat = [np.linspace(0, 1, 2 * 40 * 60, dtype=np.float32).reshape(2, 40, 60)]
    box = [10.0, 8.0, 40.0, 30.0]
    for name, found in {"seen": answer([1], [box]), "absent": answer([], [])}.items():
        assert draw_grounding(tmp_path / f"{name}.png", [IMAGE], PHRASES, [found], heat, note="drawn for a test")
        assert (tmp_path / f"{name}.png").stat().st_size <= MAX_BYTES
    assert count_colour(tmp_path / "absent.png", HIT) == 0
    assert count_colour(tmp_path / "seen.png", HIT) > 100
    assert count_colour(tmp_path / "seen.png", TRUTH) == 0
    truth = [{"nodule": [box]}]
    draw_grounding(tmp_path / "truth.png", [IMAGE], PHRASES, [answer([], [])], heat, true_boxes=truth)
    assert count_colour(tmp_path / "truth.png", TRUTH) > 100


def test_heat_that_a_crop_left_unknown_is_drawn_as_cold(tmp_path):
    heat = np.zeros((1, 40, 60), dtype=np.float32)
    heat[:, :, :10] = np.nan
    assert draw_grounding(tmp_path / "a.png", [IMAGE], ["nodule"], [answer([], [])], [heat])


@pytest.mark.parametrize(("images", "phrases"), [([], PHRASES), ([IMAGE], [])])
def test_without_images_or_phrases_nothing_is_drawn(tmp_path, images, phrases):
    assert not draw_grounding(tmp_path / "a.png", images, phrases, [], [])
    assert not (tmp_path / "a.png").exists()


def test_images_are_grounded_through_the_public_calls():
    tokenizer = train_tokenizer(["nodule effusion"] * 3, vocab_size=300, max_length=16)
    processor = RegionMedClipProcessor(RegionMedClipImageProcessor(size=48, patch_size=12), tokenizer)
    model = tiny_model(proposal_threshold=0.0, text_config=TEXT_TOWER)
    found, heat = ground_images(model, processor, [IMAGE, IMAGE.rotate(90, expand=True)], PHRASES, threshold=-1.0)
    assert [maps.shape for maps in heat] == [(2, 40, 60), (2, 60, 40)]
    assert all(len(one["boxes"]) > 0 for one in found)
    assert set(found[0]["text_labels"]) == set(PHRASES)
    assert (found[0]["boxes"][:, 2] <= 60).all()
    assert (found[1]["boxes"][:, 2] <= 40).all()
    windowed = RegionMedClipProcessor(processor.image_processor.with_overrides(window="lung"), processor.tokenizer)
    _, same = ground_images(model, windowed, [IMAGE, IMAGE.rotate(90, expand=True)], PHRASES, threshold=-1.0)
    np.testing.assert_array_equal(same[0], heat[0])  # pictures of a corpus are of 8 bits, whatever the model's window
    (pointed, _), _ = ground_images(model, processor, [IMAGE, IMAGE], PHRASES, source="heat", threshold=-1.0)
    assert set(pointed["labels"].tolist()) == {0, 1}


def test_every_image_is_asked_for_one_text_of_each_and_its_own_regions_are_marked(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(PHRASES, vocab_size=300, max_length=16)
    image_processor = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12)
    processor, model = RegionMedClipProcessor(image_processor, tokenizer), tiny_model(text_config=TEXT_TOWER)
    image = IMAGE.convert("RGB")
    shown = [
        Shown(row, image, {}, [{"description": phrase, "box": [10.0, 8.0, 40.0, 30.0]}])
        for row, phrase in enumerate(PHRASES)
    ]
    assert draw_grounding_of(tmp_path / "both.png", model, processor, [*shown, Shown(2, image, {}, [])])
    assert count_colour(tmp_path / "both.png", TRUTH) > 200  # one annotated box a phrase
    assert count_colour(tmp_path / "both.png", HIT) == 0  # an untrained head proposes nothing
    assert not draw_grounding_of(tmp_path / "none.png", model, processor, [Shown(2, image, {}, [])])
