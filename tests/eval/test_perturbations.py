"""Worse images: how much worse, the same for everybody, and nothing else of the example changed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.eval.tasks.perturbations import (
    PERTURBATIONS,
    Perturbation,
    perturb_all,
    perturb_example,
    perturb_image,
)
from regionmed_clip.processing.corpus.shown_image import shown_image

ZERO = np.random.default_rng(0)


def change(kind: str, strength: int) -> Perturbation:
    return Perturbation(kind, strength, kind)


def ramp(size=(64, 32)) -> Image.Image:
    """Grey levels from 64 to 190 along x."""
    levels = np.linspace(64, 190, size[0]).round().astype(np.uint8)
    return Image.fromarray(np.tile(levels, (size[1], 1)))


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_perturbation_keeps_mode_and_size_and_changes_the_picture(perturbation, mode):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 200, 3), dtype=np.uint8)).convert(mode)
    changed = perturb_image(image, perturbation, np.random.default_rng(0))
    assert (changed.mode, changed.size) == (mode, image.size)
    assert not np.array_equal(np.asarray(changed), np.asarray(image))


def test_noise_has_the_stated_spread_and_grain():
    grey = Image.fromarray(np.full((256, 512), 128, dtype=np.uint8))
    noisy = np.asarray(perturb_image(grey, change("noise", 5), np.random.default_rng(0))).astype(float)
    assert noisy.std() == pytest.approx(0.05 * 255, rel=0.03)  # 64 x 128 cells: 1 / sqrt(2 x 8192) = 0.8 %
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    cells = noisy.reshape(64, 4, 128, 4)  # 512 / 128 = 4 pixels a cell
    assert np.ptp(cells, axis=(1, 3)).max() == 0


def test_stronger_noise_is_the_same_noise():
    example = {"image_id": "one", "image": Image.new("L", (40, 40), 128)}
    weak, strong = (
        np.asarray(perturb_example(example, example["image"], change("noise", percent), 0)["image"]).astype(float) - 128
        for percent in (5, 15)
    )
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.99


def test_contrast_shrinks_differences_about_the_mean():
    image = ramp()
    levels = np.asarray(image).astype(float)
    changed = np.asarray(perturb_image(image, change("contrast", 30), ZERO)).astype(float)
    np.testing.assert_allclose(changed, levels.mean() + 0.3 * (levels - levels.mean()), atol=0.5)


def test_resolution_wipes_out_what_is_finer_and_spares_what_is_not():
    rows, columns = np.indices((96, 192))
    fine = Image.fromarray((255 * ((rows + columns) % 2)).astype(np.uint8))
    changed = np.asarray(perturb_image(fine, change("resolution", 48), ZERO)).astype(float)
    np.testing.assert_allclose(changed, 127.5, atol=1)
    assert np.array_equal(np.asarray(perturb_image(ramp(), change("resolution", 96), ZERO)), np.asarray(ramp()))


def test_a_window_moves_by_a_share_of_its_width():
    levels = np.asarray(ramp()).astype(float)
    for sign in (1, -1):
        changed = np.asarray(perturb_image(ramp(), change("window", 10), ZERO, sign)).astype(float)
        np.testing.assert_allclose(changed, levels - sign * 25.5, atol=0.51)  # halves are rounded to even


def test_a_stored_window_moves_instead_of_the_levels():
    stored = np.linspace(-1000, 1000, 400).reshape(20, 20).astype(np.int32)
    example = {"image_id": "ct", "image": Image.fromarray(stored), "window": [-160.0, 240.0]}
    moved = perturb_example(example, shown_image(example), change("window", 25), 0)
    assert moved["image"] is example["image"]
    low, high = moved["window"]
    assert abs(low + 160) == 100
    assert high - low == 400


def test_a_window_moves_up_for_some_images_and_down_for_others():
    image = Image.new("L", (4, 4), 128)
    levels = {
        np.asarray(perturb_example({"image_id": str(i), "image": image}, image, change("window", 10), 0)["image"])[0, 0]
        for i in range(20)
    }
    assert len(levels) == 2


def test_what_is_drawn_follows_from_seed_and_name_alone(draw_example):
    first, again, other = draw_example(0), draw_example(0), draw_example(0) | {"image_id": "another"}
    noise = change("noise", 15)
    pixels = [
        np.asarray(next(perturb_all([example], [noise], seed))["image"])
        for example, seed in ((first, 0), (again, 0), (other, 0), (first, 1))
    ]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    assert not np.array_equal(pixels[0], pixels[3])


def test_texts_and_boxes_stay_and_examples_come_under_every_change_in_turn(draw_example):
    examples = [draw_example(i) for i in range(2)]
    changed = list(perturb_all(examples, PERTURBATIONS, 0))
    assert [one["image_id"] for one in changed] == ["drawn-0"] * len(PERTURBATIONS) + ["drawn-1"] * len(PERTURBATIONS)
    assert all(one["regions"] == examples[0]["regions"] for one in changed[: len(PERTURBATIONS)])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'fog' is not known; choose noise, contrast, resolution or window"):
        perturb_image(ramp(), change("fog", 10), ZERO)
