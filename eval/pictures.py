"""Charts of a run: loss curves by term and stage, and results with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.style import MODEL_COLOURS, SERIES, STAGE_SHADES, drawing, head
from regionmed_clip.eval.tables import METRIC_ORDER, is_difference, metric_title, model_names, stratum_title
from regionmed_clip.processing.corpus.plot_style import GRID, MUTED, TEXT

TERM_TITLES = {"loss": "total loss", "lr": "learning rate", "samples_per_s": "samples per second"}
SMOOTHING_SHARE = 0.05  # the thick line averages over this share of all steps, within a stage


def draw_loss_curves(path: Path, rows: Sequence[Mapping[str, Any]], note: str = "") -> bool:
    """Whether there was anything to draw; a panel for the total loss, each term, learning rate and speed, by step.

    Args:
        rows: of metrics.jsonl; a column that a stage does not have is a gap in its curve.
    """
    columns = _curve_columns(rows)
    if not columns:
        return False
    num_rows = -(-len(columns) // 2)
    with drawing(path, (12, 0.9 + 2.7 * num_rows)) as figure:
        grid = figure.subplots(num_rows, 2, squeeze=False, sharex=True)
        spans = _stage_spans(rows)
        for place, column in enumerate(columns):
            _draw_curve(grid.flat[place], rows, column, SERIES[place % len(SERIES)], spans, has_names=place < 2)
        for axes in grid.flat[len(columns) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        head(figure, "Training, by term and stage", note)
    return True


def _curve_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that have numbers: total loss, its terms by name, learning rate, speed."""
    numeric = {
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    terms = sorted(key for key in numeric if key.startswith("loss_"))
    return [key for key in ("loss", *terms, "lr", "samples_per_s") if key in numeric]


def _stage_spans(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(stage, first step, last step) of every run of rows of one stage."""
    spans: list[tuple[str, float, float]] = []
    for row in rows:
        stage, step = str(row.get("stage", "")), float(row["step"])
        if spans and spans[-1][0] == stage:
            spans[-1] = (stage, spans[-1][1], step)
        else:
            spans.append((stage, step, step))
    return spans


def _draw_curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    colour: str,
    spans: Sequence[tuple[str, float, float]],
    *,
    has_names: bool,
) -> None:
    """None; one panel: raw values thin, smoothed thick, stages shaded and, on the top row, named."""
    steps = np.array([float(row["step"]) for row in rows])
    values = np.array([float(row[column]) if row.get(column) is not None else np.nan for row in rows])
    for number, (stage, first, last) in enumerate(spans):
        axes.axvspan(first - 0.5, last + 0.5, color=STAGE_SHADES[number % len(STAGE_SHADES)], linewidth=0, zorder=0)
        if has_names and stage:
            axes.text(
                (first + last) / 2,
                0.97,
                stage,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=8.5,
                color=MUTED,
                fontweight="bold",
            )
    axes.plot(steps, values, color=colour, linewidth=2 if column == "lr" else 0.7, alpha=1 if column == "lr" else 0.4)
    if column != "lr":
        starts = [int(np.searchsorted(steps, first)) for _, first, _ in spans]
        axes.plot(steps, _smoothed(values, starts), color=colour, linewidth=2)
    axes.set_title(TERM_TITLES.get(column, column.removeprefix("loss_").replace("_", "-") + " loss"), loc="left")
    axes.set_xlim(steps.min() - 0.5, steps.max() + 0.5)
    low, high = np.nanmin(values), np.nanmax(values)
    margin = (high - low or abs(high) or 1.0) * 0.08
    axes.set_ylim(low - margin, high + (2.5 if has_names else 1) * margin)


def _smoothed(values: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Centred moving mean of (S,) values; no window reaches over a stage's start (`starts`, rows), gaps stay gaps."""
    half = max(1, round(len(values) * SMOOTHING_SHARE / 2))
    smooth = np.full(len(values), np.nan)
    for first, end in zip(starts, [*starts[1:], len(values)], strict=True):
        for i in range(first, end):
            window = values[max(first, i - half) : min(end, i + half + 1)]
            if np.isfinite(values[i]):
                smooth[i] = window[np.isfinite(window)].mean()
    return smooth


def draw_results(path: Path, results: Sequence[Result], note: str = "") -> bool:
    """Whether there was anything to draw; bars with intervals: the whole split, then the region figures by data."""
    shown = [r for r in results if r.value is not None and not is_difference(r.model) and "cosine" not in r.metric]
    whole = [r for r in shown if r.source is None]
    parts = [r for r in shown if r.source is not None and r.metric == "region_to_text_accuracy"]
    parts += [r for r in shown if r.source is not None and r.metric == "region_balanced_accuracy"]
    panels = [panel for panel in (whole, parts) if panel]
    if not panels:
        return False
    heights = [len({_row(r) for r in panel}) for panel in panels]
    models = [name for name in model_names(results) if not is_difference(name)]
    colours = {name: MODEL_COLOURS.get(name, SERIES[i % len(SERIES)]) for i, name in enumerate(models)}
    with drawing(path, (11, 1.6 + 0.52 * sum(heights))) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
        for axes, panel in zip(grid, panels, strict=True):
            _draw_bars(axes, panel, models, colours, is_whole=panel is whole)
        handles = [Patch(color=colours[name], label=name) for name in models]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(models), fontsize=9)
        head(figure, "Results with 95 % intervals", note)
    return True


def _row(result: Result) -> tuple[str, str | None, str | None]:
    """What identifies a row of bars."""
    return result.metric, result.source, result.stratum


def _draw_bars(
    axes: Axes, results: Sequence[Result], models: Sequence[str], colours: Mapping[str, str], *, is_whole: bool
) -> None:
    """None; a group of bars for every row, a bar for every model that has the figure, a tick where chance is stated."""
    rows = sorted(dict.fromkeys(map(_row, results)), key=_bar_order)
    cells = {(*_row(r), r.model): r for r in results}
    height = 0.8 / len(models)
    for place, row in enumerate(rows):
        of_row = [cells.get((*row, model)) for model in models]
        present = [r for r in of_row if r is not None]
        for slot, result in enumerate(present):
            y = place + height * (slot - (len(present) - 1) / 2)
            axes.barh(y, result.value, height * 0.86, color=colours[result.model])
            axes.plot([result.low, result.high], [y, y], color=TEXT, linewidth=1.3, solid_capstyle="butt")
            axes.text(min(result.high, 1) + 0.012, y, f"{result.value:.3f}", va="center", fontsize=7.5, color=TEXT)
        chances = {r.protocol["chance"] for r in present if r.protocol.get("chance") is not None}
        for chance in chances:
            axes.plot([chance, chance], [place - 0.44, place + 0.44], color=MUTED, linestyle=":", linewidth=1.4)
    names = [metric_title(m) if is_whole else f"{_short(m)}, {stratum_title(s, t)}" for m, s, t in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", colors=TEXT, length=0)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, 1.09)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID)
    axes.set_title("whole split" if is_whole else "regions by data (dotted: chance)", loc="left")


def _short(metric: str) -> str:
    """A short name of the two region accuracies."""
    return "label" if "balanced" in metric else "region → text"


def _bar_order(row: tuple[str, str | None, str | None]) -> tuple:
    """Metrics in table order, then data by name."""
    metric, source, stratum = row
    place = METRIC_ORDER.index(metric) if metric in METRIC_ORDER else len(METRIC_ORDER)
    return place, source or "", stratum or ""
