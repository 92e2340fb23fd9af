"""RegionMedClipProcessor keeps the conventions that the library's own common processor tests hold its processors to."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor, RegionMedClipProcessorKwargs
from regionmed_clip.train.tokenizer import train_tokenizer

IMAGE = np.arange(40 * 30, dtype=np.uint8).reshape(30, 40)
TEXT = "lower newer"


@pytest.fixture(scope="module")
def processor() -> RegionMedClipProcessor:
    image_processor = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8)
    return RegionMedClipProcessor(image_processor, train_tokenizer([TEXT], vocab_size=280, max_length=50))


def test_named_arguments_are_what_only_a_call_knows(processor):
    parameters = inspect.signature(processor.__call__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
    assert named == {"images", "text", "boxes", "masks", "points", "region_text"}
    assert all(parameter.default is None for parameter in parameters if parameter.name in named)
    assert not named & {*RegionMedClipProcessorKwargs.__annotations__, *vars(processor)}


def test_settings_are_taken_flat_by_group_and_in_common(processor):
    settings = {"padding": "max_length", "max_length": 17}
    flat = processor(images=IMAGE, text=TEXT, do_normalize=False, return_tensors="np", **settings)
    grouped = processor(
        images=IMAGE, text=TEXT, text_kwargs=settings, images_kwargs={"do_normalize": False},
        common_kwargs={"return_tensors": "np"},
    )  # fmt: skip
    assert flat["input_ids"].shape == (1, 17)
    for name in processor.model_input_names:
        assert isinstance(grouped[name], np.ndarray)
        np.testing.assert_array_equal(grouped[name], flat[name])
    with pytest.raises(ValueError, match="padding was passed two times"):
        processor(text=TEXT, padding=True, text_kwargs=settings)


def test_boxes_are_read_in_the_stated_format(processor):
    corners = processor(images=IMAGE, boxes=[(4, 6, 20, 21)])["region_boxes"]
    sides = processor(images=IMAGE, boxes=[(4, 6, 16, 15)], box_format="xywh")["region_boxes"]
    assert torch.equal(corners, sides)


def test_a_tokenizer_loaded_to_pad_to_a_length_does_so_and_a_call_may_differ(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding="max_length", max_length=23)
    padding = RegionMedClipProcessor(processor.image_processor, tokenizer)
    assert padding(text=TEXT)["input_ids"].shape == (1, 23)
    assert padding(text=TEXT, max_length=19)["input_ids"].shape == (1, 19)
    assert torch.equal(padding(text=TEXT, padding=True)["input_ids"], processor(text=TEXT)["input_ids"])


def test_a_length_left_over_from_an_earlier_call_does_not_come_back_with_the_saved_tokenizer(processor, tmp_path):
    expected = processor(text=TEXT)["input_ids"]
    processor(text=TEXT, max_length=3)
    processor.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).init_kwargs["max_length"] == 3  # the library keeps it
    assert torch.equal(RegionMedClipProcessor.from_pretrained(tmp_path)(text=TEXT)["input_ids"], expected)
