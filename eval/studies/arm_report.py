"""A study of arms as a page and a picture: figures of all arms, paired differences, what every training cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from regionmed_clip.eval.metric_titles import metric_title
from regionmed_clip.eval.studies.arms import Key
from regionmed_clip.eval.studies.pooling import Comparison, Pooled, judge
from regionmed_clip.eval.studies.report_parts import INTERVAL_NOTE, describe_data, format_cell, format_markdown
from regionmed_clip.eval.style import SERIES, drawing, head
from regionmed_clip.processing.corpus.plot_style import MUTED, TEXT

MARKS = {"intervals apart": " **", "paired only": " *"}
MARKS_NOTE = (
    "Differences are paired. `**`: the paired interval excludes 0 and the two own intervals are apart; `*`: the paired "
    "interval alone excludes 0; no mark: no difference shown."
)
PANEL_COLUMNS = 3


def write_page(path: Path, comparison: Comparison, *, hardware: str, command: str, notes: Sequence[str]) -> None:
    """None; `path` then holds the Markdown page; `notes` are the study's own lines of its head."""
    runs = comparison.arms[0].runs
    facts = runs[0].training
    lines = [
        f"`{command}`",
        describe_data(runs[0]),
        f"{hardware}; {facts['threads']} thread(s) a training, seeds {', '.join(str(run.seed) for run in runs)}.",
        f"Figures are means over the seeds. Brackets: {INTERVAL_NOTE}; n counts queries.",
        *([MARKS_NOTE] if comparison.differences else []),
        *notes,
    ]
    parts = ["\n".join(f"- {line}" for line in lines)]
    for source in _sources(comparison):
        keys = [key for key in list_keys(comparison) if key[1] == source]
        parts += [f"## {source or 'All of the split'}", _figures(comparison, keys)]
        if comparison.differences:
            parts.append(_differences(comparison, keys))
    parts += ["## Trainings", _trainings(comparison)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def list_keys(comparison: Comparison) -> list[Key]:
    """(metric, source) of all figures, in their order."""
    return list(next(iter(comparison.figures.values())))


def _sources(comparison: Comparison) -> list[str | None]:
    """The sources with figures, None for the whole split first."""
    return list(dict.fromkeys(source for _, source in list_keys(comparison)))


def _figures(comparison: Comparison, keys: Sequence[Key]) -> str:
    """A row for each arm, a column for each figure; below them n and chance."""
    first = next(iter(comparison.figures.values()))
    rows = [["arm", *(metric_title(metric) for metric, _ in keys)]]
    rows += [[name, *(format_cell(figures[key]) for key in keys)] for name, figures in comparison.figures.items()]
    rows.append(["n", *(f"{first[key].n:,}" for key in keys)])
    chances = [first[key].chance for key in keys]
    rows.append(["chance", *("-" if chance is None else f"{chance:.3f}" for chance in chances)])
    return format_markdown(rows, num_left=1)


def _differences(comparison: Comparison, keys: Sequence[Key]) -> str:
    """A row for each difference, a column for each figure; marks say what the intervals show."""
    rows = [["difference", *(metric_title(metric) for metric, _ in keys)]]
    for (first, second), figures in comparison.differences.items():
        cells = []
        for key in keys:
            verdict = judge(comparison.figures[first][key], comparison.figures[second][key], figures[key])
            cells.append(format_cell(figures[key], "+") + MARKS.get(verdict.partition(", ")[2], ""))
        rows.append([f"{first} - {second}", *cells])
    return format_markdown(rows, num_left=1)


def _trainings(comparison: Comparison) -> str:
    """A row for each training: figures of the whole split, cost, and which weights and code."""
    keys = [key for key in list_keys(comparison) if key[1] is None]
    titles = [metric_title(metric) for metric, _ in keys]
    rows = [["training", "seed", *titles, "steps", "images/s", "s of the last launch", "weights", "model code"]]
    for arm in comparison.arms:
        for place, run in enumerate(arm.runs):
            shown = [f"{comparison.figures[arm.name][key].per_seed[place]:.3f}" for key in keys]
            facts = run.training
            cost = [str(facts["steps"]), f"{facts['images_per_s']:.0f}", f"{facts['wall_s']:.0f}"]
            rows.append([arm.name, str(run.seed), *shown, *cost, run.model_revision, facts["model_code"]])
    return format_markdown(rows, num_left=1)


def draw_arms(path: Path, comparison: Comparison, keys: Sequence[Key], *, title: str, note: str) -> None:
    """None; a panel for each figure of `keys`: a line for each arm with its interval, its seeds as small dots."""
    names = list(comparison.figures)
    num_columns = min(PANEL_COLUMNS, len(keys))
    num_rows = -(-len(keys) // num_columns)
    with drawing(path, (2.6 + 3.6 * num_columns, 0.9 + num_rows * (1.0 + 0.3 * len(names)))) as figure:
        panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).flat
        for axes in panels[len(keys) :]:
            axes.set_visible(False)
        for axes, key in zip(panels, keys, strict=False):
            for place, name in enumerate(names):
                _draw_arm(axes, place, comparison.figures[name][key], SERIES[place % len(SERIES)])
            metric, source = key
            axes.axvline(comparison.figures[names[0]][key].value, color=MUTED, linewidth=1, linestyle=":")
            axes.set_title("\n".join(filter(None, (metric_title(metric), source))), loc="left")
            axes.set_yticks(range(len(names)), names, color=TEXT)
            axes.set_ylim(len(names) - 0.5, -0.5)
        bars = f"bars: 95 % intervals, small dots: seeds, dotted: {names[0]}"
        head(figure, title, f"{note}; {bars}" if note else bars)


def _draw_arm(axes: Axes, place: int, figure: Pooled, colour: str) -> None:
    """None; the figure of one arm with its interval at height `place`, and its seeds' own below it."""
    bars = np.abs(np.array([[figure.low], [figure.high]]) - figure.value)
    axes.errorbar([figure.value], [place], xerr=bars, color=colour, marker="o", markersize=6, capsize=3)
    seeds = figure.per_seed
    axes.plot(seeds, [place + 0.28] * len(seeds), color=colour, marker=".", linestyle="none", alpha=0.8)
