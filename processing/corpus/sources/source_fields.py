"""What the sources share in reading fields: splits by any name, sentences, values of JSON, what all rows agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from regionmed_clip.processing.corpus.grammar import capitalize
from regionmed_clip.processing.corpus.sources.item_index import Item
from regionmed_clip.processing.corpus.sources.source_files import Box, parse_number

SPLIT_OF_NAME = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def parse_split(name: Any) -> str:
    """The split that a source calls `name`; ValueError for a name that is none of a split, or no text."""
    if not isinstance(name, str) or name not in SPLIT_OF_NAME:
        raise ValueError(f"split is {name!r}; it must be one of {', '.join(SPLIT_OF_NAME)}. Correct or drop the row.")
    return SPLIT_OF_NAME[name]


def join_sentences(texts: Iterable[str]) -> str:
    """The distinct filled texts as sentences, in their order: single spaces, a capital first, a full stop last."""
    sentences = dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts)))
    return " ".join(
        capitalize(sentence) if sentence.endswith((".", "!", "?")) else f"{capitalize(sentence)}."
        for sentence in sentences
    )


def get_number(fields: Mapping[str, Any], name: str) -> float:
    """The finite number that a JSON object holds under `name`; ValueError where it is missing or another kind."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; it must be a number. Correct or drop the entry.")
    return parse_number(str(value), name)


def get_list(fields: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """The list of values of `kind` that a JSON object holds under `name`; [] where it is missing or null.

    Raises:
        ValueError: another kind of value, or an item of another kind.
    """
    values = fields.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{name} is {values!r:.200}; it must be a list of {kind.__name__}. Correct or drop the entry.")
    return values


def as_box(numbers: Sequence[float]) -> Box:
    """The four numbers of a box as a tuple; a list of JSON has no known length."""
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


def get_agreed(item: Item, name: str) -> Any:
    """What all rows of `item` say of a field that belongs to the image; ValueError where they differ."""
    first = item.rows[0][name]
    if any(row[name] != first for row in item.rows):
        raise ValueError(
            f"{item.key}: its rows have {name} {[row[name] for row in item.rows]}; the rows of one image share it. "
            "Correct the rows."
        )
    return first
