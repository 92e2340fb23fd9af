"""Details of tasks as blocks of the page, recognised by their shape: diagrams, confusion matrices, tables, pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from regionmed_clip.eval.report_charts import draw_lines, draw_reliability

MAX_ROWS = 60  # of a table; how many were left out is said beneath it
CURVE_KEYS = {"figure", "strength", "value", "low", "high"}
RELIABILITY_KEYS = {"low", "high", "n", "confidence", "accuracy"}


@dataclass(frozen=True)
class Cell:
    """A number of a confusion matrix; `share` of its row in [0, 1] is its shade."""

    count: int
    share: float
    is_right: bool


@dataclass(frozen=True)
class Block:
    """One detail; kind "chart", "confusion", "table", "pairs" or "text" tells which of the other fields hold it."""

    kind: str
    title: str
    svg: Markup = field(default_factory=Markup)
    header: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""
    text: str = ""


def make_blocks(name: str, value: Any, model: str = "") -> list[Block]:
    """The blocks of one detail of a model: JSON values as tasks hand them back, see `TaskFindings.details`.

    Reliability bins (or a name -> bins mapping) become a diagram, {"labels", "counts"} a confusion matrix, equally long
    lists of numbers lines over the first, a list of mappings a table, a mapping of plain values pairs; a mapping of
    anything else is taken apart; what is left is text. Points of curves that are results too are left out.
    """
    title = name.replace("_", " ")
    if value is None or value == [] or value == {}:
        return [Block("text", title, text="nothing to show")]
    if is_reliability(value):
        return [_reliability_block(name, title, model, {"measured": value})]
    if isinstance(value, Mapping):
        if all(is_reliability(bins) for bins in value.values()):
            return [_reliability_block(name, title, model, value)]
        if {"labels", "counts"} <= set(value):
            return [_confusion_block(title, value)]
        if is_lines(value):
            return [_lines_block(name, title, model, value)]
        if all(is_plain(one) for one in value.values()):
            rows = [[str(key).replace("_", " "), format_plain(one)] for key, one in value.items()]
            return [Block("pairs", title, rows=rows)]
        return [block for key, one in value.items() for block in make_blocks(f"{name}: {key}", one, model)]
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value):
        is_curve = all(set(one) == CURVE_KEYS for one in value)
        return [] if is_curve else [_table_block(title, value)]  # the results hold the points of curves
    return [Block("text", title, text=format_plain(value))]


def _reliability_block(name: str, title: str, model: str, bins: Mapping[str, Sequence[Mapping[str, Any]]]) -> Block:
    """The diagram of a model; beneath it how many items each series counts."""
    counts = ", ".join(f"{series} n = {sum(int(one['n']) for one in of):,}" for series, of in bins.items())
    svg = draw_reliability(f"{model}-{name}", f"{title}\n{model}" if model else title, bins)
    return Block("chart", title, svg=svg, note=f"Bars: 95 % Wilson intervals of each bin; {counts}.")


def is_reliability(value: Any) -> bool:
    """Whether the value is a list of bins of a reliability diagram."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(one, Mapping) and set(one) >= RELIABILITY_KEYS for one in value)


def is_lines(value: Mapping[str, Any]) -> bool:
    """Whether the mapping holds two or more equally long lists of numbers, and beside them plain values alone."""
    lists = [one for one in value.values() if not is_plain(one)]
    are_numbers = all(
        isinstance(one, Sequence) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in one)
        for one in lists
    )
    return len(lists) > 1 and are_numbers and len({len(one) for one in lists}) == 1


def is_plain(value: Any) -> bool:
    """Whether the value is one number, word or nothing."""
    return value is None or isinstance(value, (str, int, float, bool))


def format_plain(value: Any) -> str:
    """The value as a reader's text: four digits after the point at most, lists with commas, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.4f}".rstrip("0").rstrip(".")
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(is_plain(one) for one in value):
        return ", ".join(format_plain(one) for one in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _lines_block(name: str, title: str, model: str, value: Mapping[str, Any]) -> Block:
    """Lines over the first of the lists; plain values stand beneath."""
    lists = {key: one for key, one in value.items() if not is_plain(one)}
    x_name, *others = lists
    series = {key: lists[key] for key in others}
    svg = draw_lines(f"{model}-{name}", f"{title}\n{model}" if model else title, x_name, lists[x_name], series)
    plain = [f"{key.replace('_', ' ')}: {format_plain(one)}" for key, one in value.items() if is_plain(one)]
    return Block("chart", title, svg=svg, note="; ".join(plain))


def _table_block(title: str, rows: Sequence[Mapping[str, Any]]) -> Block:
    """The rows as a table, columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[format_plain(row.get(column)) for column in columns] for row in rows[:MAX_ROWS]]
    note = f"{len(rows) - MAX_ROWS:,} more rows are not shown." if len(rows) > MAX_ROWS else ""
    return Block("table", title, header=[column.replace("_", " ") for column in columns], rows=shown, note=note)


def _confusion_block(title: str, matrix: Mapping[str, Any]) -> Block:
    """The matrix with every row shaded by its shares."""
    labels, counts = [str(label) for label in matrix["labels"]], matrix["counts"]
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        shape = f"{len(counts)} x {sorted({len(row) for row in counts})}"
        raise ValueError(
            f"confusion matrix {title!r} has {len(labels)} labels and counts of {shape}; it must be square, a row and "
            "a column for each label. Give the counts by true label, then by predicted label."
        )
    rows: list[list[Any]] = []
    for place, (label, row) in enumerate(zip(labels, counts, strict=True)):
        total = sum(row)
        cells = [Cell(int(c), round(c / total, 3) if total else 0.0, place == k) for k, c in enumerate(row)]
        rows.append([label, int(total), *cells])
    note = (
        f"Rows: {matrix.get('rows', 'truth')}; columns: {matrix.get('columns', 'prediction')}; shade: share of the row."
    )
    return Block("confusion", title, header=labels, rows=rows, note=note)
