"""A DICOM image is shown as the standard says, from a file, from bytes and from memory."""

from __future__ import annotations

import numpy as np
import pytest

from regionmed_clip.processing.corpus.dicom import read_dicom
from regionmed_clip.processing.corpus.shown_image import shown_image
from regionmed_clip.processing.medical_image import decode_image

pydicom = pytest.importorskip("pydicom", reason='DICOM tests need pydicom: pip install -e ".[dicom]"')

from dicom_fixtures import dicom_dataset, write_dicom  # noqa: E402 (needs pydicom)

HOUNSFIELD = np.array([[-1000, 0, 20, 40], [80, 100, -600, 3000]], dtype=np.int16)
TWELVE_BITS = np.array([[0, 1000, 4095], [500, 2000, 3]], dtype=np.uint16)


def levels(source, **choice) -> np.ndarray:
    return np.asarray(decode_image(source, **choice)).astype(int)


def of_range(values, low, high) -> np.ndarray:
    return np.clip((np.asarray(values, float) - low) / (high - low), 0, 1) * 255


def item_of(**elements):
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_path_bytes_and_a_dataset_give_the_same_picture(tmp_path):
    path = write_dicom(
        tmp_path / "image without suffix", TWELVE_BITS, BitsStored=12, WindowCenter=1000, WindowWidth=900
    )
    expected = levels(path)
    assert len(np.unique(expected)) > 2
    in_memory = dicom_dataset(TWELVE_BITS, BitsStored=12, WindowCenter=1000, WindowWidth=900)
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), pydicom.dcmread(path), in_memory):
        np.testing.assert_array_equal(levels(source), expected)
    del in_memory.file_meta
    np.testing.assert_array_equal(levels(in_memory), expected)


def test_a_dataset_is_not_changed():
    dataset = dicom_dataset(TWELVE_BITS, BitsStored=12)
    del dataset.file_meta
    before = dataset.to_json()
    levels(dataset)
    assert dataset.to_json() == before
    assert not hasattr(dataset, "file_meta")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [1, -0.5])
def test_without_a_window_the_frame_is_shown_from_its_minimum_to_its_maximum(photometric, slope):
    dataset = dicom_dataset(
        TWELVE_BITS, BitsStored=12, RescaleSlope=slope, RescaleIntercept=-1000, PhotometricInterpretation=photometric
    )
    values = TWELVE_BITS * slope - 1000.0
    expected = of_range(values, values.min(), values.max())
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(levels(dataset), expected, atol=0.5)  # whole levels


def test_eight_stored_bits_are_display_levels_already():
    pixels = np.array([[3, 200], [7, 9]], dtype=np.uint8)
    np.testing.assert_array_equal(levels(dicom_dataset(pixels)), pixels)
    inverted = dicom_dataset(pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(levels(inverted), 255 - pixels)
    signed = dicom_dataset(np.array([[-128, 127]], dtype=np.int8))
    np.testing.assert_array_equal(levels(signed), [[0, 255]])


def test_the_window_of_the_file_is_shown_by_its_function():
    window = {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 2, "RescaleIntercept": -10}
    values = HOUNSFIELD * 2.0 - 10
    linear = levels(dicom_dataset(HOUNSFIELD, **window))
    np.testing.assert_allclose(linear, of_range(values, 0, 79), atol=0.5)  # 40 - 0.5 -+ 79 / 2
    exact = levels(dicom_dataset(HOUNSFIELD, **window, VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(exact, of_range(values, 0, 80), atol=0.5)
    sigmoid = levels(dicom_dataset(HOUNSFIELD, **window, VOILUTFunction="SIGMOID"))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(sigmoid, 255 / (1 + np.exp(-4 * (values - 40) / 80)), atol=0.5)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("seed", range(5))
def test_the_picture_is_that_of_pydicom(function, seed):
    dice = np.random.default_rng(seed)
    dataset = dicom_dataset(
        dice.integers(-2048, 2048, (9, 7)).astype(np.int16),
        BitsStored=12,
        RescaleSlope=float(dice.choice([0.5, 1, 2])),
        RescaleIntercept=float(dice.integers(-100, 100)),
        WindowCenter=float(dice.integers(-500, 500)),
        WindowWidth=float(dice.integers(2, 3000)),
        VOILUTFunction=function,
    )
    rescaled = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    shown = pydicom.pixels.apply_voi_lut(rescaled, dataset)
    low, high = (end * dataset.RescaleSlope + dataset.RescaleIntercept for end in (-2048, 2047))
    np.testing.assert_allclose(levels(dataset), of_range(shown, low, high), atol=0.5 + 1e-6)


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"])
@pytest.mark.parametrize("kind", ["US", "OW"])
def test_a_voi_table_goes_before_a_window(tmp_path, syntax, kind):
    pixels = np.arange(-2, 6, dtype=np.int16).reshape(2, 4)
    is_big = syntax.endswith("BigEndian")
    if is_big:
        pixels = pixels.astype(">i2")
    entries = np.array([0, 1000, 2000, 4095], dtype=">u2" if is_big else "<u2")
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "SS", [4, -1, 12])  # four entries for -1, 0, 1 and 2
    table.add_new("LUTData", kind, entries.tolist() if kind == "US" else entries.tobytes())
    dataset = dicom_dataset(pixels, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = np.array([[0, 0, 1000, 2000], [4095] * 4]) / 4095 * 255
    np.testing.assert_allclose(levels(tmp_path / "a.dcm"), expected, atol=0.5)
    np.testing.assert_allclose(levels(tmp_path / "a.dcm", window=(0, 4)), of_range(pixels, -2, 2), atol=0.5)


def test_eight_bit_entries_may_be_packed_and_rescaled_values_fall_on_the_nearest(tmp_path):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [3, 10, 8])
    table.add_new("LUTData", "OW", bytes([0, 100, 255, 0]))  # padded to an even length
    dataset = dicom_dataset(np.array([[0, 1, 2, 3]], np.uint16), VOILUTSequence=[table])
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.9, 10  # 10, 10.9, 11.8, 12.7
    np.testing.assert_array_equal(levels(dataset), [[0, 100, 255, 255]])


@pytest.mark.parametrize("descriptor", [[9, 0, 12], [4, 0, 9]])
def test_a_voi_table_that_lacks_entries_is_refused(descriptor):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", descriptor)
    table.add_new("LUTData", "US", [0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=rf"VOILUTSequence of {descriptor[0]} entries of {descriptor[2]} bits, 4 of them"
    ):
        levels(dicom_dataset(TWELVE_BITS, VOILUTSequence=[table]))


def test_the_window_asked_for_replaces_that_of_the_file_and_is_inverted_with_monochrome1():
    dataset = dicom_dataset(HOUNSFIELD, Modality="CT", WindowCenter=7, WindowWidth=9)
    np.testing.assert_array_equal(levels(dataset, window="brain"), [[0, 0, 64, 128], [255, 255, 0, 255]])
    dataset.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_array_equal(levels(dataset, window="brain"), [[255, 255, 191, 127], [0, 0, 255, 0]])


def test_three_windows_are_three_channels():
    dataset = dicom_dataset(HOUNSFIELD, Modality="CT")
    image = decode_image(dataset, window=["lung", "brain", (400, 1800)])
    assert image.mode == "RGB"
    for channel, window in enumerate(["lung", "brain", "bone"]):
        np.testing.assert_array_equal(np.asarray(image)[..., channel], levels(dataset, window=window))


@pytest.mark.parametrize(
    ("pixels", "elements", "words"),
    [
        (HOUNSFIELD, {"Modality": "MR"}, "its Modality is MR"),
        (HOUNSFIELD, {}, "its Modality is not stated"),
        (HOUNSFIELD, {"Modality": "SMITH JOHN"}, "its Modality is not stated, or not a term of the standard"),
        (HOUNSFIELD, {"Modality": "CT", "RescaleType": "US"}, "its RescaleType is not HU"),
        (np.abs(HOUNSFIELD).astype(np.uint8), {"Modality": "CT"}, "its values cannot be negative"),
    ],
)
def test_a_preset_needs_hounsfield_units_and_the_message_gives_its_numbers(pixels, elements, words):
    dataset = dicom_dataset(pixels, **elements)
    with pytest.raises(ValueError, match=rf"image 3 .*window 'brain' is one of CT.*{words}.*window=\(40, 80\)"):
        decode_image(dataset, "image 3", window="brain")
    np.testing.assert_allclose(levels(dataset, window=(40, 80)), of_range(pixels, 0, 80), atol=0.5)


def test_a_colour_image_is_rgb_and_has_no_window():
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(levels(dicom_dataset(colours)), colours)
    ybr = dicom_dataset(colours, PhotometricInterpretation="YBR_FULL")
    expected = pydicom.pixels.convert_color_space(colours, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(levels(ybr), expected)
    with pytest.raises(ValueError, match=r"is a colour image; a window needs one number a pixel. Give no window"):
        levels(ybr, window=(40, 80))


def stack(**elements):
    frames = np.stack([TWELVE_BITS, TWELVE_BITS // 2, TWELVE_BITS // 3])
    dataset = dicom_dataset(TWELVE_BITS, BitsStored=12, NumberOfFrames=3, **elements)
    dataset.PixelData = frames.tobytes()
    return dataset, frames


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_frame_of_several_is_chosen_by_its_index(is_compressed):
    dataset, frames = stack()
    if is_compressed:
        dataset.compress(pydicom.uid.RLELossless)
    for index, frame in enumerate(frames):
        expected = of_range(frame, frame.min(), frame.max())
        np.testing.assert_allclose(levels(dataset, frame_index=index), expected, atol=0.5)


@pytest.mark.parametrize(
    ("index", "words"),
    [(None, "has 3 frames.*frame_index=0 to frame_index=2"), (3, "3 frames, and frame_index is 3"), (-1, "is -1")],
)
def test_a_frame_that_is_not_chosen_or_not_there_is_refused_with_their_number(index, words):
    with pytest.raises(ValueError, match=f"image 9 .*{words}"):
        decode_image(stack()[0], "image 9", frame_index=index)


def test_the_frames_of_an_enhanced_file_have_their_own_rescale_and_window(tmp_path):
    dataset, frames = stack(Modality="CT")
    per_frame = []
    for index in range(3):
        rescale = item_of(RescaleSlope=index + 1, RescaleIntercept=-1000 * index, RescaleType="HU")
        per_frame.append(item_of(PixelValueTransformationSequence=[rescale]))
    window = item_of(WindowCenter=500, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    dataset.SharedFunctionalGroupsSequence = [item_of(FrameVOILUTSequence=[window])]
    dataset.PerFrameFunctionalGroupsSequence = per_frame
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for source in (dataset, tmp_path / "a.dcm"):
        for index, frame in enumerate(frames):
            values = frame * (index + 1.0) - 1000 * index
            np.testing.assert_allclose(levels(source, frame_index=index), of_range(values, 0, 1000), atol=0.5)
        values = frames[2] * 3.0 - 2000
        np.testing.assert_allclose(levels(source, frame_index=2, window="lung"), of_range(values, -1350, 150), atol=0.5)
    del dataset.PerFrameFunctionalGroupsSequence[2]
    with pytest.raises(ValueError, match=r"PerFrameFunctionalGroupsSequence cannot be read"):
        levels(dataset, frame_index=2)


@pytest.mark.parametrize("seed", range(20))
def test_the_corpus_shows_the_same_picture(tmp_path, seed):
    dice = np.random.default_rng(seed)
    is_signed, bits = bool(dice.integers(2)), int(dice.choice([8, 10, 12, 16]))
    low = -(2 ** (bits - 1)) if is_signed else 0
    pixels = dice.integers(low, low + 2**bits, (5, 7)).astype(
        f"{'int' if is_signed else 'uint'}{8 if bits == 8 else 16}"
    )
    window = {"WindowCenter": float(dice.integers(-500, 500)), "WindowWidth": float(dice.integers(2, 900))}
    path = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        BitsStored=bits,
        PhotometricInterpretation=str(dice.choice(["MONOCHROME1", "MONOCHROME2"])),
        RescaleSlope=float(dice.choice([-0.5, 1, 3])),
        RescaleIntercept=float(dice.integers(-1000, 1000)),
        **(window if dice.integers(2) else {}),
    )
    stored = read_dicom(path).image
    of_corpus = np.asarray(shown_image({"image": stored.content, "window": stored.window})).astype(int)
    np.testing.assert_allclose(levels(path), of_corpus, atol=1)  # a half level is rounded by another formula


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"PixelData": None}, "has no PixelData"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is none of"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"WindowCenter": 4, "WindowWidth": 1}, "WindowWidth is 1; it must exceed 1"),
        ({"PixelData": b"short!"}, r"pixels cannot be decoded.*Explicit VR Little Endian"),
        ({"NumberOfFrames": 0}, "has 0 frames; it must have at least one"),
        ({"Rows": 60000, "Columns": 60000}, "has 60000 x 60000 pixels.*MAX_IMAGE_PIXELS"),
    ],
)
def test_what_shows_no_picture_is_refused_with_the_name_of_the_image(elements, words):
    with pytest.raises(ValueError, match=f"image 4 .a DICOM dataset.*{words}"):
        decode_image(dicom_dataset(TWELVE_BITS, **elements), "image 4")


def test_compressed_pixels_without_a_transfer_syntax_are_refused():
    dataset = dicom_dataset(TWELVE_BITS)
    dataset.compress(pydicom.uid.RLELossless)
    del dataset.file_meta
    with pytest.raises(ValueError, match="pixels cannot be decoded; transfer syntax unknown"):
        levels(dataset)


@pytest.mark.parametrize(
    ("name", "content"), [("a.dcm", b"anything"), ("a.dicom", b""), ("b", b"\0" * 128 + b"DICM\7")]
)
def test_a_file_that_is_no_whole_dicom_file_is_refused_with_its_path(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"image 1 \(.*{name}\) (cannot be read as DICOM|has no PixelData)"):
        decode_image(tmp_path / name, "image 1")


def test_without_pydicom_the_error_says_what_to_install(tmp_path, hide_package):
    path = write_dicom(tmp_path / "a.dcm", TWELVE_BITS)
    hide_package("pydicom")
    for source in (path, path.read_bytes()):
        with pytest.raises(ImportError, match='pip install "pydicom>=3"'):
            decode_image(source)
