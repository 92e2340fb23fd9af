"""The images of MIMIC-CXR-JPG, shared by the data sets that annotate them: where they lie and whose they are.

The release keeps files/p10/p10000032/s50414267/<dicom_id>.jpg: files/, the first digits of the patient, the patient,
the study, the image (https://physionet.org/content/mimic-cxr-jpg/2.1.0/). Annotation sets name the DICOM or the JPEG.
"""

from __future__ import annotations

import re
from pathlib import Path

LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"  # of MIMIC-CXR-JPG and of the sets built on it
IMAGES_OPTION = "folder of MIMIC-CXR-JPG that holds files/ (default: the root)"

POPULATION = "mimic-cxr"  # of the patients: see splits.patient_key
_IMAGE_NAME = re.compile(r"files/p\d+/(?P<patient>p\d+)/s\d+/[\w.-]+\.(jpg|dcm)")


def find_images(root: Path, images: str) -> Path:
    """The folder that holds files/ of MIMIC-CXR-JPG: `images` if given, else `root`; ValueError where it does not."""
    folder = Path(images).expanduser().resolve() if images else root
    if not (folder / "files").is_dir():
        raise ValueError(
            f"{folder} has no folder files/; the images are those of MIMIC-CXR-JPG (files/p10/p10000032/...). "
            "Name the folder that holds files/ by the option images=FOLDER."
        )
    return folder


def jpeg_name(name: str) -> str:
    """The path of the JPEG for `name`, the path of an image in MIMIC-CXR or MIMIC-CXR-JPG, relative to the release."""
    _match(name)
    return f"{name[: -len('.dcm')]}.jpg"


def patient_of_name(name: str) -> str:
    """The patient of an image by its path: "mimic-cxr:p10000032", the same in every source drawn from MIMIC-CXR."""
    return f"{POPULATION}:{_match(name)['patient']}"


def _match(name: str) -> re.Match[str]:
    """The parts of the path of an image; ValueError where it is none."""
    match = _IMAGE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"path is {name!r}; it must be that of an image of MIMIC-CXR, files/pNN/pNNNNNNNN/sNNNNNNNN/NAME.jpg "
            "(or .dcm). Correct or drop the row."
        )
    return match
