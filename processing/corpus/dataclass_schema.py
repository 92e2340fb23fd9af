"""JSON schemas and tables of the record classes, from their annotated fields (see the head of records.py)."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_JSON_TYPE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_WORD = {str: "text", int: "whole number", float: "number", bool: "true or false", bytes: "bytes", type(None): "null"}


@dataclass(frozen=True, slots=True)
class FieldAbout:
    """A field of a record class: its bare type, its description and, where it takes one of a few values, these."""

    name: str
    kind: Any
    description: str
    choices: tuple[str, ...]
    is_required: bool
    default: Any


def fields_of(record_class: type) -> list[FieldAbout]:
    """What is known of the fields of a record class; ValueError where one lacks a description."""
    hints = get_type_hints(record_class, include_extras=True)
    return [_about(record_class, field, hints[field.name]) for field in fields(record_class)]


def json_schema(*record_classes: type) -> dict[str, Any]:
    """The schema (draft 2020-12) of the first class, with those of the others and of all that they hold as $defs.

    Bytes are a text in base64.
    """
    names = dict.fromkeys(nested for record_class in record_classes for nested in _with_nested(record_class))
    first, *others = names
    return {
        "$schema": DIALECT,
        **_object_schema(first),
        "$defs": {other.__name__: _object_schema(other) for other in others},
    }


def name_type(field: FieldAbout) -> str:
    """The type of a field in words: "left, right, bilateral or null"."""
    if not field.choices:
        return _name(field.kind)
    values = [f"`{choice}`" for choice in field.choices] + (["null"] if _is_nullable(field.kind) else [])
    return f"{', '.join(values[:-1])} or {values[-1]}"


def _about(record_class: type, field: Any, hint: Any) -> FieldAbout:
    """What the annotation of a field says."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    descriptions = [note for note in notes if isinstance(note, str)]
    if len(descriptions) != 1:
        raise ValueError(
            f"{record_class.__name__}.{field.name} has {len(descriptions)} descriptions; every field of a record has "
            "one. Annotate its type with a text."
        )
    choices = next((note for note in notes if isinstance(note, tuple)), ())
    is_required = field.default is MISSING and field.default_factory is MISSING
    return FieldAbout(field.name, get_args(hint)[0], descriptions[0], choices, is_required, field.default)


def _with_nested(record_class: type) -> Iterator[type]:
    """The class and every record class that its fields hold, outermost first."""
    yield record_class
    for field in fields_of(record_class):
        for kind in _parts(field.kind):
            if is_dataclass(kind):
                yield from _with_nested(kind)


def _parts(kind: Any) -> Iterator[Any]:
    """A type and the types within it."""
    yield kind
    for part in get_args(kind):
        yield from _parts(part)


def _object_schema(record_class: type) -> dict[str, Any]:
    """The schema of an object with the fields of the class and no others."""
    known = fields_of(record_class)
    return {
        "title": record_class.__name__,
        "description": (record_class.__doc__ or "").strip().partition("\n")[0],
        "type": "object",
        "properties": {field.name: _field_schema(field) for field in known},
        "required": [field.name for field in known if field.is_required],
        "additionalProperties": False,
    }


def _field_schema(field: FieldAbout) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": field.description}
    if field.choices:
        schema["enum"] = [*field.choices, *([None] if _is_nullable(field.kind) else [])]
    else:
        schema |= _type_schema(field.kind)
    if not field.is_required:
        schema["default"] = field.default
    return schema


def _type_schema(kind: Any) -> dict[str, Any]:
    """The schema of a type."""
    if kind in _JSON_TYPE:
        return {"type": _JSON_TYPE[kind]}
    if kind is bytes:
        return {"type": "string", "contentEncoding": "base64"}
    if is_dataclass(kind):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    parts = get_args(kind)
    if _is_union(kind):
        return _union_schema(parts)
    if get_origin(kind) is tuple and parts[-1] is Ellipsis:
        return {"type": "array", "items": _type_schema(parts[0])}
    if get_origin(kind) is tuple:
        items = [_type_schema(part) for part in parts]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    raise ValueError(f"{kind} has no JSON schema here; records hold texts, numbers, tuples and records. Use these.")


def _union_schema(parts: tuple[Any, ...]) -> dict[str, Any]:
    """One of several types: a list of names for plain ones, else alternatives."""
    schemas = [_type_schema(part) for part in parts]
    if all(list(schema) == ["type"] for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_nullable(kind: Any) -> bool:
    return _is_union(kind) and type(None) in get_args(kind)


def _name(kind: Any) -> str:
    """A type in words."""
    parts = get_args(kind)
    if kind in _WORD:
        return _WORD[kind]
    if is_dataclass(kind):
        return f"`{kind.__name__}`"
    if _is_union(kind):
        return " or ".join(_name(part) for part in parts)
    if parts[-1] is Ellipsis:
        return f"list of {_plural(parts[0])}"
    return f"{len(parts)} {_plural(parts[0])}"


def _plural(kind: Any) -> str:
    """A type in words, for several of it; the name of a class stays as it is."""
    return _name(kind) if is_dataclass(kind) else f"{_name(kind)}s"
