"""Odd uploads become pictures or one readable line; boxes and texts from a page are checked before they are used."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_fixtures import write_dicom
from PIL import Image

from regionmed_clip.processing.medical_image import read_image


def _save(path, picture, **options):
    picture.save(path, **options)
    return path


def test_sixteen_bits_are_shown_from_darkest_to_brightest(demo, tmp_path):
    values = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    path = _save(tmp_path / "deep.png", Image.fromarray(values))
    picture, message = demo.uploads.open_picture(path, read_image)
    assert np.asarray(picture)[..., 0].tolist() == [[0, 64], [128, 255]]  # 255 * value / 4000, rounded half to even
    assert message == "deep.png: 2 x 2 pixels."


@pytest.mark.parametrize("mode", ["CMYK", "1", "LA", "P", "RGBA", "I", "F"])
def test_a_picture_of_any_mode_opens_as_rgb(demo, tmp_path, mode):
    path = _save(tmp_path / "odd.tiff", Image.new("L", (5, 4), 200).convert(mode))
    picture, _ = demo.uploads.open_picture(path, read_image)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))


def test_a_dicom_file_opens_without_its_header(demo, tmp_path):
    path = write_dicom(tmp_path / "study.dcm", np.arange(12, dtype=np.uint16).reshape(3, 4), PatientName="DOE^JANE")
    picture, message = demo.uploads.open_picture(path, read_image)
    assert (picture.mode, picture.size, message) == ("RGB", (4, 3), "study.dcm: 4 x 3 pixels.")


def test_ct_is_shown_through_the_models_own_window_and_what_it_does_not_fit_as_the_file_says(demo, tmp_path):
    values = np.array([[-1350, -600], [150, 1000]], dtype=np.int16)  # black, the middle, white, beyond
    own = {"window": demo.uploads.OF_MODEL, "model_window": "lung"}
    ct = write_dicom(tmp_path / "ct.dcm", values, Modality="CT", WindowCenter=50, WindowWidth=350)
    picture, message = demo.uploads.open_picture(ct, read_image, **own)
    assert np.asarray(picture)[..., 0].tolist() == [[0, 128], [255, 255]]
    assert message == "ct.dcm: 2 x 2 pixels through the window lung."
    as_stored, message = demo.uploads.open_picture(ct, read_image, model_window="lung")
    assert np.asarray(as_stored)[..., 0].tolist() == [[0, 0], [201, 255]]  # LINEAR: (100.5 / 349 + 0.5) * 255
    assert message == "ct.dcm: 2 x 2 pixels."
    film = write_dicom(tmp_path / "film.dcm", values.astype(np.uint16), Modality="DX")
    drawing = _save(tmp_path / "drawing.png", Image.new("L", (2, 2), 7))
    for path in (film, drawing):
        shown, message = demo.uploads.open_picture(path, read_image, **own)
        assert shown.tobytes() == demo.uploads.open_picture(path, read_image)[0].tobytes()
        assert "window" not in message
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^broken\.png"):
        demo.uploads.open_picture(tmp_path / "broken.png", read_image, **own)


def test_a_slice_of_a_ct_volume_is_shown_through_a_window(demo, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="pip install -e '.[dicom]'")
    volume = np.full((4, 3, 2), -600, dtype=np.int16)
    volume[..., 1] = 150
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "chest.nii.gz")
    own = {"window": demo.uploads.OF_MODEL, "model_window": [-600, 1500]}
    with pytest.raises(ValueError, match=r'^chest\.nii\.gz of .* has 2 axial slices.*"Frame or slice" under Options'):
        demo.uploads.open_picture(tmp_path / "chest.nii.gz", read_image, **own)
    for number, level in enumerate((128, 255)):
        picture, message = demo.uploads.open_picture(tmp_path / "chest.nii.gz", read_image, number=number, **own)
        assert (picture.size, picture.getpixel((0, 0))) == ((4, 3), (level,) * 3)
        assert message == "chest.nii.gz: 4 x 3 pixels through the window [-600, 1500]."


def test_a_pixel_is_a_picture(demo, tmp_path):
    picture, _ = demo.uploads.open_picture(_save(tmp_path / "dot.png", Image.new("L", (1, 1), 7)), read_image)
    assert picture.getpixel((0, 0)) == (7, 7, 7)


def test_a_large_picture_is_shown_smaller_and_says_so(demo, tmp_path):
    path = _save(tmp_path / "wide.png", Image.new("L", (3200, 4)))
    picture, message = demo.uploads.open_picture(path, read_image)
    assert picture.size == (1600, 2)
    assert message == "wide.png: 3200 x 4 pixels, shown and read at 1600 x 2."


@pytest.mark.parametrize(
    ("name", "content"),
    [("page.html", b"<html>"), ("empty.png", b""), ("broken.dcm", bytes(128) + b"DICM" + b"\x00" * 40)],
)
def test_a_file_that_is_no_picture_is_refused_by_its_own_name(demo, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        demo.uploads.open_picture(tmp_path / name, read_image)
    assert name in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


def test_a_bomb_is_refused_before_it_is_decoded(demo, tmp_path):
    path = _save(tmp_path / "bomb.png", Image.new("1", (20000, 10000)))  # 25 kB, 200 million pixels
    with pytest.raises(ValueError, match="is too large"):
        demo.uploads.open_picture(path, read_image)


def test_several_frames_need_a_number_and_the_line_names_the_field(demo, tmp_path):
    frames = [Image.new("L", (3, 3), level) for level in (10, 20)]
    path = _save(tmp_path / "two.tiff", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match='"Frame or slice" under Options'):
        demo.uploads.open_picture(path, read_image)
    picture, _ = demo.uploads.open_picture(path, read_image, number=1)
    assert picture.getpixel((0, 0)) == (20, 20, 20)


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400, -1, 0.5, "1"])
def test_what_is_no_number_of_a_frame_is_refused(demo, tmp_path, number):
    path = _save(tmp_path / "one.png", Image.new("L", (3, 3)))
    with pytest.raises(ValueError, match=r'"Frame or slice" under Options is .*; it must be a whole number from 0'):
        demo.uploads.open_picture(path, read_image, number=number)


def test_boxes_are_clipped_to_the_picture(demo):
    boxes = demo.uploads.check_boxes({"boxes": [[-5, 2, 200, 30]]}, 100, 50)
    assert boxes == [(0.0, 2.0, 100.0, 30.0)]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "reload"),
        ({"boxes": "x"}, "reload"),
        ({"boxes": [[1, 2, 3]]}, "Box 1 is"),
        ({"boxes": [[0, 0, 9, 9], [0, 0, float("nan"), 5]]}, "Box 2 is"),
        ({"boxes": [[0, 0, "9", 9]]}, "four numbers"),
        ({"boxes": [[10**400, 0, 9, 9]]}, "four numbers"),
        ({"boxes": [[0, 0, float("-inf"), 9]]}, "four numbers"),
        ({"boxes": [[200, 0, 300, 40]]}, "no area inside the picture of 100 x 50"),
        ({"boxes": [[0, 0, 9, 9]] * 13}, "at most 12"),
    ],
)
def test_what_is_no_box_is_refused_with_its_number(demo, payload, message):
    with pytest.raises(ValueError, match=message):
        demo.uploads.check_boxes(payload, 100, 50)


def test_texts_are_read_one_a_line_each_once(demo):
    assert demo.uploads.check_texts(" nodule \n\ncyst\nnodule\n") == ["nodule", "cyst"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "at least two"),
        ("nodule", "at least two"),
        ("\n".join(map(str, range(25))), "at most 24"),
        ("a" * 301 + "\nb", "301"),
    ],
)
def test_too_few_too_many_or_too_long_texts_are_refused(demo, raw, message):
    with pytest.raises(ValueError, match=message):
        demo.uploads.check_texts(raw)
