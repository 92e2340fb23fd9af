"""The ROI study as a page: accuracies of all modes, the prompter's lead over each, what every training cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from regionmed_clip.eval.selection import PHANTOM_NOTE
from regionmed_clip.eval.studies.pooling import Comparison, Pooled, judge
from regionmed_clip.eval.studies.report_parts import INTERVAL_NOTE, describe_data, format_cell, format_markdown
from regionmed_clip.eval.studies.roi_comparison import Key
from regionmed_clip.eval.style import SERIES, drawing, head
from regionmed_clip.processing.corpus.plot_style import MUTED

METRIC_TITLES = {
    "region_to_text_accuracy": "region → text, all texts",
    "place_accuracy": "right place among other places",
    "laterality_accuracy": "right side of the two",
}


def write_table(path: Path, comparison: Comparison, hardware: str, command: str) -> None:
    """None; `path` then holds the Markdown page."""
    parts = [_head(comparison, hardware, command), _accuracies(comparison)]
    if comparison.differences:
        parts.append(_differences(comparison))
    parts.append(_trainings(comparison))
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(comparison: Comparison, hardware: str, command: str) -> str:
    """What was run, on what, and how to read it."""
    runs = comparison.arms[0].runs
    run, seeds = runs[0], ", ".join(str(run.seed) for run in runs)
    iou = np.mean([run.noisy_iou for run in runs])
    noise = f"every edge moved by at most {run.box_noise:.0%} of the box's side, mean IoU with the exact box {iou:.2f}"
    lines = [
        f"`{command}`",
        describe_data(run),
        f"{hardware}; {run.training['steps']} steps a training, seeds {seeds}.",
        f"Noisy boxes: {noise}; the same boxes for every mode.",
        f"Accuracy is the mean over the seeds. Brackets: {INTERVAL_NOTE}; n counts regions.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _accuracies(comparison: Comparison) -> str:
    """A row for each figure and kind of boxes, a column for each arm."""
    rows = [["figure", "boxes", *comparison.figures, "n", "chance"]]
    for key in _keys(comparison):
        of_arms = [figures[key] for figures in comparison.figures.values()]
        cells = [format_cell(figure) for figure in of_arms]
        rows.append([*_names(key), *cells, f"{of_arms[0].n:,}", f"{of_arms[0].chance:.3f}"])
    return format_markdown(rows, num_left=2)


def _differences(comparison: Comparison) -> str:
    """A row for each difference and figure: its paired interval, every seed's own, and what the intervals say."""
    rows = [["difference", "figure", "boxes", "paired", "by seed", "verdict"]]
    for (first, second), figures in comparison.differences.items():
        for key in _keys(comparison):
            by_seed = " ".join(f"{value:+.3f}" for value in figures[key].per_seed)
            verdict = judge(comparison.figures[first][key], comparison.figures[second][key], figures[key])
            rows.append([f"{first} - {second}", *_names(key), format_cell(figures[key], "+"), by_seed, verdict])
    return format_markdown(rows, num_left=3)


def _trainings(comparison: Comparison) -> str:
    """A row for each training: accuracy, cost, and which weights and code."""
    rows = [["training", "seed", "exact", "noisy", "images/s", "s of the last launch", "weights", "model code"]]
    for arm in comparison.arms:
        for run in arm.runs:
            accuracies = {f.boxes: f.accuracy for f in run.figures if f.metric == "region_to_text_accuracy"}
            shown = [f"{accuracies[boxes]:.3f}" for boxes in ("exact", "noisy")]
            cost = [f"{run.training['images_per_s']:.0f}", f"{run.training['wall_s']:.0f}"]
            rows.append([arm.name, str(run.seed), *shown, *cost, run.model_revision, run.training["model_code"]])
    return format_markdown(rows, num_left=1)


def _keys(comparison: Comparison) -> list[Key]:
    """(metric, boxes) of the rows, exact boxes first within a metric."""
    order = list(METRIC_TITLES)
    return sorted(next(iter(comparison.figures.values())), key=lambda key: (order.index(key[0]), key[1]))


def _names(key: Key) -> tuple[str, str]:
    """The figure and the boxes of a row."""
    return METRIC_TITLES[key[0]], key[1]


def draw_comparison(path: Path, comparison: Comparison) -> None:
    """None; a panel for each figure: every arm's accuracy with its interval and its seeds, exact beside noisy boxes."""
    keys, names = _keys(comparison), list(comparison.figures)
    metrics = list(dict.fromkeys(metric for metric, _ in keys))
    with drawing(path, (1.2 + 4.2 * len(metrics), 4.8)) as figure:
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            boxes = [kind for name, kind in keys if name == metric]
            for place, name in enumerate(names):
                shift = (place - (len(names) - 1) / 2) * 0.8 / len(names)
                figures = [comparison.figures[name][metric, kind] for kind in boxes]
                _draw_arm(axes, np.arange(len(boxes)) + shift, figures, SERIES[place % len(SERIES)], name)
            chance = comparison.figures[names[0]][metric, boxes[0]].chance
            axes.axhline(chance, color=MUTED, linewidth=1, linestyle=":")
            axes.set_xticks(range(len(boxes)), [f"{kind} boxes" for kind in boxes])
            axes.set_xlim(-0.5, len(boxes) - 0.5)
            axes.set_title(METRIC_TITLES[metric], loc="left")
        panels[0].set_ylabel("accuracy")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=min(4, len(names)), fontsize=9)
        head(figure, "How regions are read", f"{PHANTOM_NOTE}; bars: 95 % intervals, small dots: seeds, dotted: chance")


def _draw_arm(axes: Axes, places: np.ndarray, figures: Sequence[Pooled], colour: str, name: str) -> None:
    """None; the accuracies of one arm with their intervals, and its seeds' own beside them."""
    values = np.array([figure.value for figure in figures])
    bars = np.abs(np.array([[figure.low for figure in figures], [figure.high for figure in figures]]) - values)
    axes.errorbar(
        places, values, yerr=bars, color=colour, marker="o", markersize=6, capsize=3, linestyle="none", label=name
    )
    for place, figure in zip(places, figures, strict=True):
        seeds = figure.per_seed
        axes.plot([place + 0.05] * len(seeds), seeds, color=colour, marker=".", linestyle="none", alpha=0.7)
