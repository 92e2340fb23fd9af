"""What the sources of questions share: rows of a JSON list, and a split by image where the lists are by question.

An image that two splits name goes to the stricter one, with that split's questions only: then no training image, and no
question about one, is seen again in the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.records import ANSWER_TYPES, QARecord
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_files import load_json

STRICTEST_FIRST = ("test", "validation", "train")
TOPIC_OF_NAME = {  # VQA-RAD's short names
    "pres": "presence",
    "abn": "abnormality",
    "pos": "position",
    "attrib": "attribute",
    "atrib": "attribute",
}
_NAME = re.compile(r"[a-z]+")


def read_list(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """("FILE:NUMBER", entry) of every entry of the JSON list at `path`, numbers from 1; an entry may be anything.

    Raises:
        ValueError: the file is missing or no JSON, is no list, or no entry of it has all of `fields`.
    """
    entries = load_json(path)
    if not isinstance(entries, list) or not any(_has_fields(entry, fields) for entry in entries):
        raise ValueError(
            f"{path} holds {_shown(entries)}; it must be a list of objects with {', '.join(fields)}. Fetch the "
            "source's own file."
        )
    for number, entry in enumerate(entries, start=1):
        yield f"{path.name}:{number}", entry


def question_rows(place: str, key: str, entry: dict[str, Any], **fields: str) -> Iterator[Row | BadRow]:
    """The row of a question about the image `key`: `fields` (split among them) with question, answer and kind.

    A question that cannot be read gives a bad row of its own, at `place`, and a row without question: the image stays.
    """
    try:
        question = _parse_question(entry)
    except ValueError as error:
        yield BadRow(place, f"{place}: {key}: {error}")
        yield Row(key, fields)
    else:
        yield Row(key, {**fields, **question})


def strictest_split(item: Item) -> str:
    """The strictest of the splits that the rows of an image name."""
    named = {row["split"] for row in item.rows}
    return next(split for split in STRICTEST_FIRST if split in named)


def questions_of(item: Item) -> tuple[QARecord, ...]:
    """The distinct questions of an image that belong to its split, in their order."""
    own = (row for row in item.rows if row["split"] == item.split and "question" in row)
    return tuple(dict.fromkeys(QARecord(row["question"], row["answer"], row["kind"]) for row in own))


def _parse_question(entry: dict[str, Any]) -> dict[str, str]:
    """Question, answer and kind ("open", "closed-presence") of an entry; ValueError where one cannot be read."""
    question, answer = _text(entry, "question"), _text(entry, "answer")
    told_kind = "closed" if answer.lower() in ("yes", "no") else "open"
    kind = str(entry.get("answer_type") or told_kind).strip().lower()
    if kind not in ANSWER_TYPES:
        raise ValueError(f"answer_type is {entry['answer_type']!r}; it must be OPEN or CLOSED. Correct it.")
    topic = entry.get("question_type") or entry.get("content_type")  # of VQA-RAD, of SLAKE
    return {"question": question, "answer": answer, "kind": name_kind(kind, topic)}


def name_kind(answer_type: str, topic: Any) -> str:
    """The kind of a question by its answer type and the source's name for its topic: "closed", "closed-presence".

    Of several topics, "PRES, ATTRIB", the first counts; None and an empty text are none.
    """
    name = _NAME.search(str(topic or "").lower())
    return f"{answer_type}-{TOPIC_OF_NAME.get(name.group(), name.group())}" if name else answer_type


def _text(entry: dict[str, Any], name: str) -> str:
    """The filled text, or the number as a text (counts are answers too), that an entry has under `name`."""
    value = entry.get(name)
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if text in ("", "nan"):  # NaN is what spreadsheet tools write for an empty cell
        raise ValueError(f"{name} is {value!r}; question and answer must be filled texts. Fill it or drop the entry.")
    return text


def _has_fields(entry: Any, fields: Sequence[str]) -> bool:
    """Whether an entry is an object with all of `fields`."""
    return isinstance(entry, dict) and all(name in entry for name in fields)


def _shown(entries: Any) -> str:
    """What a file holds, for a message."""
    if not isinstance(entries, list):
        return f"{type(entries).__name__}, no list"
    if not entries or not isinstance(entries[0], dict):
        return f"a list of {len(entries)} entries that are no objects"
    return f"entries with {', '.join(entries[0])}"
