"""Charts of the page as inline SVG: their letters stay text, their colours follow the page's light and dark."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regionmed_clip.eval.intervals import wilson_interval
from regionmed_clip.eval.report_figures import figure_title, is_lower_better, slug
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import is_difference, model_names

INK, MUTED, GRID = "#fe0001", "#fe0002", "#fe0003"  # stand-ins: `_themed` makes them variables of the page's CSS
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_MODEL_COLOUR = re.compile(r"#fe01([0-9a-f]{2})")
NUM_MODEL_COLOURS = 8
MARKERS = "osD^vPXh"  # so that models differ without colour too
CURVE_LABELS = {"probe": "labelled examples of each class"}  # elsewhere the x of the title
SIZE_INCHES = (4.2, 3.1)  # fits a phone without being scaled down
SERIES_SLOT = 3  # colours of what is not a model begin here: the first ones are taken for models
LEGEND_LINE_INCHES = 0.22
TITLE_CHARACTERS = 46  # of a line
PAGE_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "regionmed-clip",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def model_colour(slot: int) -> str:
    """The stand-in for the colour of the model of that number."""
    return f"#fe01{slot % NUM_MODEL_COLOURS:02x}"


class Chart:
    """A figure while it is drawn, and afterwards its `svg`."""

    def __init__(self, figure: Figure):
        self.figure = figure
        self.svg = Markup("")


@contextmanager
def chart(name: str, label: str, size_inches: tuple[float, float] = SIZE_INCHES) -> Iterator[Chart]:
    """A chart to draw in; when the block ends well its `svg` is the inline picture.

    Args:
        name: goes before every id in the SVG, so that charts of one page do not clash.
        label: what the chart shows, for those who do not see it.
    """
    with matplotlib.rc_context(PAGE_STYLE):
        drawn = Chart(Figure(figsize=size_inches, layout="constrained"))
        yield drawn
        buffer = io.BytesIO()
        FigureCanvasSVG(drawn.figure).print_svg(buffer, metadata={"Date": None})
    drawn.svg = _inline(buffer.getvalue(), slug(name), label)


def _inline(data: bytes, name: str, label: str) -> Markup:
    """The SVG without prolog, namespaces, metadata and style sheet, its ids made unique, its colours variables."""
    root = ElementTree.fromstring(data)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            short = key.rpartition("}")[2]
            if short == "id":
                value = f"{name}-{value}"
            elif short == "href":
                value = value.replace("#", f"#{name}-")
            value = re.sub(r"url\(#", f"url(#{name}-", value)
            element.set(short, value if element.tag == "text" and short == "id" else _themed(value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # serialised by us, so escaped


def _themed(value: str) -> str:
    """The attribute with the stand-ins for colours replaced by variables, and our letters by the page's."""
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, variable)
    value = _MODEL_COLOUR.sub(lambda match: f"var(--model-{int(match.group(1), 16)})", value)
    return value.replace("'DejaVu Sans'", "inherit")


def _wrapped(title: str) -> str:
    """The title in lines that fit the chart."""
    return "\n".join(textwrap.fill(line, TITLE_CHARACTERS) for line in title.splitlines())


def draw_reliability(name: str, title: str, bins_by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """A reliability diagram: accuracy by confidence with 95 % Wilson intervals, the diagonal, and how many items.

    Args:
        bins_by_name: "before", "after": bins as `metrics.calibration.reliability_bins` gives them; empty ones are left
            out.
    """
    size = (SIZE_INCHES[0], 4.0 + LEGEND_LINE_INCHES * (1 + len(bins_by_name)))
    with chart(f"reliability-{name}", f"Reliability diagram: {title}", size) as drawn:
        upper, lower = drawn.figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfect")
        for place, (series, bins) in enumerate(bins_by_name.items()):
            _draw_bins(upper, lower, series, bins, place, len(bins_by_name))
        upper.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share correct", title=_wrapped(title))
        drawn.figure.legend(fontsize=8.5, loc="outside lower left")
        lower.set(xlabel="confidence", ylabel="items")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True, prune="lower"))
    return drawn.svg


def _draw_bins(
    upper: Axes, lower: Axes, series: str, bins: Sequence[Mapping[str, Any]], place: int, num_series: int
) -> None:
    """None; the points of one series with their intervals, and its counts below, beside those of other series."""
    filled = [one for one in bins if one["n"]]
    if not filled:
        return
    x = [float(one["confidence"]) for one in filled]
    bounds = [wilson_interval(round(one["accuracy"] * one["n"]), one["n"]) for one in filled]
    low, high = zip(*bounds, strict=True)
    colour, marker = model_colour(SERIES_SLOT + place), MARKERS[place % len(MARKERS)]
    upper.vlines(x, low, high, color=colour, linewidth=1.6, alpha=0.55)
    accuracies = [float(one["accuracy"]) for one in filled]
    upper.plot(x, accuracies, color=colour, linewidth=1.4, marker=marker, markersize=4.5, label=series)
    widths = [(one["high"] - one["low"]) / num_series for one in filled]
    starts = [one["low"] + place * width for one, width in zip(filled, widths, strict=True)]
    lower.bar(starts, [one["n"] for one in filled], widths, align="edge", color=colour, alpha=0.8)


def curve_families(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Metric name without its @ -> whole-split results of `name@strength` at two strengths or more, and of `name`.

    Recalls are left out: k is no strength but a cut of one ranking, shown in rows.
    """
    families: dict[str, list[Result]] = {}
    for result in results:
        is_whole = result.source is None and result.stratum is None and not is_difference(result.model)
        if is_whole and result.value is not None and "recall" not in result.metric:
            families.setdefault(result.metric.partition("@")[0], []).append(result)
    return {base: rows for base, rows in families.items() if len({_strength(row) for row in rows} - {math.inf}) > 1}


def _strength(result: Result) -> float:
    """The number behind the @ of the metric; infinity, as the end of its curve, where there is none."""
    number = result.metric.partition("@")[2]
    return float(number) if _NUMBER.fullmatch(number) else math.inf


def family_title(base: str, results: Sequence[Result]) -> str:
    """The title that all points of a curve share but for their number, with x in its place: "noise of x %"."""
    titles = set()
    for metric in {result.metric for result in results if "@" in result.metric}:
        number = metric.partition("@")[2]
        titles.add(re.sub(rf"(?<![\d.]){re.escape(number)}(?![\d.])", "x", figure_title(metric), count=1))
    return titles.pop() if len(titles) == 1 else f"{figure_title(base)}@x"


def curve_note(results: Sequence[Result]) -> str:
    """What stands beneath a curve: its bars, how many queries its points have, and which way is better."""
    low, high = min(r.n for r in results), max(r.n for r in results)
    count = f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"
    return f"Bars: 95 % intervals; {count}" + ("; lower is better" if any(map(is_lower_better, results)) else "")


def draw_curve(base: str, results: Sequence[Result], slots: Mapping[str, int]) -> Markup:
    """A metric by strength, or by shots: a line for each model with its 95 % intervals.

    Args:
        results: of one family of `curve_families`.
        slots: model -> number of its colour.
    """
    title, models = family_title(base, results), model_names(results)
    size = (SIZE_INCHES[0], SIZE_INCHES[1] + LEGEND_LINE_INCHES * -(-len(models) // 2))
    with chart(f"curve-{base}", f"Curve: {title}", size) as drawn:
        axes = drawn.figure.subplots()
        ticks = sorted({_strength(result) for result in results})
        for model, shift in zip(models, np.linspace(-0.05, 0.05, len(models) + 2)[1:-1], strict=True):
            rows = sorted((_strength(r), r.value, r.low, r.high) for r in results if r.model == model)
            _, y, low, high = np.array(rows, dtype=float).T
            colour, marker = model_colour(slots[model]), MARKERS[slots[model] % len(MARKERS)]
            axes.errorbar(
                [ticks.index(row[0]) + shift for row in rows],  # evenly spaced: strengths are steps, no measure
                y,
                yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.8,
                elinewidth=1,
                capsize=3,
                label=model,
            )
        axes.set_xticks(range(len(ticks)), ["all" if tick == math.inf else f"{tick:g}" for tick in ticks])
        x_label = CURVE_LABELS.get(results[0].task, "x")
        axes.set(title=_wrapped(title), xlabel=x_label, xmargin=0.08)
        drawn.figure.legend(fontsize=8.5, loc="outside lower left", ncols=2)
    return drawn.svg


def draw_lines(name: str, title: str, x_name: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> Markup:
    """Lines over the numbers `x`, each with its name."""
    with chart(f"lines-{name}", f"Curve: {title}") as drawn:
        axes = drawn.figure.subplots()
        for slot, (label, y) in enumerate(series.items()):
            axes.plot(x, y, color=model_colour(SERIES_SLOT + slot), linewidth=1.8, label=label.replace("_", " "))
        axes.set(title=_wrapped(title), xlabel=x_name.replace("_", " "))
        axes.legend(fontsize=8.5, loc="best")
    return drawn.svg
