"""A slice of a NIfTI volume: right side up whatever the file stores, chosen by number, its values windowed."""

import gzip
import itertools

import numpy as np
import pytest

from regionmed_clip.processing.medical_image import decode_image
from regionmed_clip.processing.nifti_slice import nifti_slice

nibabel = pytest.importorskip("nibabel", reason='NIfTI tests need nibabel: pip install -e ".[dicom]"')

RAS = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) * 100 - 1000  # [to the right, to the front, upwards]


def save(path, volume, affine=None):
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def test_the_slice_is_shown_as_radiologists_look_at_it(tmp_path):
    path = save(tmp_path / "a.nii", RAS)
    right, front, top = 1, 2, 3  # the last index along each axis
    axial = nifti_slice(path, 0)
    assert axial.shape == (3, 2)  # rows from front to back, columns from the patient's right to left
    assert axial[0, 0] == RAS[right, front, 0]
    assert axial[2, 1] == RAS[0, 0, 0]
    coronal = nifti_slice(path, 1, "coronal")
    assert coronal.shape == (4, 2)  # rows from top to bottom
    assert coronal[0, 0] == RAS[right, 1, top]
    assert coronal[3, 0] == RAS[right, 1, 0]
    sagittal = nifti_slice(path, 0, "sagittal")
    assert sagittal.shape == (4, 3)  # columns from front to back
    assert sagittal[0, 0] == RAS[0, front, top]
    assert sagittal[3, 2] == RAS[0, 0, 0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_order_in_which_the_file_stores_its_axes_changes_nothing(axis):
    name = ("sagittal", "coronal", "axial")[axis]
    straight = nibabel.Nifti1Image(RAS, np.diag([2.0, 3.0, 4.0, 1.0]))
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        turned = straight.as_reoriented(np.array([[order[i], signs[i]] for i in range(3)]))
        assert nibabel.as_closest_canonical(turned).get_fdata().tolist() == RAS.tolist()  # the test itself
        for index in range(RAS.shape[axis]):
            expected = np.take(RAS, index, axis)[::-1, ::-1].T
            np.testing.assert_array_equal(nifti_slice(turned, index, axis), expected)
            np.testing.assert_array_equal(nifti_slice(turned, index, name), expected)


def test_an_oblique_volume_is_read_along_its_nearest_axes():
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    np.testing.assert_array_equal(
        nifti_slice(nibabel.Nifti1Image(RAS, affine), 1), nifti_slice(nibabel.Nifti1Image(RAS, np.eye(4)), 1)
    )


def test_slope_and_intercept_of_the_header_are_applied(tmp_path):
    image = nibabel.Nifti1Image(RAS, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "a.nii.gz")
    stored = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nifti_slice(tmp_path / "a.nii.gz", 2), np.asarray(stored.dataobj)[::-1, ::-1, 2].T)


def test_the_picture_goes_from_the_minimum_to_the_maximum_of_the_slice_or_through_windows(tmp_path):
    hounsfield = np.array([-1000, 0, 20, 40, 80, 3000], dtype=np.int16).reshape(3, 2, 1)
    path = save(tmp_path / "ct.nii.gz", hounsfield)
    shown = hounsfield[::-1, ::-1, 0].T.astype(float)
    image = decode_image(path)  # one slice needs no choice
    assert (image.mode, image.size) == ("L", (3, 2))
    np.testing.assert_allclose(np.asarray(image), (shown + 1000) / 4000 * 255, atol=0.5)  # rounded to whole levels
    np.testing.assert_allclose(
        np.asarray(decode_image(path, window="brain")), np.clip(shown / 80, 0, 1) * 255, atol=0.5
    )
    colour = decode_image(path, window=["brain", (20, 40), "bone"])
    assert colour.mode == "RGB"
    np.testing.assert_allclose(np.asarray(colour)[..., 1], np.clip(shown / 40, 0, 1) * 255, atol=0.5)


def test_eight_bit_volumes_keep_their_levels():
    levels = np.array([[[3], [200]], [[7], [9]]], dtype=np.uint8)
    image = decode_image(nibabel.Nifti1Image(levels, np.eye(4)))
    np.testing.assert_array_equal(np.asarray(image), levels[::-1, ::-1, 0].T)


def test_of_four_dimensions_a_volume_is_chosen_too():
    series = np.stack([RAS, RAS + 1, RAS + 2], axis=-1)
    image = nibabel.Nifti1Image(series, np.eye(4))
    np.testing.assert_array_equal(nifti_slice(image, 1, frame_index=2), np.take(RAS + 2, 1, 2)[::-1, ::-1].T)
    with pytest.raises(ValueError, match=r"2 x 3 x 4 x 3 voxels has 3 volumes.*frame_index=0 to frame_index=2"):
        nifti_slice(image, 1)
    one = nibabel.Nifti1Image(series[..., :1], np.eye(4))
    np.testing.assert_array_equal(nifti_slice(one, 1), np.take(RAS, 1, 2)[::-1, ::-1].T)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"image 5 \(.*a.nii\) of 2 x 3 x 4 voxels has 4 axial slices.*slice_index=0 to slice_index=3"),
        ({"slice_axis": "coronal"}, "has 3 coronal slices"),
        ({"slice_index": 4}, "slice_index is 4"),
        ({"slice_index": -1}, "slice_index is -1"),
        ({"slice_index": 1.0}, "slice_index is 1.0"),
        ({"slice_index": 0, "frame_index": 1}, "has 1 volumes, and frame_index is 1; leave frame_index out"),
        ({"slice_index": 0, "slice_axis": "top"}, "slice_axis 'top' is not known.*sagittal"),
        ({"slice_index": 0, "slice_axis": 3}, "slice_axis 3 is not known"),
        ({"slice_index": 0, "slice_axis": True}, "slice_axis True is not known"),
    ],
)
def test_a_choice_that_is_missing_or_not_there_is_named_with_the_size(tmp_path, options, words):
    path = save(tmp_path / "a.nii", RAS)
    with pytest.raises(ValueError, match=words):
        decode_image(path, "image 5", **options)


def test_a_ct_preset_is_refused_where_no_value_is_that_of_air_or_fat(tmp_path):
    path = save(tmp_path / "mr.nii", np.abs(RAS))
    with pytest.raises(ValueError, match=r"mr.nii\): window 'brain' is one of CT.*below -100.*window=\(40, 80\)"):
        decode_image(path, slice_index=0, window="brain")
    assert decode_image(path, slice_index=0, window=(40, 80)).mode == "L"


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (np.zeros((3, 4), np.int16), r"shape \(3, 4\); it must have three or four dimensions"),
        (np.zeros((2, 2, 2, 2, 2), np.int16), "three or four dimensions"),
        (np.full((2, 2, 1), np.nan, np.float32), "4 voxels of the slice are NaN"),
        (np.zeros((2, 2, 1), np.complex64), "complex64 values; they must be real"),
    ],
)
def test_volumes_that_show_no_picture_are_refused(tmp_path, volume, words):
    with pytest.raises(ValueError, match=rf"(?s)a.nii\).*{words}"):
        decode_image(save(tmp_path / "a.nii", volume))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kept", [0, 100, 360, 380])
def test_a_truncated_file_is_a_value_error_with_its_path(tmp_path, name, kept):
    noise = np.random.default_rng(0).integers(-1000, 1000, (9, 9, 9)).astype(np.int16)
    content = nibabel.Nifti1Image(noise, np.eye(4)).to_bytes()
    content = gzip.compress(content) if name.lower().endswith("gz") else content
    (tmp_path / name).write_bytes(content[:kept])
    with pytest.raises(ValueError, match=rf"image 2 \(.*{name}\) cannot be read as NIfTI .*Fetch it again"):
        decode_image(tmp_path / name, "image 2", slice_index=8)


def test_a_damaged_header_is_a_value_error_with_its_path(tmp_path):
    content = nibabel.Nifti1Image(RAS, np.eye(4)).to_bytes()
    for place, value in ((70, 99), (108, 1), (344, 0)):  # datatype, vox_offset, magic
        (tmp_path / "a.nii").write_bytes(content[:place] + bytes([value] * 4) + content[place + 4 :])
        with pytest.raises(ValueError, match=r"image \(.*a.nii\) cannot be read as NIfTI .*Fetch it again"):
            decode_image(tmp_path / "a.nii", slice_index=0)


def test_a_slice_is_only_for_volumes(tmp_path):
    from PIL import Image

    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", Image.new("L", (3, 3)), np.zeros((3, 3))):
        with pytest.raises(ValueError, match="is no NIfTI volume, and slice_index is 0; leave it out"):
            decode_image(source, slice_index=0)


def test_without_nibabel_the_error_says_what_to_install(tmp_path, hide_package):
    path = save(tmp_path / "a.nii", RAS)
    hide_package("nibabel")
    with pytest.raises(ImportError, match='pip install "nibabel>=5"'):
        decode_image(path, slice_index=0)
