"""Results as the page shows them: a figure for each metric, its rows on one axis, its protocol beneath."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regionmed_clip.eval.metric_titles import LOWER_IS_BETTER, metric_place, metric_title
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import is_difference, model_names, stratum_title

NUM_TICKS = 3  # about so many steps has an axis; more would not fit a narrow one
MIN_SPAN = 0.004  # of an axis: values are told to three decimals
SHOWN_ELSEWHERE = {"skipped", "lower_is_better", "p_value"}  # of a protocol: on the page they stand at the figure
Part = tuple[str, str | None, str | None]  # what rows are shown together: name of the data, source, stratum


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from `low` to `high`, with ticks at round values; 0 is always on it."""

    low: float
    high: float
    ticks: list[float]

    def percent(self, value: float) -> float:
        """Where the value lies, in percent of the axis, held inside it."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)

    def label(self, tick: float) -> str:
        """The tick as text, all ticks with as many digits as the one that needs most."""
        digits = max(len(f"{one:.6f}".rstrip("0").partition(".")[2]) for one in self.ticks)
        return f"{tick:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One result on an axis: marks in percent of the axis, and everything as text beside them.

    `slot` numbers the model's colour; `skipped` is the reason where there is no value.
    """

    model: str
    slot: int
    result: Result
    axis: Axis | None

    @property
    def is_drawn(self) -> bool:
        """Whether there is a value."""
        return self.result.value is not None

    @property
    def value_text(self) -> str:
        """The value, with its sign where it is a difference."""
        return format_number(self.result.value, is_signed=is_difference(self.model))

    @property
    def interval_text(self) -> str:
        """The interval in brackets."""
        is_signed = is_difference(self.model)
        return f"[{format_number(self.result.low, is_signed)}, {format_number(self.result.high, is_signed)}]"

    @property
    def marks(self) -> dict[str, float]:
        """Percents of the axis: value, low, high, and zero and chance where they are to be drawn."""
        if self.axis is None or not self.is_drawn:
            return {}
        marks = {name: self.axis.percent(getattr(self.result, name)) for name in ("value", "low", "high")}
        chance = self.result.protocol.get("chance")
        if isinstance(chance, (int, float)) and not is_difference(self.model):
            marks["chance"] = self.axis.percent(float(chance))
        if self.axis.low < 0:
            marks["zero"] = self.axis.percent(0.0)
        return marks

    @property
    def verdict(self) -> str:
        """Of a difference: "better", "worse" or "unclear" (the interval holds 0); else ""."""
        if not is_difference(self.model) or not self.is_drawn:
            return ""
        if self.result.low <= 0 <= self.result.high:
            return "unclear"
        return "better" if (self.result.low > 0) != is_lower_better(self.result) else "worse"

    @property
    def p_text(self) -> str:
        """The p of a difference as "p < 0.001" or "p = 0.042"; "" where the protocol has none."""
        p = self.result.protocol.get("p_value")
        if not isinstance(p, (int, float)):
            return ""
        return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


@dataclass
class Panel:
    """The rows of one part of the data: models on one axis, their differences on another."""

    title: str
    n: int
    rows: list[Row] = field(default_factory=list)
    differences: list[Row] = field(default_factory=list)
    axis: Axis | None = None
    difference_axis: Axis | None = None
    skipped: str = ""

    @property
    def chance(self) -> str:
        """The chance that the dotted lines stand for, "" where none is known."""
        chances = {row.result.protocol.get("chance") for row in self.rows if "chance" in row.marks}
        return ", ".join(format_number(chance) for chance in sorted(chances))


@dataclass
class Figure:
    """A metric: the panels of whole splits, those of their parts, and the protocol behind all of them."""

    anchor: str
    metric: str
    title: str
    is_lower_better: bool
    whole: list[Panel]
    parts: list[Panel]
    protocol: list[tuple[str, Any]]
    varying: list[tuple[str, list[tuple[Any, list[str]]]]]

    @property
    def is_skipped(self) -> bool:
        """Whether no model has a value on any part of the data."""
        return all(panel.skipped for panel in [*self.whole, *self.parts])


def is_lower_better(result: Result) -> bool:
    """Whether a lower value is better, as the protocol or the list of such metrics says."""
    return bool(result.protocol.get("lower_is_better")) or result.metric in LOWER_IS_BETTER


def format_number(value: float, is_signed: bool = False) -> str:
    """Three decimals, fewer from 100 on."""
    return f"{value:{'+' if is_signed else ''}.{3 if abs(value) < 100 else 1}f}"


def nice_axis(values: Sequence[float], *, is_share: bool) -> Axis:
    """The axis for the values: 0 to 1 for shares, else from and to round numbers around all of them and 0."""
    if is_share:
        return Axis(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])
    low, high = min(0.0, *values), max(0.0, *values)
    span = max(high - low, MIN_SPAN)
    power = 10.0 ** math.floor(math.log10(span / NUM_TICKS))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * NUM_TICKS >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    ticks = [round(place * step, 10) for place in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks)


def build_figures(results: Sequence[Result], slots: Mapping[str, int]) -> list[Figure]:
    """The figures of one task's results, metrics in table order; `slots`: model -> number of its colour."""
    by_metric: dict[str, list[Result]] = {}
    for result in results:
        by_metric.setdefault(result.metric, []).append(result)
    metrics = sorted(by_metric, key=metric_order)
    return [_figure(by_metric[metric], slots) for metric in metrics]


def slug(text: str) -> str:
    """The text as an id: letters, digits and dashes, told apart from others by a hash where something was lost."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain if re.fullmatch(r"[a-z0-9_ @-]*", text) else f"{plain}-{zlib.crc32(text.encode()):08x}"


def metric_order(metric: str) -> tuple[int, str, float, str]:
    """Metrics in table order, others by name and, after it, by the number behind their @."""
    base, _, number = metric.partition("@")
    is_number = re.fullmatch(r"-?\d+(\.\d+)?", number) is not None
    return metric_place(metric), base, float(number) if is_number else 0.0, metric


def figure_title(metric: str) -> str:
    """The metric's title without its arrow, or its name in words."""
    title = metric_title(metric)
    return metric.replace("_", " ") if title == metric else title.removesuffix(" ↓")


def _figure(results: Sequence[Result], slots: Mapping[str, int]) -> Figure:
    """The figure of one metric."""
    first = results[0]
    has_several = len({(r.data_revision, r.protocol["split"]) for r in results}) > 1
    by_part: dict[Part, list[Result]] = {}
    for result in results:
        name = f"{result.data_revision}, {result.protocol['split']}" if has_several else ""
        by_part.setdefault((name, result.source, result.stratum), []).append(result)
    parts = sorted(by_part, key=lambda part: (part[0], part[1] or "", part[2] or ""))
    shared = _axes(results)
    panels = {part: _panel(part, by_part[part], slots, shared) for part in parts}
    depths = {part: (part[1] is not None) + (part[2] is not None) for part in parts}
    first_depth = min(depths.values())  # a figure may have no whole split: some are of sources alone
    whole = [panels[part] for part in parts if depths[part] == first_depth]
    rest = [panels[part] for part in parts if depths[part] > first_depth]
    common, varying = split_protocol(results)
    return Figure(
        anchor=slug(f"{first.task} {first.metric}"),
        metric=first.metric,
        title=figure_title(first.metric),
        is_lower_better=any(map(is_lower_better, results)),
        whole=whole,
        parts=rest,
        protocol=common,
        varying=varying,
    )


def _axes(results: Sequence[Result]) -> tuple[Axis | None, Axis | None]:
    """The axis of the values and that of the differences, equal for all panels of a figure so that they compare."""
    axes: list[Axis | None] = []
    for wants_difference in (False, True):
        drawn = [r for r in results if r.value is not None and is_difference(r.model) == wants_difference]
        values = [float(x) for r in drawn for x in (r.value, r.low, r.high) if x is not None]
        is_share = not wants_difference and all(0 <= value <= 1 for value in values)
        axes.append(nice_axis(values, is_share=is_share) if values else None)
    return axes[0], axes[1]


def _panel(
    part: Part, results: Sequence[Result], slots: Mapping[str, int], axes: tuple[Axis | None, Axis | None]
) -> Panel:
    """The panel of one part of the data."""
    name, source, stratum = part
    data = "" if (source, stratum) == (None, None) else stratum_title(source, stratum)
    title = ", ".join(filter(None, [name, data])) or "whole split"
    panel = Panel(title, n=max(r.n for r in results), axis=axes[0], difference_axis=axes[1])
    order = model_names(results)
    for result in sorted(results, key=lambda r: order.index(r.model)):
        is_extra = is_difference(result.model)
        row = Row(result.model, slots[result.model], result, axes[is_extra])
        (panel.differences if is_extra else panel.rows).append(row)
    reasons = [r.protocol["skipped"] for r in results if r.value is None]
    if len(reasons) == len(results):
        panel.skipped, panel.rows, panel.differences = reasons[0], [], []
    return panel


def split_protocol(
    results: Sequence[Result],
) -> tuple[list[tuple[str, Any]], list[tuple[str, list[tuple[Any, list[str]]]]]]:
    """(entries that all results share, entries that vary: key, then every value with the rows that have it)."""
    keys = sorted({key for r in results for key in r.protocol} - SHOWN_ELSEWHERE)
    common: list[tuple[str, Any]] = []
    varying: list[tuple[str, list[tuple[Any, list[str]]]]] = []
    for key in keys:
        groups: dict[str, tuple[Any, list[Result]]] = {}
        for result in results:
            value = result.protocol.get(key)
            groups.setdefault(json.dumps(value, sort_keys=True, default=str), (value, []))[1].append(result)
        if len(groups) == 1:
            common.append((key, results[0].protocol.get(key)))
        else:
            varying.append((key, [(value, _row_names(rows, results)) for value, rows in groups.values()]))
    return common, varying


def _row_names(rows: Sequence[Result], of: Sequence[Result]) -> list[str]:
    """Names of the rows, short: models alone where they have all their data, data alone where all models have it."""
    pairs = [(r.model, stratum_title(r.source, r.stratum)) for r in rows]
    everything = [(r.model, stratum_title(r.source, r.stratum)) for r in of]
    for place in (0, 1):
        names = list(dict.fromkeys(pair[place] for pair in pairs))
        if {pair for pair in everything if pair[place] in names} == set(pairs):
            return names
    return [f"{model} ({data})" for model, data in dict.fromkeys(pairs)]
