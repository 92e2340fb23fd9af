"""Charts of results with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from regionmed_clip.eval.metric_titles import metric_place, metric_title
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.style import MODEL_COLOURS, SERIES, drawing, head
from regionmed_clip.eval.tables import is_difference, model_names, stratum_title
from regionmed_clip.processing.corpus.plot_style import GRID, MUTED, TEXT

METRICS_BY_DATA = ("region_to_text_accuracy", "region_balanced_accuracy")
MAX_ROWS = 24  # of a panel


def draw_results(path: Path, results: Sequence[Result], note: str = "") -> bool:
    """Whether there was anything to draw; bars with intervals: the whole split, then the region figures by data."""
    shown = [r for r in results if r.value is not None and not is_difference(r.model) and "cosine" not in r.metric]
    shown = [r for r in shown if 0 <= min(r.low, r.value) and max(r.high, r.value) <= 1]  # the axis is that of shares
    whole = _first_rows([r for r in shown if r.source is None and r.stratum is None])
    parts = _first_rows([r for r in shown if (r.source or r.stratum) and r.metric in METRICS_BY_DATA])
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


def _first_rows(results: Sequence[Result]) -> list[Result]:
    """The results of the first MAX_ROWS rows of bars: a picture of all would be a yard long; the page has them."""
    rows = set(sorted(dict.fromkeys(map(_row, results)), key=_bar_order)[:MAX_ROWS])
    return [result for result in results if _row(result) in rows]


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
    return metric_place(metric), source or "", stratum or ""
