"""The recipe key `box_noise`: drawn anew at every position, the same in every run, and nothing where it is 0."""

import numpy as np
import pytest

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.augmented_samples import PositionedSamples, SampleSettings
from regionmed_clip.train.frame_store import StoredSample
from regionmed_clip.train.sample_order import SampleOrder

SMOKE = RECIPES_FOLDER / "smoke.yaml"
BOX = np.array([[0.25, 0.25, 0.75, 0.5]], dtype=np.float32)


class Store:
    def samples(self, indices):
        frame = np.zeros((3, 24, 24), dtype=np.uint8)
        return [StoredSample(str(i), frame, "text", 1, BOX, ("nodule",), (2,), ("nodule",), "test") for i in indices]


def boxes_at(positions: list[int], box_noise: float) -> np.ndarray:
    samples = PositionedSamples(Store(), SampleOrder(2, seed=3), SampleSettings(4, box_noise)).__getitems__(positions)
    return np.stack([sample.boxes for sample, _ in samples])


def test_the_same_image_gets_other_boxes_at_another_position_and_the_same_in_another_run():
    boxes = boxes_at(list(range(6)), 0.2)
    assert boxes.dtype == np.float32
    assert len(np.unique(boxes, axis=0)) == 6
    assert np.array_equal(boxes[2:4], boxes_at([2, 3], 0.2))
    assert np.abs(boxes - BOX).max() <= 0.2 * 0.5 + 1e-6  # of the longer side


def test_without_noise_boxes_are_those_of_the_store():
    assert np.array_equal(boxes_at([0, 1], 0.0), np.stack([BOX, BOX]))


@pytest.mark.parametrize("share", ["-0.1", "0.6", ".nan"])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"box_noise is .*; it must be from 0 to 0\.5"):
        load_recipe(SMOKE, [f"box_noise={share}"])


def test_noise_decides_the_weights_and_no_noise_is_as_before_there_was_any():
    plain, noisy = load_recipe(SMOKE), load_recipe(SMOKE, ["box_noise=0.2"])
    assert load_recipe(SMOKE, ["box_noise=0"]).fingerprint() == plain.fingerprint() != noisy.fingerprint()
