"""The base of the sources for generic formats: what a format leaves unsaid is told by options."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import Item
from regionmed_clip.processing.corpus.sources.jsonl import UNKNOWN_MODALITY
from regionmed_clip.processing.corpus.sources.jsonl_fields import SPLIT_OF_NAME, UNKNOWN_LICENSE, normalize_label
from regionmed_clip.processing.corpus.sources.source_files import hash_of_files

GENERIC_LICENSE, GENERIC_ACCESS = "as the folder says", "any folder of yours in this format"
GENERIC_OPTIONS = {
    "name": "name of the source, which begins every image id (default: the name of the root folder)",
    "modality": f"what the images are, as captions say it, e.g. chest radiograph (default: {UNKNOWN_MODALITY})",
    "anatomy": "the part of the body that all images show, e.g. liver (default: not stated)",
    "license": f"licence of images and annotations, e.g. CC BY 4.0 (default: {UNKNOWN_LICENSE})",
    "patient": "a regular expression without comma whose first group, searched in an image's key, is the patient, e.g. "
    r"([0-9]+)_slice (default: every image counts as a patient of its own)",
}
SPLIT_OF_WORD = SPLIT_OF_NAME | {"training": "train", "trainval": "train", "valid": "validation", "testing": "test"}

_SPLIT_WORDS = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_OF_WORD, key=len, reverse=True))})(?![a-z])")


class GenericFolder(IndexedSource):
    """A source whose folder is in a generic format; options are texts, as a command line gives them.

    Args:
        root: the folder, laid out as `about.layout` says.
        index_path: as in IndexedSource.
        name, modality, anatomy, license, patient: see GENERIC_OPTIONS.

    Raises:
        ValueError: an option is empty or no regular expression with a group, or the root is wrong.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        index_path: Path | None = None,
        name: str | None = None,
        modality: str = UNKNOWN_MODALITY,
        anatomy: str | None = None,
        license: str = UNKNOWN_LICENSE,
        patient: str | None = None,
    ) -> None:
        told = {"name": name, "modality": modality, "anatomy": anatomy, "license": license, "patient": patient}
        for option, value in told.items():
            if value is not None and not value.strip():
                raise ValueError(f"{self.about.name}: option {option} is empty; it must be filled. Leave it out.")
        self._name = name or Path(root).resolve().name
        self._license = license
        self.modality = modality
        self.anatomy = anatomy
        self._patient = _compile_patient(self.about.name, patient)
        super().__init__(root, index_path=index_path)

    @abstractmethod
    def annotation_files(self) -> Iterable[Path]:
        """The files under the root that decide what the records say, beside the images."""

    def reading(self) -> tuple[str, ...]:
        """The options of the format that change what the records say, for the revision."""
        return ()

    @property
    def name(self) -> str:
        """Name of the source: that of the option, else that of the folder."""
        return self._name

    @property
    def license(self) -> str:
        """Licence of the source as the option tells it."""
        return self._license

    def patient_of(self, item: Item) -> str | None:
        """The first group of the option `patient` in the item's key; None without that option."""
        if self._patient is None:
            return None
        found = self._patient.search(item.key)
        if found is None or not found.group(1):
            raise ValueError(
                f"{item.key}: the option patient={self._patient.pattern} finds no patient in this key; every image "
                "must have one, or a patient may stand in two splits. Correct the expression."
            )
        return found.group(1)

    def find_revision(self) -> str:
        """12 hex digits of a hash of all annotation files and of the options that change the records."""
        files = hash_of_files(self.root, self.annotation_files())
        patient = self._patient and self._patient.pattern
        options = json.dumps([self.modality, self.anatomy, patient, *self.reading()])
        return hashlib.sha256(f"{files} {options}".encode()).hexdigest()[:12]


def split_of_words(text: str) -> str | None:
    """The split that `text`, a file name or a folder, names by a word of its own ("val2017"); None for none or two."""
    splits = {SPLIT_OF_WORD[word] for word in _SPLIT_WORDS.findall(text.lower())}
    return splits.pop() if len(splits) == 1 else None


def finding_of_label(label: str) -> str:
    """The finding that a class name means: lower case, underscores as spaces, known abbreviations written out."""
    return normalize_label(label.replace("_", " "))


def one_of(item: Item, role: str, missing: str) -> Any:
    """The only value that the item's rows have under `role`; ValueError saying `missing`, or naming the values."""
    values = [row[role] for row in item.rows if role in row]
    if len(values) > 1:
        raise ValueError(
            f"{item.key} has {len(values)} files, {', '.join(values[:3])}; an image has one of each kind, told apart "
            "by its name without suffix. Rename one."
        )
    if not values:
        raise ValueError(f"{item.key} {missing}")
    return values[0]


def one_split(item: Item) -> str | None:
    """The split under which lists name the item ("list" in its rows), or None; ValueError where they disagree."""
    splits = {row["list"] for row in item.rows if "list" in row}
    if len(splits) > 1:
        raise ValueError(
            f"{item.key} is listed in the splits {', '.join(sorted(splits))}; an image belongs to one, or the test set "
            "leaks. Keep it in one list."
        )
    return splits.pop() if splits else None


def _compile_patient(source: str, expression: str | None) -> re.Pattern[str] | None:
    """The expression compiled; ValueError where it is none or has no group."""
    if expression is None:
        return None
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"{source}: option patient={expression!r} is no regular expression ({error}). Correct it."
        ) from error
    if compiled.groups < 1:
        raise ValueError(
            f"{source}: option patient={expression!r} has no group; the first group (...) is the patient. Add it."
        )
    return compiled
