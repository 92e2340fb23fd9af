"""What lies in a flat folder beside model, processor and card: handler, requirements, licence, a check."""

from __future__ import annotations

import shutil
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

OWN_FOLDER = Path(__file__).resolve().parent
SHIPPED_CODE = ("handler.py", "golden_outputs.py", "check_installation.py")
NEEDED = ("torch", "transformers", "pillow", "pydicom")  # by who runs a published model; pydicom reads DICOM
CODE_LICENSE = "apache-2.0"
LICENSE_FILE, CODE_LICENSE_FILE = "LICENSE", "code_license.txt"  # the second where the weights have another licence
DISTRIBUTION = "regionmed-clip"


def add_shipped_files(folder: Path, license_name: str) -> None:
    """None; writes SHIPPED_CODE, requirements.txt and the licence into the folder.

    Args:
        license_name: of the weights. LICENSE holds the text of the code's own; where theirs is another, it is called
            code_license.txt, and the weights' own text is for who publishes them to add.
    """
    for name in SHIPPED_CODE:
        shutil.copyfile(OWN_FOLDER / name, folder / name)
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    shutil.copyfile(license_path(), folder / code_license_file(license_name))


def code_license_file(license_name: str) -> str:
    """What the file with the code's licence is called beside weights of that licence."""
    return LICENSE_FILE if license_name == CODE_LICENSE else CODE_LICENSE_FILE


def requirements() -> list[str]:
    """The packages that a published model needs, with the versions that setup.py allows."""
    found = {}
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.name.lower() in NEEDED:
            found.setdefault(requirement.name.lower(), f"{requirement.name}{requirement.specifier}")
    return [found[name] for name in NEEDED if name in found]


def license_path() -> Path:
    """The file with the code's licence: of the checkout, or of the installed distribution."""
    beside = OWN_FOLDER.parent / "LICENSE"
    if beside.is_file():
        return beside
    for file in distribution(DISTRIBUTION).files or ():
        if file.name == "LICENSE" and ".dist-info" in str(file):
            return Path(str(file.locate()))
    raise ValueError(f"the installed {DISTRIBUTION} has no file LICENSE; install it again, from a checkout or a wheel.")
