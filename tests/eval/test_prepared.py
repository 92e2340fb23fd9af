"""An example made ready for a model: 16-bit images are seen through their window, also in crops."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.eval.tasks.prepared import PreparedExample, keep_prepared
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor


def test_frame_and_crops_of_a_16_bit_image_show_its_window():
    values = np.full((8, 8), 1000, dtype=np.uint16)
    values[2:4, 2:6], values[6:, :] = 2000, 60000
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    example = {"image": {"bytes": content.getvalue(), "path": None}, "window": [1000.0, 2000.0]}
    example["regions"] = [{"box": [2.0, 2.0, 6.0, 4.0]}]
    processor = RegionMedClipImageProcessor(size={"height": 8, "width": 8}, patch_size=4)
    prepared = PreparedExample.read(example, processor, has_crops=True)
    expected = np.where(values >= 2000, 255, 0)
    np.testing.assert_array_equal(prepared.frame, np.stack([expected] * 3))
    assert prepared.crops[0][:, 2:6].min() == 255  # the box is twice as wide as high: padded above and below


def test_kept_examples_give_what_reading_them_gave_and_hold_their_images_only_if_asked(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    example = {"image_id": "a", "image": Image.fromarray(image), "regions": [{"box": [0.0, 0.0, 6.0, 6.0]}]}
    processor = RegionMedClipImageProcessor(size={"height": 8, "width": 8}, patch_size=4)
    read = PreparedExample.read(example, processor, has_crops=False)
    for has_images in (True, False):
        (kept,) = keep_prepared([example], processor, tmp_path / "frames", has_images=has_images)
        again = PreparedExample.read(kept, processor, has_crops=False)
        np.testing.assert_array_equal(again.frame, read.frame)
        np.testing.assert_array_equal(again.boxes, read.boxes)
        assert again.regions == read.regions
        assert ("image" in kept) is has_images
    (kept,) = keep_prepared([example], processor, tmp_path / "frames", has_images=True)
    assert len(PreparedExample.read(kept, processor, has_crops=True).crops) == 1  # crops are cut from the image itself


def test_nothing_is_kept_of_an_empty_split(tmp_path):
    processor = RegionMedClipImageProcessor(size={"height": 8, "width": 8}, patch_size=4)
    with pytest.raises(ValueError, match="the split has no examples"):
        keep_prepared([], processor, tmp_path / "frames", has_images=False)


def test_examples_are_shown_as_the_corpus_shows_them_whatever_window_was_saved_with_the_model():
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    of_8_bits = {"image": Image.fromarray(levels), "regions": [{"box": [2.0, 2.0, 6.0, 4.0]}]}
    of_16_bits = {**of_8_bits, "image": Image.fromarray(levels.astype(np.uint16) * 100), "window": [1000.0, 5000.0]}
    size = {"size": {"height": 8, "width": 8}, "patch_size": 4}
    plain = RegionMedClipImageProcessor(**size)
    windowed = RegionMedClipImageProcessor(**size, window="lung", frame_index=3)
    for example in (of_8_bits, of_16_bits):
        expected, found = (PreparedExample.read(example, one, has_crops=True) for one in (plain, windowed))
        np.testing.assert_array_equal(found.frame, expected.frame)
        np.testing.assert_array_equal(found.crops[0], expected.crops[0])
