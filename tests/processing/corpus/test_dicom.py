"""DICOM files: lossless pixels, bright is high, the window in the PNG's values, and nothing else of the header."""

from __future__ import annotations

import hashlib
import traceback
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from regionmed_clip.processing.corpus.dicom import (
    ALLOWED_KEYWORDS,
    IDENTIFYING_KEYWORDS,
    PRIVATE_ELEMENTS,
    identifying_tags,
    read_dicom,
)

pydicom = pytest.importorskip("pydicom", reason='DICOM tests need pydicom: pip install -e ".[dicom]"')

from dicom_fixtures import dicom_dataset, write_dicom  # noqa: E402 (needs pydicom)

GREY_8 = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def levels_of(image):
    with Image.open(BytesIO(image.content)) as file:
        return np.asarray(file)


def shown(levels, window):
    """Brightness in [0, 1] of a picture shown through its window."""
    low, high = window
    return np.clip((levels.astype(float) - low) / (high - low), 0, 1)


def test_eight_bits_keep_their_values_and_need_no_window(tmp_path):
    image = read_dicom(write_dicom(tmp_path / "a.dcm", GREY_8)).image
    np.testing.assert_array_equal(levels_of(image), GREY_8)
    assert levels_of(image).dtype == np.uint8
    assert (image.width, image.height, image.window) == (4, 3, None)


def test_the_hash_is_that_of_the_png_bytes_and_repeats(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY_8)
    first, second = read_dicom(path).image, read_dicom(path).image
    assert first == second
    assert first.sha256 == hashlib.sha256(first.content).hexdigest()


def test_twelve_bits_become_a_sixteen_bit_png_whose_window_is_its_range(tmp_path):
    pixels = np.array([[7, 4095], [1000, 2000], [8, 9]], dtype=np.uint16)
    image = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12)).image
    np.testing.assert_array_equal(levels_of(image), pixels)
    assert image.window == (7.0, 4095.0)


def test_a_constant_image_of_sixteen_bits_has_no_window(tmp_path):
    image = read_dicom(write_dicom(tmp_path / "a.dcm", np.full((2, 3), 900, dtype=np.uint16))).image
    assert image.window is None


def test_signed_values_are_shifted_and_their_window_too(tmp_path):
    pixels = np.array([[-1024, 0], [3071, 40]], dtype=np.int16)  # a CT: value = HU
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=40, WindowWidth=400)
    image = read_dicom(path).image
    np.testing.assert_array_equal(levels_of(image), pixels.astype(int) + 32768)
    assert image.window == (32768 - 160.0, 32768 + 239.0)  # 40 - 0.5 -+ 399 / 2


def test_the_window_is_converted_from_modality_units_to_stored_values(tmp_path):
    pixels = np.array([[0, 4095], [1000, 2000]], dtype=np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[500.5, 9],
        WindowWidth=[1001, 9],
    )
    assert read_dicom(path).image.window == (500.0, 1000.0)  # modality 0 and 1000, through (m + 1000) / 2


def test_monochrome1_is_inverted_and_its_window_mirrored(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm", GREY_8, PhotometricInterpretation="MONOCHROME1", WindowCenter=50.5, WindowWidth=101
    )
    image = read_dicom(path).image
    np.testing.assert_array_equal(levels_of(image), 255 - GREY_8)
    assert image.window == (155.0, 255.0)  # 0 to 100 mirrored


def test_a_window_over_all_eight_bits_is_none(tmp_path):
    assert read_dicom(write_dicom(tmp_path / "a.dcm", GREY_8, WindowCenter=128, WindowWidth=256)).image.window is None


def test_colour_is_converted_to_rgb(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(levels_of(read_dicom(write_dicom(tmp_path / "a.dcm", colours)).image), colours)
    path = write_dicom(tmp_path / "b.dcm", colours, PhotometricInterpretation="YBR_FULL")
    expected = pydicom.pixels.convert_color_space(colours, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(levels_of(read_dicom(path).image), expected)


def test_a_run_length_encoded_file_gives_the_same_picture(tmp_path):
    dataset = dicom_dataset(GREY_8)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(levels_of(read_dicom(tmp_path / "a.dcm").image), GREY_8)


@pytest.mark.parametrize("seed", range(60))
def test_pixels_through_the_window_look_as_pydicom_shows_them(tmp_path, seed):
    dice = np.random.default_rng(seed)
    bits = int(dice.choice([8, 10, 12, 16]))
    is_signed = bool(dice.integers(2))
    lowest = -(2 ** (bits - 1)) if is_signed else 0
    pixels = dice.integers(lowest, lowest + 2**bits, (5, 7))
    pixels = pixels.astype(f"{'int' if is_signed else 'uint'}{8 if bits == 8 else 16}")
    elements = {
        "BitsStored": bits,
        "PhotometricInterpretation": str(dice.choice(["MONOCHROME1", "MONOCHROME2"])),
        "RescaleSlope": float(dice.choice([-2.0, -0.5, 0.25, 1.0, 3.0])),
        "RescaleIntercept": float(dice.integers(-2000, 2000)),
        "VOILUTFunction": str(dice.choice(["LINEAR", "LINEAR_EXACT"])),
    }
    values = pixels * elements["RescaleSlope"] + elements["RescaleIntercept"]
    elements["WindowCenter"] = float(np.round(dice.uniform(values.min(), values.max()), 2))
    elements["WindowWidth"] = float(np.round(dice.uniform(2, np.ptp(values) + 2), 2))
    path = write_dicom(tmp_path / "a.dcm", pixels, **elements)

    dataset = pydicom.dcmread(path)
    voi = pydicom.pixels.apply_windowing(pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset), dataset)
    ends = np.array([lowest, lowest + 2**bits - 1]) * elements["RescaleSlope"] + elements["RescaleIntercept"]
    expected = (voi - ends[0]) / (ends[1] - ends[0])
    expected = 1 - expected if elements["PhotometricInterpretation"] == "MONOCHROME1" else expected
    image = read_dicom(path).image
    window = image.window or (0.0, 255.0)
    np.testing.assert_allclose(shown(levels_of(image), window), expected, atol=1e-9)  # float64 on both sides


def test_bits_above_the_stored_ones_do_not_reach_the_picture(tmp_path):
    values = np.array([[1, 2], [3, 4095]], dtype=np.uint16)
    path = write_dicom(tmp_path / "a.dcm", values | 0xA000, BitsStored=12)  # an overlay of old
    np.testing.assert_array_equal(levels_of(read_dicom(path).image), values)


SECRETS = {
    "PatientName": "Zyxwvut^Qrstuvia",
    "PatientID": "SECRETID4711",
    "PatientBirthDate": "19331224",
    "InstitutionName": "Klinikum Geheimnis",
    "ReferringPhysicianName": "Doctor^Verborgen",
    "ImageComments": "call Mr Zyxwvut at home",
    "StudyDescription": "Thorax Zyxwvut",
    "AccessionNumber": "ACC0815",
}


def write_secrets(path):
    dataset = dicom_dataset(GREY_8, **SECRETS, BodyPartExamined="ZYXWVUT QRS", Modality="CR", ViewPosition="PA")
    block = dataset.private_block(0x0011, "VERTRAULICH", create=True)
    block.add_new(0x01, "LO", "PrivateZyxwvut")
    dataset.add_new(0x60004000, "LT", "OverlayZyxwvut")  # Overlay Comments
    dataset.add_new(0x60003000, "OW", b"OVERLAYBITS!")  # Overlay Data
    item = pydicom.Dataset()
    item.OperatorsName = "Nested^Nachname"
    dataset.RequestAttributesSequence = [item]
    dataset.file_meta.SourceApplicationEntityTitle = "METASECRET"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_nothing_of_a_header_full_of_personal_data_is_handed_on(tmp_path):
    path = write_secrets(tmp_path / "a.dcm")
    found = read_dicom(path)
    handed_on = found.image.content + repr(found).encode()
    texts = ("VERTRAULICH", "PrivateZyxwvut", "OverlayZyxwvut", "OVERLAYBITS!", "Nested", "Nachname", "METASECRET")
    words = [word for text in SECRETS.values() for word in text.replace("^", " ").split() if len(word) > 3]
    for secret in (*texts, *words, "Zyxwvut", "ZYXWVUT"):
        assert secret.encode() in path.read_bytes() or secret in texts[:1]  # the test itself: the file holds it
        assert secret.encode() not in handed_on, secret
    with Image.open(BytesIO(found.image.content)) as file:
        file.load()
        assert file.info == {}  # no text chunk


def test_only_defined_terms_of_the_header_are_handed_on(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm",
        GREY_8,
        Modality="DX",
        ViewPosition="AP",
        BodyPartExamined="CHEST",
        ImageLaterality="L",
        BurnedInAnnotation="NO",
    )
    found = read_dicom(path)
    assert (found.modality, found.view, found.body_part, found.laterality) == ("DX", "AP", "CHEST", "L")
    assert found.burned_in_annotation == "NO"
    named = read_dicom(write_dicom(tmp_path / "b.dcm", GREY_8, ViewPosition="SMITH", BodyPartExamined="JOHN SMITH"))
    assert (named.modality, named.view, named.body_part, named.laterality) == (None, None, None, None)


def test_burned_in_text_is_refused_unless_asked_for(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY_8, BurnedInAnnotation="YES")
    with pytest.raises(ValueError, match=r"a\.dcm: BurnedInAnnotation is YES"):
        read_dicom(path)
    assert read_dicom(path, allow_burned_in=True).burned_in_annotation == "YES"


def test_identifying_tags_are_named_without_their_values(tmp_path):
    names = identifying_tags(write_secrets(tmp_path / "a.dcm"))
    expected = {*SECRETS, "OperatorsName", "OverlayComments", "OverlayData", PRIVATE_ELEMENTS}
    assert names == sorted(expected)


def test_any_name_and_any_date_identify_whatever_the_element_is_called(tmp_path):
    elements = {"ConsultingPhysicianName": "Quirk^Ada", "PerformedProcedureStepStartDate": "20111203"}
    path = write_dicom(tmp_path / "a.dcm", GREY_8, **elements)
    assert identifying_tags(path) == sorted(elements)


def test_empty_elements_do_not_identify(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY_8, PatientName="", PatientID=" ", PatientSex="F", PatientAge="061Y")
    assert identifying_tags(path) == []


def test_sequences_of_implicit_files_are_searched_too(tmp_path):
    item = pydicom.Dataset()
    item.PatientName = "Nested^Name"
    dataset = dicom_dataset(GREY_8, RequestAttributesSequence=[item])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert identifying_tags(tmp_path / "a.dcm") == ["PatientName"]


def test_the_keywords_are_those_of_the_dicom_dictionary():
    for keyword in (*ALLOWED_KEYWORDS, *IDENTIFYING_KEYWORDS):
        if not keyword.startswith("Overlay"):  # repeating groups have no tag of their own
            assert pydicom.datadict.tag_for_keyword(keyword) is not None, keyword
    assert not set(ALLOWED_KEYWORDS) & set(IDENTIFYING_KEYWORDS)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"NumberOfFrames": 2}, "NumberOfFrames is 2.*Export the frame"),
        ({"PixelData": None}, "has no PixelData"),
        ({"BitsStored": None}, "has no BitsStored|cannot be decoded"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is none of"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"WindowCenter": 4}, "lacks its centre, its width"),
        ({"WindowCenter": 4, "WindowWidth": 1}, "WindowWidth is 1; it must exceed 1"),
        ({"WindowCenter": 4, "WindowWidth": 8, "VOILUTFunction": "CUBIC"}, "VOILUTFunction of LINEAR"),
        ({"PixelData": b"short!"}, "cannot be decoded"),
        ({"ModalityLUTSequence": [{}]}, "ModalityLUTSequence"),
    ],
)
def test_what_is_not_supported_is_an_error_that_names_the_file(tmp_path, elements, message):
    if "ModalityLUTSequence" in elements:
        elements = {"ModalityLUTSequence": [pydicom.Dataset()]}
    path = write_dicom(tmp_path / "bad.dcm", GREY_8, **elements)
    with pytest.raises(ValueError, match=rf"bad\.dcm.*({message})"):
        read_dicom(path)


def test_an_unknown_transfer_syntax_is_an_error_with_the_decoder_to_install(tmp_path):
    dataset = dicom_dataset(GREY_8)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9" * 4])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match=r"a\.dcm: .*JPEG-LS.*pip install python-gdcm"):
        read_dicom(tmp_path / "a.dcm")


def test_files_that_are_missing_or_no_dicom_are_errors(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no dicom at all")
    for name, message in (("a.dcm", "cannot be read as DICOM"), ("b.dcm", "does not exist")):
        for read in (read_dicom, identifying_tags):
            with pytest.raises(ValueError, match=rf"{name}.*{message}"):
                read(tmp_path / name)


def test_broken_files_raise_value_errors_without_personal_data(tmp_path, capfd, caplog):
    whole = write_secrets(tmp_path / "whole.dcm").read_bytes()
    dice = np.random.default_rng(0)
    path = tmp_path / "broken.dcm"
    reasons = []
    for trial in range(150):
        broken = bytearray(whole[: dice.integers(len(whole))] if trial % 2 else whole)
        for place in dice.integers(0, len(broken), 6 if len(broken) else 0):
            broken[place] = dice.integers(256)
        path.write_bytes(broken)
        for read in (read_dicom, identifying_tags):
            try:
                read(path)
            except ValueError as error:
                reasons.append("".join(traceback.format_exception(error)))
    assert len(reasons) > 100
    remarks = "".join(reasons) + "".join(capfd.readouterr()) + caplog.text
    assert not [secret for secret in ("Zyxwvut", "SECRETID", "Geheimnis", "1933") if secret in remarks]


def test_without_pydicom_the_error_says_what_to_install(tmp_path, hide_package):
    path = write_dicom(tmp_path / "a.dcm", GREY_8)
    hide_package("pydicom")
    with pytest.raises(ImportError, match='pip install "pydicom>=3"'):
        read_dicom(path)
