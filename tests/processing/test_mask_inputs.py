"""Masks in every form become the same bool arrays; what is no mask of one region is refused by name."""

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.mask_inputs import decode_masks, split_label_map

SIZE = (6, 4)  # width, height
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:6] = True
MASK[0, 0] = True
COUNTS = [0, 1, 8, 2, 2, 2, 2, 2, 2, 2, 1]  # down the columns: 1 one; 3 + 4 + 1 zeros; then 2 ones in each column


def picture(mode="L", value=255):
    return Image.fromarray(MASK.astype(np.uint8) * np.uint8(value)).convert(mode)


def encoded(image, picture_format="PNG", **options):
    stream = BytesIO()
    image.save(stream, picture_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * 255,
        MASK * 7.0,
        MASK.tolist(),
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).to(torch.bfloat16),
        Image.fromarray(MASK),
        picture(),
        picture(value=1),
        encoded(picture()),
        bytearray(encoded(picture())),
        {"size": [4, 6], "counts": COUNTS},
        {"size": (4, 6), "counts": np.array(COUNTS)},
        {"size": [4, 6], "counts": torch.tensor(COUNTS)},
        {"size": [4, 6], "counts": "0181J00000O"},
        {"size": [4, 6], "counts": b"0181J00000O"},
        SimpleNamespace(size=(4, 6), counts=tuple(COUNTS)),
        MaskRle.from_array(MASK),
        {"polygons": [[2, 1, 6, 1, 6, 3, 2, 3], [0, 0, 1, 0, 1, 1, 0, 1]]},
        {"polygons": [np.array([2, 1, 6, 1, 6, 3, 2, 3]), (0, 0, 1, 0, 1, 1, 0, 1)]},
    ],
)
def test_every_form_of_a_mask_gives_the_same_array(mask):
    decoded = decode_masks([mask, MASK], SIZE)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, np.stack([MASK, MASK]))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "CMYK"])
def test_pictures_of_any_mode_are_read_from_pil_paths_and_texts(mode, tmp_path):
    image = Image.fromarray(MASK.astype(np.uint16) * 1000) if mode == "I;16" else picture(mode)
    path = tmp_path / ("m.tif" if mode in ("CMYK", "I") else "m.png")
    image.save(path)
    for form in (image, path, str(path)):
        np.testing.assert_array_equal(decode_masks([form], SIZE)[0], MASK)


def test_a_colour_on_black_or_on_transparency_is_a_mask():
    colours = np.zeros((4, 6, 4), dtype=np.uint8)
    colours[MASK] = (200, 30, 0, 255)
    np.testing.assert_array_equal(decode_masks([Image.fromarray(colours)], SIZE)[0], MASK)
    np.testing.assert_array_equal(decode_masks([Image.fromarray(colours[..., :3])], SIZE)[0], MASK)
    white = np.full((4, 6, 4), 255, dtype=np.uint8)  # white everywhere, transparent but for the region
    white[..., 3] = MASK * 255
    np.testing.assert_array_equal(decode_masks([Image.fromarray(white)], SIZE)[0], MASK)


def test_grey_that_is_transparent_is_black():
    clear_black, clear_white = encoded(picture(), transparency=0), encoded(picture(), transparency=255)
    np.testing.assert_array_equal(decode_masks([clear_black], SIZE)[0], MASK)
    with pytest.raises(ValueError, match="has no pixel set"):
        decode_masks([clear_white], SIZE)


def test_a_palette_counts_by_its_colours_not_by_its_indices():
    image = Image.fromarray(1 - MASK.astype(np.uint8)).convert("P")  # index 1 outside, 0 inside
    image.putpalette([255, 255, 255, 0, 0, 0])
    np.testing.assert_array_equal(decode_masks([encoded(image)], SIZE)[0], MASK)


def test_a_mask_turned_by_its_exif_orientation_is_read_as_displayed():
    turned = Image.fromarray(np.rot90(MASK).astype(np.uint8) * 255)
    exif = turned.getexif()
    exif[0x0112] = 6  # displayed after a quarter turn clockwise
    np.testing.assert_array_equal(decode_masks([encoded(turned, exif=exif)], SIZE)[0], MASK)


def test_a_mask_of_the_whole_image_is_a_mask_in_any_type():
    for full in (np.ones((4, 6)), np.full((4, 6), 9, np.int16), Image.new("I;16", SIZE, 1000), Image.new("L", SIZE, 3)):
        assert decode_masks([full], SIZE).all()


def test_stacks_are_arrays_of_one_kind_and_bool_ones_are_not_copied():
    stack = np.stack([MASK, ~MASK])
    assert decode_masks(stack, SIZE) is stack
    for form in (stack.astype(np.uint8) * 255, torch.from_numpy(stack), torch.from_numpy(stack).to(torch.bfloat16)):
        np.testing.assert_array_equal(decode_masks(form, SIZE), stack)
    each_its_own_value = stack * np.array([1, 7])[:, None, None]
    np.testing.assert_array_equal(decode_masks(each_its_own_value, SIZE), stack)


@pytest.mark.parametrize("masks", [[], (), np.zeros((0, 4, 6)), np.zeros(0), torch.zeros(0, 4, 6, dtype=torch.bool)])
def test_no_masks_are_an_empty_array(masks):
    assert decode_masks(masks, SIZE).shape == (0, 4, 6)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 2**32 - 1))
def test_run_lengths_of_any_mask_are_that_mask(size, seed):
    mask = np.random.default_rng(seed).random(size[::-1]) < 0.5
    mask.flat[0] = True
    rle = MaskRle.from_array(mask)
    np.testing.assert_array_equal(decode_masks([{"size": rle.size, "counts": rle.counts}], size)[0], mask)


LABELS = np.array([[0, 0, 1, 1, 2, 2]] * 4, dtype=np.uint8)
ONE_OF_MANY = "no mask; it must be an array.*its path, run lengths.*polygons"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((5, 6), bool), r"has shape \(5, 6\).*\(4, 6\).*as it is displayed.*nearest neighbour"),
        (Image.new("L", (4, 6), 255), r"has shape \(6, 4\)"),
        (np.zeros((4, 6)), "has no pixel set; drop the region"),
        (Image.new("RGB", SIZE), "has no pixel set"),
        ({"size": [4, 6], "counts": [24]}, "has no pixel set"),
        (LABELS, r"has 3 values \(0, 1, 2, ...\).*0 and one other.*split_label_map"),
        (Image.fromarray(LABELS), "has 3 values"),
        (encoded(Image.fromarray(LABELS * 80)), r"\(0, 80, 160, ...\)"),
        (np.linspace(0, 1, 24).reshape(4, 6), "has 24 values.*threshold on grey values.*probabilities"),
        (np.where(MASK, np.nan, 0), "has 2 values"),
        (encoded(picture(), "JPEG"), "values.*JPEG"),
        ({"size": [6, 4], "counts": COUNTS}, r"run lengths of size \[6, 4\].*\[height, width\] = \[4, 6\]"),
        ({"size": [4, 6], "counts": [3, 4]}, "sum to 7; they must.*= 24"),
        ({"size": [4, 6], "counts": [30, -6]}, "at least 0"),
        ({"size": [4, 6], "counts": "0é"}, "no whole compressed run-length text"),
        ({"size": [4, 6], "counts": [1.5]}, "whole numbers"),
        ({"counts": COUNTS}, 'the entries.*run lengths have "size" and "counts"'),
        ({"segmentation": [[1, 1, 2, 2, 3, 3]]}, "COCO annotation, give its \"segmentation\""),
        ({"polygons": None}, "the entries"),
        ({"polygons": [[1, 1, 2, 2]]}, "polygon.*at least three points"),
        ({"polygons": [[1, 1, 2, 2, 50, 3]]}, "within the image of 6x4"),
        ({"polygons": [1, 1, 2, 2, 3, 3]}, "a polygon is a flat list"),
        ([[1, 1, 5, 1, 5, 3]], ONE_OF_MANY + ".*Wrap polygons"),
        ([[1, 1, 5, 1, 5, 3], [1, 1, 2, 1, 2, 2, 1, 2]], ONE_OF_MANY),
        ([1, 1, 5, 1, 5, 3], ONE_OF_MANY),
        (None, ONE_OF_MANY),
        ("0181J00000O", r"\(0181J00000O\) is not a file.*Of run lengths, give the whole"),
        ("1" * 5000, "is not a file"),
        ("/", "is not a file"),
        (b"not a picture", "cannot be read as a picture"),
        (encoded(picture())[:60], "cannot be read as a picture.*complete image file"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_named_with_its_image_its_region_and_a_way_out(mask, words):
    with pytest.raises(ValueError, match=f"(?s)image 3, region 1: the mask .*{words}"):
        decode_masks([MASK, mask], SIZE, image_index=3)


def test_colours_of_equal_brightness_are_still_several_labels():
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[0, :3, 0] = colours[2, :3, 1] = 128  # red and green, as the palettes of label maps have them
    with pytest.raises(ValueError, match="has 3 values"):
        decode_masks([Image.fromarray(colours)], SIZE)


def test_a_picture_of_several_pages_is_refused(tmp_path):
    picture().save(tmp_path / "m.tif", save_all=True, append_images=[picture()])
    with pytest.raises(ValueError, match=r"image 0, region 0: the mask \(.*m.tif\) has 2 frames; a mask has one"):
        decode_masks([tmp_path / "m.tif"], SIZE)


@pytest.mark.parametrize("masks", [picture(), "m.png", b"", {"size": [4, 6], "counts": COUNTS}])
def test_one_mask_without_its_list_is_refused(masks):
    with pytest.raises(ValueError, match=r"image 2: masks is a .*one mask for each region. Give one mask as \[mask\]"):
        decode_masks(masks, SIZE, image_index=2)


def test_a_stack_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"image 5: masks have shape \(4, 6\).*mask\[None\]"):
        decode_masks(MASK, SIZE, image_index=5)
    with pytest.raises(ValueError, match=r"image 5, region 0: the mask has shape \(6, 4\)"):
        decode_masks(MASK.T[None], SIZE, image_index=5)


@pytest.mark.parametrize("form", ["array", "tensor", "picture", "16 bits", "palette"])
def test_a_label_map_is_split_into_masks(form, tmp_path):
    labels = LABELS.astype(np.uint16) * 300 if form == "16 bits" else LABELS
    image = Image.fromarray(labels)
    if form == "palette":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / "labels.png")
    given_labels = {"array": labels, "tensor": torch.from_numpy(labels)}.get(form, tmp_path / "labels.png")
    masks, values = split_label_map(given_labels)
    assert values == ([300, 600] if form == "16 bits" else [1, 2])
    np.testing.assert_array_equal(masks, [LABELS == 1, LABELS == 2])
    np.testing.assert_array_equal(decode_masks(masks, SIZE), masks)


def test_what_is_no_label_map_is_refused():
    masks, values = split_label_map(np.zeros((4, 6), dtype=np.uint8))
    assert masks.shape == (0, 4, 6)
    assert values == []
    for labels in (np.ones((4, 6)), np.ones((4, 6, 3), dtype=np.uint8), picture("RGB")):
        with pytest.raises(ValueError, match=r"the label map has shape .*whole numbers"):
            split_label_map(labels)
