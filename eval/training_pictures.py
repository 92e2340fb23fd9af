"""Charts of a run by step: losses, what else the log knows of the training, and the figures of its validations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from regionmed_clip.eval.metric_titles import metric_place, metric_title
from regionmed_clip.eval.style import SERIES, STAGE_SHADES, drawing, head
from regionmed_clip.processing.corpus.plot_style import MUTED

SMOOTHING_SHARE = 0.05  # the thick line averages over this share of all steps, within a stage
MOST_NARROW_STAGE = 0.06  # share of the axis below which a stage's name does not fit on its shade
Span = tuple[str, float, float]  # a stage, its first and its last step
ColumnRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """A chart of several columns of the log over the steps, each with its name in the legend."""

    title: str
    columns: Mapping[str, str]  # column: name
    is_smoothed: bool = False
    is_log: bool = False
    is_share: bool = False
    unit: str = ""


def draw_loss_curves(path: Path, rows: ColumnRows, note: str = "") -> bool:
    """Whether there was anything to draw; a panel for the total loss and one for each of its terms, by step.

    Args:
        rows: of metrics.jsonl; a column that a stage does not have is a gap in its curve.
    """
    terms = [column for column in _numeric_columns(rows) if column.startswith("loss_")]
    panels = [Panel("total loss", {"loss": ""}, is_smoothed=True)]
    panels += [Panel(f"{_words(term, 'loss_')} loss", {term: ""}, is_smoothed=True) for term in terms]
    return _draw_panels(path, rows, panels, "Training: losses by term and stage", note)


def draw_training_state(path: Path, rows: ColumnRows, note: str = "") -> bool:
    """Whether there was anything to draw; temperatures, gate and alpha, gradients, learning rates, pairs and speed.

    Args:
        rows: of metrics.jsonl.
    """
    present = _numeric_columns(rows)

    def family(prefix: str) -> dict[str, str]:
        return {column: _words(column, prefix) for column in present if column.startswith(prefix)}

    rates = family("lr_")
    gradients = {"grad_norm": "all", **family("grad_norm_")}
    panels = [
        Panel("inverse temperatures", family("logit_scale_")),
        Panel("biases", family("logit_bias_")),
        Panel("gate of the prompter, mean over regions", {"gate_mean": ""}),
        Panel("fusion alpha", {"fusion_alpha": ""}),
        Panel("gradient norms before clipping", gradients, is_smoothed=True, is_log=True),
        Panel("learning rates" if rates else "learning rate", rates or {"lr": ""}, is_log=bool(rates)),
        Panel("masked pairs", family("num_masked_"), is_smoothed=True),
        Panel("samples per second", {"samples_per_s": ""}, is_smoothed=True),
        Panel("share of time waiting for data", {"data_wait_share": ""}, is_smoothed=True, is_share=True),
        Panel("most memory held by tensors", {"peak_memory_mib": ""}, unit="MiB"),
    ]
    return _draw_panels(path, rows, panels, "Training: what moved beside the losses", note)


def draw_validation(path: Path, rows: ColumnRows, note: str = "") -> bool:
    """Whether there was anything to draw; every figure of the validations by step, with its 95 % interval.

    Args:
        rows: of validation.jsonl.
    """
    metrics = sorted({row["metric"] for row in rows}, key=_metric_place)
    groups: dict[str, list[str]] = {}  # those of one kind share a panel
    for metric in metrics:
        groups.setdefault(metric.partition("@")[0], []).append(metric)
    if not groups:
        return False
    spans = _stage_spans(rows)
    with drawing(path, _size(len(groups))) as figure:
        for axes, members in zip(_grid(figure, len(groups), spans), groups.values()):
            for colour, metric in zip(SERIES, members):
                _draw_figure(axes, [row for row in rows if row["metric"] == metric], colour, metric)
            _finish(axes, _group_title(members), has_legend=len(members) > 1)
        head(figure, "Validation, with 95 % intervals", note)
    return True


def _draw_figure(axes: Axes, rows: ColumnRows, colour: str, metric: str) -> None:
    """None; one figure over the steps at which it was taken, its intervals as a band."""
    steps = [row["step"] for row in rows]
    label = f"@{metric.partition('@')[2]}" if "@" in metric else ""
    axes.plot(steps, [row["value"] for row in rows], color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
    if len(rows) == 1:
        axes.vlines(steps, rows[0]["low"], rows[0]["high"], color=colour, linewidth=1.3, alpha=0.6)
    else:
        axes.fill_between(
            steps, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.18, linewidth=0
        )


def _group_title(metrics: Sequence[str]) -> str:
    """The title of a metric, or of several that differ in what follows the @."""
    if len(metrics) == 1:
        return metric_title(metrics[0])
    name = metrics[0].partition("@")[0]
    return metric_title(f"{name}@1").replace("@1", "@k") if name.endswith("_recall") else name.replace("_", " ")


def _metric_place(metric: str) -> tuple[int, str]:
    """Metrics in table order, unknown ones last by name."""
    return metric_place(metric), metric


def _words(column: str, prefix: str) -> str:
    return column.removeprefix(prefix).replace("_", "-")


def _numeric_columns(rows: ColumnRows) -> list[str]:
    """The columns that hold numbers in at least one row, by name."""
    return sorted(
        {
            key
            for row in rows
            for key, value in row.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
    )


def _draw_panels(path: Path, rows: ColumnRows, panels: Sequence[Panel], title: str, note: str) -> bool:
    """Whether there was anything to draw; the panels that have any of their columns, two in a line."""
    present = set(_numeric_columns(rows))
    shown = [panel for panel in panels if not present.isdisjoint(panel.columns)]
    if not shown:
        return False
    spans = _stage_spans(rows)
    with drawing(path, _size(len(shown))) as figure:
        for place, (axes, panel) in enumerate(zip(_grid(figure, len(shown), spans), shown)):
            columns = {column: name for column, name in panel.columns.items() if column in present}
            for number, (column, name) in enumerate(columns.items()):
                colour = SERIES[(number if len(columns) > 1 else place) % len(SERIES)]
                _draw_curve(axes, rows, panel, column, (colour, name))
            if panel.is_log:
                axes.set_yscale("log")
            if panel.is_share:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            _finish(axes, panel.title + (f", {panel.unit}" if panel.unit else ""), has_legend=len(columns) > 1)
        head(figure, title, note)
    return True


def _draw_curve(axes: Axes, rows: ColumnRows, panel: Panel, column: str, look: tuple[str, str]) -> None:
    """None; one column stage by stage: where it is smoothed, the raw values thin and their mean thick.

    `look` is (colour, name).
    """
    colour, name = look
    half = max(1, round(len(rows) * SMOOTHING_SHARE / 2))
    for _, of_stage in groupby(rows, key=lambda row: row.get("stage")):
        part = list(of_stage)
        steps = np.array([float(row["step"]) for row in part])
        values = np.array([np.nan if row.get(column) is None else float(row[column]) for row in part])
        if panel.is_log:
            values[values <= 0] = np.nan
        if not np.isfinite(values).any():
            continue
        if panel.is_smoothed:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            values = _smoothed(values, half)
        axes.plot(steps, values, color=colour, linewidth=2, label=name, marker="o" if len(part) == 1 else None)
        name = "_nolegend_"  # one entry for all stages


def _smoothed(values: np.ndarray, half: int) -> np.ndarray:
    """Mean of (S,) values over the `half` neighbours on either side that are numbers; gaps stay gaps."""
    is_number = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    sums = np.convolve(np.where(is_number, values, 0.0), kernel)[half : half + len(values)]
    numbers = np.convolve(is_number.astype(float), kernel)[half : half + len(values)]
    return np.where(is_number, sums / np.maximum(numbers, 1.0), np.nan)


def _size(num_panels: int) -> tuple[float, float]:
    """Width and height in inches of a figure of so many panels, two in a line."""
    return 12.0, 1.1 + 2.7 * -(-num_panels // 2)


def _grid(figure: Figure, num_panels: int, spans: Sequence[Span]) -> list[Axes]:
    """The panels, two in a line, with stages shaded; one that is left over has its line to itself."""
    num_lines = -(-num_panels // 2)
    places = figure.add_gridspec(num_lines, 2)
    panels: list[Axes] = []
    for number in range(num_panels):
        line, side = divmod(number, 2)
        is_alone = number == num_panels - 1 and side == 0
        axes = figure.add_subplot(places[line, :] if is_alone else places[line, side])
        _shade_stages(axes, spans, has_names=line == 0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if line == num_lines - 1:
            axes.set_xlabel("step")
        else:
            axes.tick_params(labelbottom=False)
        panels.append(axes)
    return panels


def _finish(axes: Axes, title: str, *, has_legend: bool) -> None:
    axes.set_title(title, loc="left", pad=20 if axes.texts else 6)  # above the names of the stages
    axes.margins(y=0.12)
    if has_legend:
        axes.legend(loc="best", fontsize=7.5, ncols=2, handlelength=1.4, labelcolor=MUTED)


def _stage_spans(rows: ColumnRows) -> list[Span]:
    """Every run of rows of one stage."""
    spans: list[Span] = []
    for row in rows:
        stage, step = str(row.get("stage", "")), float(row["step"])
        if spans and spans[-1][0] == stage:
            spans[-1] = (stage, spans[-1][1], step)
        else:
            spans.append((stage, step, step))
    return spans


def _shade_stages(axes: Axes, spans: Sequence[Span], *, has_names: bool) -> None:
    """None; a shade for each stage, from where the last one ended, and its name above where there is room for it."""
    begin = spans[0][1] - 0.5
    first_step, last_step = begin, spans[-1][2] + 0.5
    for number, (stage, _, last) in enumerate(spans):
        end = last + 0.5
        axes.axvspan(begin, end, color=STAGE_SHADES[number % len(STAGE_SHADES)], linewidth=0, zorder=0)
        if has_names and stage and end - begin >= MOST_NARROW_STAGE * (last_step - first_step):
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text((begin + end) / 2, 1.015, stage, fontsize=8.5, color=MUTED, fontweight="bold", **place)
        begin = end
    axes.set_xlim(first_step, last_step)
