"""docs/data_contract.md: the blocks of the page that are written from the code, and their place in it.

A block stands between two comment lines that name it, `<!-- generated: NAME -->` and `<!-- end: NAME -->`; everything
else on the page is written by hand. `python -m regionmed_clip.processing.corpus.record_schema` writes and checks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import datasets

from regionmed_clip.processing.corpus.dataclass_schema import fields_of, json_schema, name_type
from regionmed_clip.processing.corpus.medregion import corpus_features
from regionmed_clip.processing.corpus.records import (
    MaskRle,
    NegativeRecord,
    QARecord,
    RegionRecord,
    StudyRecord,
    TextRecord,
)

_BLOCK = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n.*?<!-- end: (?P=name) -->", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:generated|end): ([\w-]+) -->")

_CLASS_OF_COLUMN = {  # a column of lists -> what one of its items comes from
    "regions": RegionRecord,
    "qa": QARecord,
    "texts": TextRecord,
    "negatives": NegativeRecord,
    "mask": MaskRle,
}
_MEANING_OF_COLUMN = {  # columns that are no field of a record, or another form of one
    "image": "the image file: `bytes` as they came, `path` its name or null",
    "phash": "perceptual hash of the image, 16 hex digits; null: not computed",
    "caption_key": "63-bit hash of what the caption states",
    "texts": "the texts of the image and its regions by level (`TextRecord`)",
    "negatives": "false texts of the image and its regions (`NegativeRecord`)",
    "regions[].description": "text of the region; never empty",
    "regions[].key": "63-bit hash of what the description states",
    "regions[].mask": "the region's pixels as COCO run lengths; may be null",
}


def render_page(page: str) -> str:
    """The page with every block written anew; ValueError where a block is missing, unknown or not closed."""
    names = [found["name"] for found in _BLOCK.finditer(page)]
    markers = [name for name in names for _ in range(2)]
    if sorted(names) != sorted(_BLOCKS) or _MARKER.findall(page) != markers:
        raise ValueError(
            f"the page has the generated blocks {names} and the markers {_MARKER.findall(page)}; it must have each of "
            f"{sorted(_BLOCKS)} once: `<!-- generated: NAME -->`, anything, `<!-- end: NAME -->`. Restore the markers."
        )
    return _BLOCK.sub(lambda found: _render_block(found["name"]), page)


def _render_block(name: str) -> str:
    return f"<!-- generated: {name} -->\n\n{_BLOCKS[name]()}\n\n<!-- end: {name} -->"


def _table_of_class(record_class: type) -> str:
    """A table of the fields of a record class."""
    rows = [
        (f"`{field.name}`", name_type(field) + ("" if field.is_required else "; optional"), field.description)
        for field in fields_of(record_class)
    ]
    return _table(("field", "type", "meaning"), rows)


def _table_of_columns() -> str:
    """A table of the columns of a shard, the fields of nested lists below their list."""
    meanings = {field.name: field.description for field in fields_of(StudyRecord)}
    rows = [row for name, feature in corpus_features().items() for row in _column_rows(name, feature, meanings)]
    return _table(("column", "type", "meaning"), rows)


def _column_rows(column: str, feature: Any, meanings: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """The row of a column and, for a list of objects or an object, those of its fields.

    Raises:
        ValueError: a column that nothing describes.
    """
    name = column.rpartition(".")[2]
    meaning = _MEANING_OF_COLUMN.get(column) or meanings.get(name)
    if meaning is None:
        raise ValueError(
            f"column {column!r} of the shards has no meaning; every column is a field of a record or described in "
            "contract_page.py. Describe it there."
        )
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    if not isinstance(inner, dict):
        yield f"`{column}`", _column_type(feature), meaning
        return
    is_list = inner is not feature
    yield f"`{column}`", "list of objects" if is_list else "object", meaning
    inner_meanings = {field.name: field.description for field in fields_of(_CLASS_OF_COLUMN[name])}
    for field, part in inner.items():
        yield from _column_rows(f"{column}{'[]' if is_list else ''}.{field}", part, inner_meanings)


def _column_type(feature: Any) -> str:
    """The type of a column that holds no objects."""
    if isinstance(feature, datasets.Image):
        return "object of `bytes` and `path`"
    if isinstance(feature, datasets.Value):
        return feature.dtype
    return f"list of {'' if feature.length < 0 else f'{feature.length} '}{feature.feature.dtype}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _schema_block() -> str:
    """The JSON schema of all records, folded."""
    schema = json.dumps(json_schema(StudyRecord, TextRecord, NegativeRecord), indent=2)
    return f"<details>\n<summary>JSON schema, draft 2020-12</summary>\n\n```json\n{schema}\n```\n\n</details>"


_BLOCKS: dict[str, Callable[[], str]] = {
    "study-record": lambda: _table_of_class(StudyRecord),
    "region-record": lambda: _table_of_class(RegionRecord),
    "mask": lambda: _table_of_class(MaskRle),
    "qa-record": lambda: _table_of_class(QARecord),
    "text-record": lambda: _table_of_class(TextRecord),
    "negative-record": lambda: _table_of_class(NegativeRecord),
    "json-schema": _schema_block,
    "shard-columns": _table_of_columns,
}
