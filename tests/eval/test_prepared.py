"""An example made ready for a model: 16-bit images are seen through their window, also in crops."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from regionmed_clip.eval.tasks.prepared import PreparedExample
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
