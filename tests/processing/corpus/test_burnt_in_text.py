"""The warning for burnt-in text: letters near a border, in sizes and colours that occur, and what is no text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from regionmed_clip.processing.corpus.burnt_in_text import find_burnt_in_text
from regionmed_clip.processing.corpus.sources.phantom import PhantomSource

LINE = "SMITH ANNA 0471"


def picture(size=(480, 400), ground=12, mode="L"):
    return Image.new(mode, size, ground)


def written(image, place, height, ink, text=LINE):
    ImageDraw.Draw(image).text(place, text, fill=ink, font=ImageFont.load_default(height))
    return image


@pytest.mark.parametrize("height", [10, 14, 20, 32])
@pytest.mark.parametrize("place", [(10, 6), (220, 8), (10, 360)])
def test_a_line_of_letters_is_found_where_it_stands(height, place):
    boxes = find_burnt_in_text(written(picture(), place, height, 230))
    assert boxes
    assert all(abs(box[1] - place[1]) < 1.5 * height for box in boxes)
    assert all(box[0] < place[0] + 12 * height and box[2] > place[0] for box in boxes)


@pytest.mark.parametrize(
    ("image", "ink"),
    [
        (picture(ground=230), 20),  # dark on bright
        (picture(ground=0), 90),  # a faint grey
        (picture(ground=(0, 0, 0), mode="RGB"), (0, 0, 200)),  # blue, nearly black as grey
        (picture(ground=300, mode="I;16"), 4000),
        (picture(ground=(0, 0, 0, 255), mode="RGBA"), (255, 255, 0, 255)),
    ],
)
def test_letters_of_any_colour_and_depth_are_found(image, ink):
    assert find_burnt_in_text(written(image, (10, 8), 16, ink))


def test_letters_of_a_large_film_are_found_at_their_place():
    boxes = find_burnt_in_text(written(picture((2400, 2000)), (1500, 1850), 60, 255))
    assert boxes
    assert all(1100 <= x0 < x1 <= 2400 and 1830 <= y0 < y1 <= 1970 for x0, y0, x1, y1 in boxes)  # a window is 384 wide


def test_words_over_noise_of_a_scanner_are_found():
    grain = np.random.default_rng(0).normal(12, 3, (400, 480)).clip(0, 255).astype(np.uint8)
    assert find_burnt_in_text(written(Image.fromarray(grain), (10, 8), 16, 220))


def striped(step):
    """Bright bars, as ribs or a grid may look."""
    pixels = np.zeros((400, 480), dtype=np.uint8)
    pixels[:, ::step] = 255
    return Image.fromarray(pixels)


NO_TEXT = {
    "black": picture(ground=0),
    "one letter": written(picture(), (10, 8), 24, 255, "L"),
    "letters in the middle": written(picture(), (180, 190), 16, 255),
    "noise": Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 480), dtype=np.uint8)),
    "bars": striped(12),
    "checks": Image.fromarray(np.kron(np.indices((50, 60)).sum(axis=0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)),
    "tiny": picture((20, 20)),
    "flat 16 bits": picture(ground=700, mode="I;16"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_line_of_text_near_a_border_gives_nothing(name):
    assert find_burnt_in_text(NO_TEXT[name]) == []


def test_phantoms_carry_no_text():
    import io

    for record in PhantomSource(num_train=24, num_test=0).records("train"):
        assert find_burnt_in_text(Image.open(io.BytesIO(record.image))) == []


def test_real_images_with_marks_are_told_from_those_without(real_data_folder):
    """VQA-RAD images all carry a host's mark and line; blood smears, ultrasound and CT of these sources carry none."""

    def share(name, step):
        paths = sorted((real_data_folder / name / "images").iterdir())[::step]
        return sum(bool(find_burnt_in_text(Image.open(path))) for path in paths) / len(paths)

    assert share("vqa_rad_dev", 12) == 1.0
    assert [share(name, step) for name, step in (("bccd", 25), ("usgra_ultrasound", 20), ("ct_ich", 6))] == [0.0] * 3
