"""The records of the corpus: one image with its regions, texts and questions.

Boxes are (x0, y0, x1, y1) in pixels of the original image, origin top-left, half-open: x1 and y1 lie just outside.
Laterality is always the PATIENT's side; a place such as "upper left" is read in the image frame.

A field's type is annotated with its description and, where it takes one of a few values, with these:
docs/data_contract.md is made from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

ANSWER_TYPES = ("open", "closed")
SPLITS = ("train", "validation", "test")
LATERALITIES = ("left", "right", "bilateral")
SIZES = ("small", "medium", "large")
SEVERITIES = ("mild", "moderate", "severe")
CERTAINTIES = ("possible", "probable", "definite")
TEXT_ORIGINS = ("template", "source")
TEXT_LEVELS = ("caption", "findings", "impression", "region", "region_short", "attribute", "normal")
NEGATIVE_CHANGES = ("laterality", "place", "size", "severity", "negation", "finding")


@dataclass(frozen=True, slots=True)
class MaskRle:
    """A mask as COCO uncompressed run lengths: column-major, the first run counts zeros (it may be 0 long)."""

    size: Annotated[tuple[int, int], "height and width in pixels"]
    counts: Annotated[tuple[int, ...], "lengths of the runs of zeros and ones in turn; they sum to height * width"]

    def __post_init__(self) -> None:
        height, width = self.size
        if height < 1 or width < 1 or any(count < 0 for count in self.counts) or sum(self.counts) != height * width:
            raise ValueError(
                f"Mask of size {self.size} has {len(self.counts)} run lengths that sum to {sum(self.counts)}; they "
                f"must be at least 0 and sum to height * width = {height * width}. Use `MaskRle.from_array`."
            )

    @classmethod
    def from_array(cls, mask: np.ndarray) -> MaskRle:
        """Run lengths of `mask`, an (H, W) array in which every non-zero value belongs to the region."""
        if mask.ndim != 2 or mask.size == 0:
            raise ValueError(
                f"A mask has shape {mask.shape}; it must be a filled (H, W) array. Pass one region at a time."
            )
        flat = np.asarray(mask, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        starts = [0, 0] if flat[0] else [0]  # the first run counts zeros: an empty one where the mask begins with a one
        bounds = np.concatenate((starts, changes, [flat.size]))
        return cls((int(mask.shape[0]), int(mask.shape[1])), tuple(np.diff(bounds).tolist()))

    @classmethod
    def from_labels(cls, values: np.ndarray) -> dict[int, MaskRle]:
        """Every label's run lengths by label, ascending, of an (H, W) integer array in which 0 is background.

        One pass for all of them: `from_array` would go over the whole array once for each.
        """
        if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "biu":
            raise ValueError(
                f"Labels have shape {values.shape} and dtype {values.dtype}; they must be a filled (H, W) array of "
                "whole numbers. Round them, and pass one image at a time."
            )
        flat = values.ravel(order="F")
        places = np.flatnonzero(flat)
        order = np.argsort(flat[places], kind="stable")
        places, labels = places[order], flat[places][order]  # by label, ascending within a label
        is_start = np.ones(len(places) + 1, dtype=bool)  # of a run; one entry more, so that its shift marks the ends
        is_start[1:-1] = (labels[1:] != labels[:-1]) | (places[1:] != places[:-1] + 1)
        starts, ends = places[is_start[:-1]], places[is_start[1:]] + 1
        found, first_runs = np.unique(labels[is_start[:-1]], return_index=True)
        masks = {}
        for label, runs in zip(found.tolist(), np.split(np.stack((starts, ends), axis=1), first_runs[1:])):
            bounds = np.concatenate(([0], runs.ravel(), [flat.size] if runs[-1, 1] < flat.size else []))
            masks[int(label)] = cls(
                (int(values.shape[0]), int(values.shape[1])), tuple(np.diff(bounds).astype(int).tolist())
            )
        return masks

    def to_array(self) -> np.ndarray:
        """The mask as an (H, W) bool array."""
        values = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(values, self.counts).reshape(self.size, order="F")


@dataclass(frozen=True, slots=True)
class RegionRecord:
    """One annotated region; attributes that are not known are None and no text may state them."""

    box: Annotated[
        tuple[float, float, float, float], "x0, y0, x1, y1 in pixels of the original image, origin top-left, half-open"
    ]
    finding: Annotated[str, "what the region shows: a noun phrase in lower case"]
    anatomy: Annotated[str | None, "the organ or part of the body"] = None
    laterality: Annotated[str | None, LATERALITIES, "the patient's side, not the picture's"] = None
    place: Annotated[str | None, 'where in the organ ("upper zone"), or in the image frame ("upper left")'] = None
    size: Annotated[str | None, SIZES, "as the source grades it"] = None
    severity: Annotated[str | None, SEVERITIES, "as the source grades it"] = None
    certainty: Annotated[str | None, CERTAINTIES, "how sure the source is; null is read as definite"] = None
    is_negated: Annotated[bool, "whether the finding is stated to be absent"] = False
    description: Annotated[str, "text of the region; empty: written by template from the attributes"] = ""
    text_origin: Annotated[str, TEXT_ORIGINS, "who wrote the description: a program or the source"] = "template"
    mask_rle: Annotated[MaskRle | None, "the region's pixels, in the size of the image"] = None


@dataclass(frozen=True, slots=True)
class QARecord:
    """A question about an image with its answer; kind is "open" or "closed", with a topic or not: "closed-presence"."""

    question: Annotated[str, "the question"]
    answer: Annotated[str, "its answer"]
    kind: Annotated[str, '"open" or "closed", then maybe - and a topic']


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One text of an image, or of one of its regions, as it may be trained on."""

    level: Annotated[str, TEXT_LEVELS, "what kind of text it is"]
    text: Annotated[str, "the text"]
    key: Annotated[int, "63-bit hash of what the text states (text_keys.py); texts of equal keys mean the same"]
    region: Annotated[int | None, "index of the region it speaks of; null: the whole image"] = None
    origin: Annotated[str, TEXT_ORIGINS, "who wrote it: a program from the record, or the source"] = "template"


@dataclass(frozen=True, slots=True)
class NegativeRecord:
    """A text that is false of its image by the record: the true text with one attribute changed."""

    text: Annotated[str, "the false text"]
    key: Annotated[int, "63-bit hash of what it states; it differs from the keys of all true texts of the image"]
    changed: Annotated[str, NEGATIVE_CHANGES, "what was changed"]
    region: Annotated[int | None, "index of the region whose text was changed; null: the whole image"] = None


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One image with everything known of it."""

    image_id: Annotated[str, "unique within its source"]
    image: Annotated[bytes | str, "the encoded image file, or its path"]
    width: Annotated[int, "pixels"]
    height: Annotated[int, "pixels"]
    modality: Annotated[str, 'kind of image, such as "chest radiograph"']
    anatomy: Annotated[str | None, "part of the body"]
    view: Annotated[str | None, 'such as "frontal" or "axial"']
    caption: Annotated[str, "text of the image; never empty"]
    findings: Annotated[str, "findings section of a report; may be empty"]
    impression: Annotated[str, "impression section of a report; may be empty"]
    regions: Annotated[tuple[RegionRecord, ...], "the annotated regions; none does not mean normal"]
    qa: Annotated[tuple[QARecord, ...], "questions about the image with their answers"]
    patient_id: Annotated[str | None, "the source's own pseudonym; all images of a patient are in one split"]
    split: Annotated[str, SPLITS, "the source's own split, or one by a hash of the patient"]
    source: Annotated[str, "name of the source"]
    source_revision: Annotated[str, "release of the source and hash of its annotations"]
    license: Annotated[str, "short name of the licence of image and annotations"]
    sha256: Annotated[str, "64 hex digits, of the bytes of the image file"]
    text_origin: Annotated[str, TEXT_ORIGINS, "who wrote caption, findings and impression"] = "template"
    window: Annotated[
        tuple[float, float] | None,
        "low and high in stored pixel values, shown as black and white; null: the whole range, or an 8-bit image",
    ] = None

    def check(self) -> None:
        """Nothing; raises ValueError naming the image, the region, the value, the rule and the way out."""
        _check_study(self)
        _check_unicode(self)
        for index, region in enumerate(self.regions):
            _check_region(self, index, region)
        for index, question in enumerate(self.qa):
            if not (question.question.strip() and question.answer.strip() and question.kind.strip()):
                raise ValueError(
                    f"{self.image_id}: question {index} is {question}; question, answer and kind must be filled. "
                    "Drop incomplete questions from the source."
                )
            if question.kind.partition("-")[0] not in ANSWER_TYPES:
                raise ValueError(
                    f"{self.image_id}: question {index} has kind {question.kind!r}; it must be open or closed, or "
                    "begin so, such as closed-presence. Name its answer type first."
                )


def _check_study(record: StudyRecord) -> None:
    """Nothing; raises ValueError on the first field of the image itself that breaks a rule."""
    if not record.image_id.strip():
        raise ValueError(
            f"A record of source {record.source!r} has image_id {record.image_id!r}; it must be filled. Name the image."
        )
    if not record.image:
        raise ValueError(
            f"{record.image_id}: image is empty; it must be encoded bytes or a path. Check the source file."
        )
    if record.width < 1 or record.height < 1:
        raise ValueError(
            f"{record.image_id}: size is {record.width}x{record.height}; both sides must be at least 1 pixel. "
            "Read them from the image file."
        )
    for name in ("modality", "caption", "source", "source_revision", "license"):
        if not getattr(record, name).strip():
            raise ValueError(f"{record.image_id}: {name} is empty; every record states it. Fill it in the source.")
    _check_choice(record.image_id, "split", record.split, SPLITS, "Rename it in the source.")
    _check_choice(record.image_id, "text_origin", record.text_origin, TEXT_ORIGINS, "Say who wrote the text.")
    if record.window is not None:
        low, high = record.window
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"{record.image_id}: window is {record.window}; it must be (low, high) in stored pixel values, both "
                "finite, low below high. Use None to show the whole range."
            )
    if len(record.sha256) != 64 or not set(record.sha256) <= set("0123456789abcdef"):
        raise ValueError(
            f"{record.image_id}: sha256 is {record.sha256!r}; it must be 64 lower-case hex digits. "
            "Use hashlib.sha256(image_bytes).hexdigest()."
        )


def _check_unicode(record: StudyRecord) -> None:
    """Nothing; raises ValueError on a text with half a surrogate pair, which no file and no table can hold."""
    texts = [getattr(record, name) for name in StudyRecord.__dataclass_fields__]
    for part in (*record.regions, *record.qa):
        texts += [getattr(part, name) for name in type(part).__dataclass_fields__]
    for text in texts:
        if isinstance(text, str) and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"{record.image_id!a}: the text {text!a} is no Unicode text: it holds half a surrogate pair. "
                "Write it again as UTF-8."
            )


def _check_region(record: StudyRecord, index: int, region: RegionRecord) -> None:
    """Nothing; raises ValueError on the first attribute of the region that breaks a rule."""
    where = f"{record.image_id}: region {index} ({region.finding!r})"
    if not region.finding.strip():
        raise ValueError(f"{where} has an empty finding; a region names what it shows. Name it or drop the region.")
    x0, y0, x1, y1 = region.box
    if not all(math.isfinite(value) for value in region.box):
        raise ValueError(f"{where} has box {region.box}; all four values must be finite. Correct or drop the region.")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"{where} has box {region.box}; x1 must exceed x0 and y1 must exceed y0. "
            "Boxes are (x0, y0, x1, y1) in pixels; convert (x, y, width, height) boxes first."
        )
    if x0 < 0 or y0 < 0 or x1 > record.width or y1 > record.height:
        raise ValueError(
            f"{where} has box {region.box}; it must lie within the image of {record.width}x{record.height} pixels. "
            "Clip the box to the image, or check that it belongs to this image."
        )
    for name, choices in (
        ("laterality", LATERALITIES),
        ("size", SIZES),
        ("severity", SEVERITIES),
        ("certainty", CERTAINTIES),
    ):
        if getattr(region, name) is not None:
            _check_choice(where, name, getattr(region, name), choices, "Use None where it is not known.")
    _check_choice(where, "text_origin", region.text_origin, TEXT_ORIGINS, "Say who wrote the text.")
    if region.mask_rle is not None and region.mask_rle.size != (record.height, record.width):
        raise ValueError(
            f"{where} has a mask of {region.mask_rle.size} (height, width); it must match the image's "
            f"{(record.height, record.width)}. Resize the mask with nearest neighbour."
        )


def _check_choice(where: str, name: str, value: str, choices: tuple[str, ...], way_out: str) -> None:
    """Nothing; raises ValueError when `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{where}: {name} is {value!r}; it must be one of {', '.join(choices)}. {way_out}")
