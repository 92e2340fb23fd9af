"""Fields of a jsonl source, each read and checked by one function; ValueErrors here lack only file and line."""

from __future__ import annotations

import json
import re
from typing import Any

from regionmed_clip.processing.corpus.records import ANSWER_TYPES, QARecord
from regionmed_clip.processing.corpus.sources.question_rows import name_kind

FINDING_OF_LABEL = {  # other labels are taken over in lower case
    "rbc": "red blood cell",
    "wbc": "white blood cell",
    "platelets": "platelet",
    "hard exudates (ex)": "hard exudate",
}
SPLIT_OF_NAME = {"train": "train", "val": "validation", "validation": "validation", "dev": "validation", "test": "test"}
UNKNOWN_LICENSE = "unknown"

_WORD_OF_MODALITY = {"slices": "slice", "radiographs": "radiograph", "images": "image", "photography": "photograph"}
_KNOWN_LICENSE = re.compile(r"CC0 1\.0|CC BY(?:-[A-Z]{2})* \d\.\d|MIT|Apache-2\.0|BSD-[23]-Clause")


def parse_row(raw: bytes) -> dict[str, Any]:
    """One line of the file as a row that has an image path."""
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError both; brackets without end
        raise ValueError(
            f"{_shown(raw)} is no JSON ({error}); a line holds one JSON object. Write it again."
        ) from error
    image = row.get("image") if isinstance(row, dict) else None
    if not isinstance(image, str) or not image or not image.isprintable():
        raise ValueError(f'{_shown(raw)} is no row; a row is a JSON object with a path under "image". Add it.')
    return row


def read_split(row: dict[str, Any]) -> str | None:
    """The split that a row names, "val" and "dev" as "validation"; None where it names none."""
    name = row.get("split")
    if name is None:
        return None
    if not isinstance(name, str) or name not in SPLIT_OF_NAME:
        raise ValueError(
            f"{row['image']}: split is {name!r}; it must be one of {', '.join(SPLIT_OF_NAME)} or null. Rename it."
        )
    return SPLIT_OF_NAME[name]


def read_patient_id(row: dict[str, Any]) -> str | None:
    """The patient of a row as a text, or None."""
    value = row.get("patient_id")
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).isprintable():
        raise ValueError(
            f"{row['image']}: patient_id is {value!r}; it must be a text, a whole number or null. Correct it."
        )
    return str(value)


def read_side(row: dict[str, Any], name: str) -> int:
    """The width or height that a row states, in pixels."""
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{row['image']}: {name} is {value!r}; it must be a whole number of pixels from 1. Correct it."
        )
    return value


def read_boxes(row: dict[str, Any]) -> list[tuple[tuple[float, float, float, float], str]]:
    """Every box of a row with its finding; values may still be NaN or out of order, which `check` refuses."""
    boxes, labels = row.get("boxes_xyxy") or [], row.get("labels") or []
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise ValueError(
            f"{row['image']}: boxes_xyxy has {_length(boxes)} and labels has {_length(labels)}; they must be lists "
            "of equal length. Give every box exactly one label."
        )
    pairs = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if not isinstance(label, str):
            raise ValueError(
                f"{row['image']}: label {index} is {label!r}; a label is a text. Write the finding's name."
            )
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in box):
            raise ValueError(
                f"{row['image']}: region {index} ({label!r}) has box {box!r}; a box is four numbers "
                "(x0, y0, x1, y1) in pixels. Correct it."
            )
        pairs.append((tuple(float(value) for value in box), normalize_label(label)))
    return pairs


def read_findings(row: dict[str, Any]) -> frozenset[str]:
    """The findings that a row names; none of one whose labels are no texts, which `read_boxes` refuses."""
    labels = row.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return frozenset()
    return frozenset(map(normalize_label, labels))


def normalize_label(label: str) -> str:
    """The finding that a label names: lower case, single spaces, known abbreviations written out."""
    lowered = " ".join(label.lower().split())
    return FINDING_OF_LABEL.get(lowered, lowered)


def read_questions(row: dict[str, Any]) -> tuple[QARecord, ...]:
    """The question-answer pairs of a row.

    The kind is the pair's answer_type in lower case, else told by the answer, with its question_type where it has one.
    """
    pairs = row.get("qa") or []
    if not isinstance(pairs, list):
        raise ValueError(
            f"{row['image']}: qa is {pairs!r}; it must be a list of objects with q and a, or null. Correct it."
        )
    questions = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, dict) or not isinstance(pair.get("q"), str) or not isinstance(pair.get("a"), str):
            raise ValueError(
                f"{row['image']}: question {index} is {pair!r}; it must be an object with texts q and a. Correct it."
            )
        told_kind = "closed" if pair["a"].strip().lower() in ("yes", "no") else "open"
        answer_type = str(pair.get("answer_type") or told_kind).strip().lower()
        if answer_type.partition("-")[0] not in ANSWER_TYPES:
            raise ValueError(
                f"{row['image']}: question {index} has answer_type {pair['answer_type']!r}; it must be open or closed, "
                "or a kind that begins so, such as closed-presence. Correct it, or leave it out: the answer tells it."
            )
        kind = name_kind(answer_type, pair.get("question_type"))
        questions.append(QARecord(pair["q"].strip(), pair["a"].strip(), kind))
    return tuple(questions)


def read_caption(row: dict[str, Any]) -> str | None:
    """The caption that a row brings, or None."""
    caption = row.get("caption")
    if caption is not None and (not isinstance(caption, str) or not caption.strip()):
        raise ValueError(
            f"{row['image']}: caption is {caption!r}; it must be a text, or null where there is none. Correct it."
        )
    return caption


def read_license(about: str) -> str:
    """The licence named on the "- Licence:" line of SOURCE.md in its short form, or "unknown"."""
    line = _line_of(about, "Licen[cs]e")
    known = _KNOWN_LICENSE.search(line)
    return known.group() if known else _short_form(line) or UNKNOWN_LICENSE


def read_modality(about: str) -> str | None:
    """The short form of the "- Modality:" line of SOURCE.md, in the singular ("brain MRI slice"), or None."""
    words = _short_form(_line_of(about, "Modality")).split()
    return " ".join(_WORD_OF_MODALITY.get(word, word) for word in words) or None


def _line_of(about: str, name_pattern: str) -> str:
    """The text after "- NAME:" in a Markdown list, or ""."""
    match = re.search(rf"^- {name_pattern}:\s*(.+)$", about, flags=re.MULTILINE)
    return match.group(1) if match else ""


def _short_form(text: str) -> str:
    """`text` up to its first comma, semicolon or parenthesis."""
    return re.split(r"[,;(]", text, maxsplit=1)[0].strip()


def _length(value: object) -> str:
    """How many entries a list has, or what is there instead."""
    return f"{len(value)} entries" if isinstance(value, list) else f"{value!r}, no list"


def _shown(raw: bytes) -> str:
    """The first characters of a line, for a message."""
    return repr(raw[:60].decode("utf-8", errors="replace"))
