"""DICOM, NIfTI and windows through the whole processor: regions stay where they are, settings are kept."""

import numpy as np
import pytest
import torch
from PIL import Image

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.medical_image import decode_image
from regionmed_clip.processing.nifti_slice import nifti_slice
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

pydicom = pytest.importorskip("pydicom", reason='DICOM tests need pydicom: pip install -e ".[dicom]"')

from dicom_fixtures import dicom_dataset, write_dicom  # noqa: E402 (needs pydicom)

BOXES = [(10, 5, 40, 45), (90, 0, 100, 50)]
CT = np.random.default_rng(0).integers(-1000, 1000, (50, 100)).astype(np.int16)  # 50 rows, 100 columns
FRAME_OF_CT = [[0.1, 0.3, 0.4, 0.7], [0.9, 0.25, 1.0, 0.75]]  # BOXES; 25 of 100 are padded above and below


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["small nodule in the left lung", "large effusion"] * 3, vocab_size=300, max_length=16)


@pytest.fixture
def nibabel():
    return pytest.importorskip("nibabel", reason='NIfTI tests need nibabel: pip install -e ".[dicom]"')


@pytest.fixture
def processor(tokenizer) -> RegionMedClipProcessor:
    return RegionMedClipProcessor(RegionMedClipImageProcessor(size=64, patch_size=16), tokenizer)


def frames_of_ct(num_frames: int):
    dataset = dicom_dataset(CT, Modality="CT", NumberOfFrames=num_frames)
    dataset.PixelData = np.stack([CT + 10 * index for index in range(num_frames)]).tobytes()
    return dataset


def test_boxes_of_a_dicom_image_are_in_its_columns_and_rows(processor, tmp_path):
    path = write_dicom(tmp_path / "ct.dcm", CT, Modality="CT", WindowCenter=40, WindowWidth=400)
    batch = processor(images=path, boxes=[BOXES])
    np.testing.assert_allclose(batch["region_boxes"][0], FRAME_OF_CT, atol=1e-6)
    as_picture = processor(images=decode_image(path), boxes=[BOXES])
    for name, tensor in as_picture.items():
        assert torch.equal(batch[name], tensor), name
    (geometry,) = processor.geometries([CT.shape])
    back = geometry.frame_fractions_to_boxes(batch["region_boxes"][0].double().numpy())
    np.testing.assert_allclose(back, BOXES, atol=1e-4)  # float32 fractions of 100 pixels


def test_pixel_values_of_a_dicom_image_do_not_depend_on_its_regions(processor):
    dataset = frames_of_ct(2)
    choice = {"window": ["lung", "mediastinum", "bone"], "frame_index": 1}
    plain = processor(images=dataset, **choice)["pixel_values"]
    mask = np.zeros((1, *CT.shape), dtype=bool)
    mask[0, 5:45, 10:40] = True
    for regions in ({"boxes": [BOXES]}, {"masks": [mask]}, {"points": [[(3, 4)]]}):
        assert torch.equal(processor(images=dataset, **choice, **regions)["pixel_values"], plain)


def test_a_bright_square_of_a_volume_lies_under_its_mask_and_its_box(processor, nibabel, tmp_path):
    labels = np.zeros((30, 40, 20), dtype=np.uint8)  # to the right, to the front, upwards
    labels[4:10, 21:37, 5:9] = 1
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])  # stored from right to left, thick slices
    for name, volume in (("ct", np.where(labels, 60, -900).astype(np.int16)), ("labels", labels)):
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    for axis, index in (("axial", 6), ("coronal", 30), ("sagittal", 22)):  # 22: the stored 7 counted from the left
        mask = nifti_slice(tmp_path / "labels.nii.gz", index, axis) == 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        choice = {"slice_axis": axis, "slice_index": index, "window": "brain"}
        batch = processor(images=[tmp_path / "ct.nii.gz"] * 2, boxes=[[box], None], masks=[None, mask[None]], **choice)
        np.testing.assert_allclose(batch["region_boxes"][0], batch["region_boxes"][1], atol=1e-6)
        x0, y0, x1, y1 = (batch["region_boxes"][0, 0] * 64).round().int().tolist()
        bright = batch["pixel_values"][0, 0] > 0
        inside = torch.zeros_like(bright)
        inside[y0:y1, x0:x1] = True
        assert (bright != inside).float().mean() < 0.02  # only pixels on the edge differ


def test_every_kind_of_image_may_stand_in_one_batch(processor, nibabel, tmp_path):
    path = write_dicom(tmp_path / "ct.dcm", CT)
    shown = np.asarray(decode_image(path))
    Image.fromarray(shown).save(tmp_path / "ct.png")
    volume = nibabel.Nifti1Image(np.ascontiguousarray(CT.T[::-1, ::-1])[..., None], np.eye(4))
    nibabel.save(volume, tmp_path / "ct.nii.gz")
    kinds = [path, path.read_bytes(), pydicom.dcmread(path), tmp_path / "ct.png", volume, tmp_path / "ct.nii.gz", CT]
    values = processor(images=kinds)["pixel_values"]
    assert all(torch.equal(values[0], value) for value in values[1:])
    for one in (path, path.read_bytes(), pydicom.dcmread(path), volume):
        assert torch.equal(processor(images=one)["pixel_values"], values[:1])
        assert torch.equal(processor.image_processor(one, return_tensors="pt")["pixel_values"], values[:1])


def test_a_frame_may_be_chosen_for_each_image(processor):
    dataset = frames_of_ct(3)
    single = [processor(images=dataset, frame_index=index, window=(0, 50))["pixel_values"] for index in (2, 0)]
    together = processor(images=[dataset, CT, dataset], frame_index=[2, None, 0], window=(0, 50))["pixel_values"]
    assert torch.equal(together[[0, 2]], torch.cat(single))
    assert not torch.equal(single[0], single[1])
    with pytest.raises(ValueError, match="frame_index has 2 entries for 3 images; give one for each, or None"):
        processor(images=[dataset] * 3, frame_index=[0, 1])


def test_a_slice_may_be_chosen_for_each_image(processor, nibabel):
    volume = nibabel.Nifti1Image(np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    slices = processor(images=[volume] * 7, slice_index=list(range(7)), window=(100, 200))["pixel_values"]
    assert len(torch.unique(slices.flatten(1), dim=0)) == 7
    single = processor(images=volume, slice_index=4, window=(100, 200))["pixel_values"]
    assert torch.equal(slices[4:5], single)


def test_numpy_numbers_ranges_and_arrays_choose_frames_and_slices_too(nibabel, tmp_path):
    volume = nibabel.Nifti1Image(np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    plain = RegionMedClipImageProcessor(size=64, slice_axis=1, slice_index=[0, 1])
    expected = plain([volume] * 2, return_tensors="pt")["pixel_values"]
    for slices in (np.arange(2), range(2), (np.int64(0), np.int64(1)), torch.arange(2)):
        processor = RegionMedClipImageProcessor(size=64, slice_axis=np.int64(1), slice_index=slices)
        assert torch.equal(processor([volume] * 2, return_tensors="pt")["pixel_values"], expected)
        processor.save_pretrained(tmp_path)
        assert RegionMedClipImageProcessor.from_pretrained(tmp_path).to_dict() == plain.to_dict()


SETTINGS = [
    {"window": "lung"},
    {"window": (40, 80)},
    {"window": ["lung", (40, 80), "bone"]},
    {"window": "bone", "frame_index": 1, "slice_axis": "coronal", "slice_index": 3},
    {"slice_axis": 0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_windows_and_choices_are_saved_with_the_processor(tokenizer, tmp_path, settings):
    image_processor = RegionMedClipImageProcessor(size=64, patch_size=16, **settings)
    image_processor.save_pretrained(tmp_path / "image")
    RegionMedClipProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "both")
    for loaded in (
        RegionMedClipImageProcessor.from_pretrained(tmp_path / "image"),
        RegionMedClipProcessor.from_pretrained(tmp_path / "both").image_processor,
    ):
        assert loaded.to_dict() == image_processor.to_dict()
        for name in settings:
            assert getattr(loaded, name) == getattr(image_processor, name)
    changed = RegionMedClipImageProcessor.from_pretrained(tmp_path / "image", window="brain", slice_axis="axial")
    assert (changed.window, changed.slice_axis) == ("brain", "axial")


def test_a_saved_window_is_used_and_a_call_may_replace_it_or_take_it_away(tokenizer, tmp_path):
    processor = RegionMedClipProcessor(RegionMedClipImageProcessor(size=64, patch_size=16, window="lung"), tokenizer)
    processor.save_pretrained(tmp_path)
    loaded = RegionMedClipProcessor.from_pretrained(tmp_path)
    dataset = frames_of_ct(1)
    lung, brain, none = (decode_image(dataset, window=window) for window in ("lung", "brain", None))
    plain = RegionMedClipProcessor(RegionMedClipImageProcessor(size=64, patch_size=16), tokenizer)
    for choice, shown in (({}, lung), ({"window": "brain"}, brain), ({"window": None}, none)):
        expected = plain(images=shown)["pixel_values"]
        assert torch.equal(loaded(images=dataset, **choice)["pixel_values"], expected)
        assert torch.equal(loaded(images=dataset, images_kwargs=choice)["pixel_values"], expected)
        assert torch.equal(loaded.image_processor(dataset, return_tensors="pt", **choice)["pixel_values"], expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": "lungs"}, "window 'lungs' is not known; it must be a preset"),
        ({"window": ["lung", "bone"]}, "holds 2 windows"),
        ({"slice_axis": "top"}, "slice_axis 'top' is not known"),
    ],
)
def test_settings_that_are_not_known_are_refused_when_they_are_set(processor, settings, words):
    with pytest.raises(ValueError, match=words):
        RegionMedClipImageProcessor(**settings)
    with pytest.raises(ValueError, match=words):
        processor(images=frames_of_ct(1), **settings)


def test_a_window_on_an_ordinary_picture_names_its_place_in_the_batch(processor):
    with pytest.raises(ValueError, match=r"image 1 .*8-bit picture of mode 'L'; a window needs"):
        processor(images=[frames_of_ct(1), Image.new("L", (9, 9))], window="lung")
    with pytest.raises(ValueError, match=r"image 1 .*has 4 frames.*frame_index=0 to frame_index=3"):
        processor(images=[CT, frames_of_ct(4)])
