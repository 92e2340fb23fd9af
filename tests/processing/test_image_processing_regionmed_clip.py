"""`pixel_values` show the whole image, undistorted, in the frame the model sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

RNG = np.random.default_rng(0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def processor() -> RegionMedClipImageProcessor:
    return RegionMedClipImageProcessor(size=64, patch_size=16)


def test_a_call_is_frame_and_then_normalize_frames(processor):
    images = [noise(100, 40), noise(30, 70, "L")]
    frames = torch.from_numpy(np.stack([processor.frame(image)[0] for image in images]))
    assert frames.dtype == torch.uint8
    pixel_values = processor(images, return_tensors="pt").pixel_values
    assert pixel_values.dtype == torch.float32
    assert pixel_values.shape == (2, 3, 64, 64)
    assert torch.equal(pixel_values, processor.normalize_frames(frames))


def test_normalisation_is_rescaling_then_mean_and_standard_deviation(processor):
    frames = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(processor.normalize_frames(frames), (frames / 255 - mean) / std, atol=1e-6, rtol=0)
    plain = RegionMedClipImageProcessor(size=64, do_rescale=False, do_normalize=False)
    assert torch.equal(plain.normalize_frames(frames), frames.float())


def test_the_padded_frame_holds_the_resized_image_in_its_middle_on_black(processor):
    image = noise(100, 40)
    frame, geometry = processor.frame(image)
    assert (geometry.resized, geometry.offset, geometry.frame) == ((64, 26), (0, 19), (64, 64))
    resized = np.asarray(image.resize((64, 26), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(frame[:, 19:45], resized)
    assert not frame[:, :19].any()
    assert not frame[:, 45:].any()


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300))
def test_an_image_of_any_size_fills_the_frame_along_its_longer_side(width, height):
    processor = RegionMedClipImageProcessor(size=32, patch_size=8)
    frame, geometry = processor.frame(Image.new("L", (width, height), 255))
    assert frame.shape == (3, 32, 32)
    assert int((frame[0] == 255).sum()) == geometry.resized[0] * geometry.resized[1]
    assert max(geometry.resized) == 32


def test_grey_images_give_the_same_frame_as_their_rgb_copies(processor):
    grey = noise(90, 77, "L")
    np.testing.assert_array_equal(processor.frame(grey)[0], processor.frame(grey.convert("RGB"))[0])


def test_a_batch_equals_its_items(processor):
    images = [noise(100, 40), noise(64, 64), noise(3, 200, "L")]
    together = processor(images, return_tensors="pt").pixel_values
    assert torch.equal(together, torch.cat([processor(image, return_tensors="pt").pixel_values for image in images]))


def test_a_batch_may_be_a_list_of_any_kinds_or_an_array_of_four_dimensions(processor, tmp_path):
    image = noise(64, 64)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    kinds = [image, array, torch.from_numpy(array.copy()).permute(2, 0, 1), tmp_path / "a.png", str(tmp_path / "a.png")]
    values = processor(kinds, return_tensors="pt").pixel_values
    assert all(torch.equal(values[0], value) for value in values[1:])
    assert torch.equal(processor(np.stack([array, array]), return_tensors="pt").pixel_values, values[:2])
    assert isinstance(processor(image, return_tensors="np").pixel_values, np.ndarray)
    assert isinstance(processor(image).pixel_values, list)


def test_lists_of_images_in_a_list_are_joined(processor):
    images = [noise(40, 30), noise(30, 40)]
    nested = processor([[], [images[0]], [images[1]]], return_tensors="pt").pixel_values
    assert torch.equal(nested, processor(images, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("images", "words"),
    [([], "images is empty"), ([[]], "images is empty"), ([[[noise(4, 4)]]], "image 0 is a list"),
     ([noise(4, 4), [noise(4, 4)]], "image 1 is a list")],
)  # fmt: skip
def test_an_empty_batch_and_one_nested_twice_or_in_part_are_refused(processor, images, words):
    with pytest.raises(ValueError, match=words):
        processor(images)


def test_the_name_of_a_broken_image_is_its_place_in_the_batch(processor):
    with pytest.raises(ValueError, match=r"image 1 .*NaN"):
        processor([noise(4, 4), np.full((4, 4), np.nan)])


@pytest.mark.parametrize("size", [(640, 480), (333, 1001), (224, 224), (100, 57)])
def test_source_geometry_repeats_the_clip_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = noise(*size)
    ours = RegionMedClipImageProcessor(
        geometry="source", size={"shortest_edge": 224}, do_center_crop=True, crop_size=224, patch_size=32
    )
    expected = CLIPImageProcessorPil()(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours(image, return_tensors="pt").pixel_values, expected, atol=1e-6, rtol=0)


def test_source_geometry_without_a_crop_squashes_the_image(processor):
    squash = RegionMedClipImageProcessor(geometry="source", size=64)
    image = noise(100, 40)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(squash.frame(image)[0], expected)


def test_saving_and_loading_keeps_every_setting_and_every_pixel(tmp_path):
    processor = RegionMedClipImageProcessor(
        geometry="source",
        size={"shortest_edge": 80},
        do_center_crop=True,
        crop_size=64,
        patch_size=8,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(tmp_path)
    loaded = RegionMedClipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.patch_size, loaded.geometry, loaded.frame_size, loaded.grid_size) == (8, "source", (64, 64), (8, 8))
    image = noise(200, 90)
    np.testing.assert_array_equal(loaded(image).pixel_values[0], processor(image).pixel_values[0])
    assert RegionMedClipImageProcessor.from_pretrained(tmp_path, patch_size=16).patch_size == 16


def test_a_setting_may_be_changed_for_one_call(processor):
    assert processor(noise(9, 9), size=32, return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)
    assert processor.frame_size == (64, 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 224, "patch_size": 15}, "patch_size 15 does not divide the frame of 224 x 224"),
        ({"geometry": "stretch"}, "'stretch' is not known; it must be one of pad, source"),
        ({"size": {"shortest_edge": 224}}, "has no fixed frame"),
        ({"geometry": "source", "size": {"shortest_edge": 224}}, "has no fixed frame"),
        ({"do_pad": True}, "do_pad=True is not supported"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RegionMedClipImageProcessor(**settings)


def test_an_unknown_setting_of_a_call_and_an_unresized_image_too_large_are_refused(processor):
    with pytest.raises(ValueError, match=r"settings \['colour'\] are not known"):
        processor(noise(4, 4), colour=True)
    with pytest.raises(ValueError, match="65 x 4 pixels does not fit the frame"):
        processor(noise(65, 4), do_resize=False)
    assert processor(noise(60, 4), do_resize=False, return_tensors="np").pixel_values.shape == (1, 3, 64, 64)
