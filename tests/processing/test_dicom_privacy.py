"""Nothing of a DICOM header reaches a message, a warning or a log, however broken the file is."""

from __future__ import annotations

import logging
import traceback

import numpy as np
import pytest

from regionmed_clip.processing.medical_image import decode_image

pydicom = pytest.importorskip("pydicom", reason='DICOM tests need pydicom: pip install -e ".[dicom]"')

from dicom_fixtures import dicom_dataset  # noqa: E402 (needs pydicom)

GREY = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
WORDS = {
    "PatientName": "Zyxwvut^Qrstuvia",
    "PatientID": "SECRETID4711",
    "InstitutionName": "Klinikum Geheimnis",
    "ImageComments": "call Mr Zyxwvut at home",
    "BodyPartExamined": "ZYXWVUT",
    "Modality": "GEHEIMNIS",
}
SECRETS = ("zyxwvut", "qrstuvia", "secretid", "geheimnis")


def secret_dataset():
    window = pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 2000
    window.WindowCenterWidthExplanation = "Zyxwvut"
    groups = pydicom.Dataset()
    groups.FrameVOILUTSequence = [window]
    groups.add_new("FrameComments", "LT", "for Mr Zyxwvut")
    return dicom_dataset(GREY, **WORDS, SharedFunctionalGroupsSequence=[groups], PatientBirthDate="19331224")


def remarks_on(sources, capfd, caplog, **choice) -> tuple[list[str], str]:
    """The tracebacks of all errors; and all that was printed, logged or said in them."""
    raised = []
    with caplog.at_level(logging.DEBUG):
        for source in sources:
            try:
                decode_image(source, **choice)
            except ValueError as error:
                raised.append("".join(traceback.format_exception(error)))
    return raised, "".join([*raised, *capfd.readouterr(), caplog.text]).lower()


def test_broken_files_raise_value_errors_without_personal_data(tmp_path, capfd, caplog):
    secret_dataset().save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    whole = (tmp_path / "whole.dcm").read_bytes()
    assert all(secret in whole.lower() for secret in (word.encode() for word in SECRETS))  # the test itself
    dice = np.random.default_rng(0)
    files = []
    for trial in range(300):
        broken = bytearray(whole[: dice.integers(140, len(whole))] if trial % 2 else whole)
        for place in dice.integers(132, len(broken), 8):
            broken[place] = dice.integers(256)
        files.append(bytes(broken))
    raised, remarks = remarks_on(files, capfd, caplog)
    assert len(raised) > 100
    assert not [secret for secret in SECRETS if secret in remarks]


def test_refusals_of_whole_datasets_quote_no_text_of_them(capfd, caplog):
    broken = [secret_dataset() for _ in range(8)]
    broken[0].PhotometricInterpretation = "ZYXWVUT"
    broken[1].VOILUTFunction = "ZYXWVUT"
    broken[1].WindowCenter = broken[1].WindowWidth = 5
    del broken[1].SharedFunctionalGroupsSequence
    broken[2].PixelData = b"zyxwvut!"
    broken[3].RescaleType = "ZYXWVUT"
    broken[3].Modality = "CT"
    broken[4].NumberOfFrames = 7
    broken[5].file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.826.0.1.19331224")
    broken[6].VOILUTSequence = [pydicom.Dataset()]
    broken[6].VOILUTSequence[0].LUTExplanation = "Zyxwvut"
    del broken[7].BitsStored
    refused, remarks = remarks_on(broken[:3] + broken[4:], capfd, caplog)
    assert len(refused) == 7
    refused_presets, more = remarks_on([broken[3], secret_dataset()], capfd, caplog, window="lung")
    assert len(refused_presets) == 2
    assert not [secret for secret in (*SECRETS, "19331224") if secret in remarks + more]
