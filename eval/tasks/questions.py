"""What is asked of whole images: is a finding shown, and which one of several? Both within one modality of one source.

Positives and negatives come from one modality of one source, so that telling a radiograph from a blood smear earns
nothing. "Not shown" means not annotated there: how complete that is, is the source's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Stratum
from regionmed_clip.processing.corpus.captions import is_normal_caption

NO_FINDING = "no finding"  # the class of images whose caption calls them normal
MIN_IMAGES_OF_CLASS = 5  # of a class of images picked out for their single finding


@dataclass(frozen=True)
class PresenceQuestion:
    """Is `finding` shown? Asked of `images` (n,) int64 rows, all of one modality of a source; is_shown (n,) bool."""

    source: str
    modality: str
    finding: str
    images: np.ndarray
    is_shown: np.ndarray

    @property
    def name(self) -> str:
        """The question in a table: "CT: hepatic cyst"."""
        return f"{self.modality}: {self.finding}"

    def asked_of(self, embedded: EmbeddedSplit) -> PresenceQuestion:
        """The same question of another split; it may have no image, or none that shows the finding."""
        images = images_of(embedded, self.source, self.modality)
        is_shown = np.array([self.finding in embedded.image_findings[row] for row in images], dtype=bool)
        return PresenceQuestion(self.source, self.modality, self.finding, images, is_shown)

    @property
    def has_both(self) -> bool:
        """Whether some images show the finding and others do not."""
        return bool(self.is_shown.any() and not self.is_shown.all())


@dataclass(frozen=True)
class ClassQuestion:
    """Which one of `labels` is it? Asked of `images` (n,) int64 rows; truth (n,) int64 index of each one's label.

    `num_left_out` images of the same modality and source are not asked: of a source whose images may show several
    findings only those are that show one alone, the construction rule of CheXpert 5x200 (GLoRIA, ICCV 2021).
    """

    source: str
    modality: str
    labels: tuple[str, ...]
    images: np.ndarray
    truth: np.ndarray
    num_left_out: int

    @property
    def name(self) -> str:
        """The question in a table: "brisc_brain_mri, brain MRI slice"."""
        return f"{self.source}, {self.modality}"

    def asked_of(self, embedded: EmbeddedSplit) -> ClassQuestion:
        """The same question, with the same labels, of another split; it may have no image."""
        images = images_of(embedded, self.source, self.modality)
        return _among(self.source, self.modality, self.labels, images, _only_labels(embedded, images))


def presence_questions(embedded: EmbeddedSplit) -> list[PresenceQuestion]:
    """Every (source, modality, finding) that some images of that source and modality show and others do not."""
    questions = []
    for source, modality in _groups(embedded):
        images = images_of(embedded, source, modality)
        shown = [embedded.image_findings[row] for row in images]
        for finding in sorted(set().union(*shown)):
            is_shown = np.array([finding in findings for findings in shown], dtype=bool)
            if not is_shown.all():
                questions.append(PresenceQuestion(source, modality, finding, images, is_shown))
    return questions


def class_questions(embedded: EmbeddedSplit) -> list[ClassQuestion]:
    """The question of every modality of a source that has at least two classes.

    Where no image shows several findings, every finding is a class, else those of at least MIN_IMAGES_OF_CLASS images
    that show it alone. Images whose caption calls them normal are a class too; others without a finding are not asked.
    """
    questions = []
    for source, modality in _groups(embedded):
        images = images_of(embedded, source, modality)
        only = _only_labels(embedded, images)
        is_exclusive = all(len(embedded.image_findings[row]) < 2 for row in images)
        names, counts = np.unique(only[only != ""], return_counts=True)
        labels = tuple(names[counts >= (1 if is_exclusive else MIN_IMAGES_OF_CLASS)].tolist())
        if len(labels) > 1:
            questions.append(_among(source, modality, labels, images, only))
    return questions


def belongs(question: PresenceQuestion | ClassQuestion, stratum: Stratum) -> bool:
    """Whether the question is asked of images of the stratum."""
    return stratum.source in (None, question.source) and stratum.name in (None, question.modality)


def study_of(embedded: EmbeddedSplit, source: str, modality: str) -> str:
    """The commonest name of the images of one modality of one source; the first in the alphabet of equals."""
    names, counts = np.unique(embedded.image_studies[images_of(embedded, source, modality)], return_counts=True)
    return str(names[counts.argmax()])


def images_of(embedded: EmbeddedSplit, source: str, modality: str) -> np.ndarray:
    """Rows of the images of one modality of one source."""
    return np.flatnonzero((embedded.image_sources == source) & (embedded.image_modalities == modality))


def _groups(embedded: EmbeddedSplit) -> Iterator[tuple[str, str]]:
    """Every (source, modality) of the split, sorted."""
    yield from sorted(set(zip(embedded.image_sources.tolist(), embedded.image_modalities.tolist(), strict=True)))


def _only_labels(embedded: EmbeddedSplit, images: np.ndarray) -> np.ndarray:
    """(n,) str: the one finding of each image, NO_FINDING where the caption calls it normal, "" for all others."""
    labels = []
    for row in images:
        findings = embedded.image_findings[row]
        is_normal = not findings and is_normal_caption(embedded.captions[embedded.image_caption[row]])
        labels.append(next(iter(findings)) if len(findings) == 1 else NO_FINDING if is_normal else "")
    return np.array(labels, dtype=str)


def _among(source: str, modality: str, labels: tuple[str, ...], images: np.ndarray, only: np.ndarray) -> ClassQuestion:
    """The question of the `images` (n,) whose single label `only` (n,) str is one of `labels`, which are sorted."""
    is_asked = np.isin(only, labels)
    truth = np.searchsorted(np.array(labels), only[is_asked])
    return ClassQuestion(source, modality, labels, images[is_asked], truth, int((~is_asked).sum()))
