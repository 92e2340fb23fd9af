"""Dataclasses from plain values: every key known, every type as annotated, with errors that name both."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any


def build_dataclass(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` from plain values; unknown keys and wrong types are ValueErrors."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be a mapping of keys to values.")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}; the known keys are {', '.join(known)}.")
    return kind(**{key: _coerce(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; YAML's 1e-3, which it reads as text, becomes a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(item for item in arguments if item is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build_dataclass(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; it must be a list.")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where} is {value!r}; it must have {len(inner)} entries.")
        return tuple(_coerce(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(inner, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a mapping of keys to values.")
        return {str(key): _coerce(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    return _coerce_scalar(hint, value, where)


def _coerce_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"{where} is {value!r}; it must be a number.") from error
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ValueError(f"{where} is {value!r}; it must be {names[hint]}.")


def require(where: str, name: str, value: Any, is_met: bool, rule: str) -> None:
    """None; a ValueError that names the key, its value and the rule where that is not met or no finite number."""
    if not is_met or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where}: {name} is {value!r}; it must be {rule}.")
