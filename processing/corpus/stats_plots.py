"""The plots of `regionmed-corpus stats`: dark panels, bars with their numbers, small PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from regionmed_clip.processing.corpus.corpus_stats import (
    AREA_STRATA,
    MAX_FINDINGS,
    REGION_BINS,
    SplitStats,
    percentile_of,
    sum_stats,
)
from regionmed_clip.processing.corpus.plot_style import BACKGROUND, HOUSE_STYLE, MUTED, TEXT
from regionmed_clip.processing.corpus.records import TEXT_LEVELS

SPLIT_COLOURS = {"train": "#2dd4bf", "validation": "#a78bfa", "test": "#f59e0b"}
ACCENT = "#60a5fa"
WIDTH_INCHES, INCHES_OF_BAR = 9.0, 0.3
MAX_LABEL = 44  # letters
MAX_LINEAR_RATIO = 50  # of the longest bar of findings to the shortest
MAX_BARS = 20  # of a panel of the composition
_RC = HOUSE_STYLE | {"axes.titlelocation": "left", "ytick.color": TEXT}


def write_plots(stats: dict[str, SplitStats], folder: Path, title: str) -> list[Path]:
    """The paths of the PNG files written: what the corpus is made of, findings, regions, text lengths.

    Args:
        stats: split -> its counts.
        folder: where the files go; it is made if needed.
        title: the name and revision of the corpus, shown on every plot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        figures = {"composition.png": _composition(stats)}
        total = sum_stats(stats.values())
        if total.num_regions:
            figures |= {"findings.png": _findings(stats, total), "regions.png": _regions(stats)}
        if total.words:
            figures["text_lengths.png"] = _text_lengths(total)
        for name, figure in figures.items():
            figure.supxlabel(title, x=0.012, ha="left", fontsize=8, color=MUTED)
            temporary = folder / f".{name}.tmp"
            FigureCanvasAgg(figure).print_png(temporary)  # no pyplot: no global state, no display
            os.replace(temporary, folder / name)
    return [folder / name for name in figures]


def _composition(stats: dict[str, SplitStats]) -> Figure:
    """Images by modality, source and licence, the splits stacked."""
    total = sum_stats(stats.values())
    kinds = (("modality", "modality"), ("source", "source"), ("license", "licence"))
    names = [[name for name, _ in total.images_of[kind].most_common(MAX_BARS)] for kind, _ in kinds]
    figure, axes = _figure([len(group) for group in names])
    for (kind, title), group, axis in zip(kinds, names, axes):
        parts = {split: [counts.images_of[kind][name] for name in group] for split, counts in stats.items()}
        _stacked_bars(axis, group, parts)
        number = len(total.images_of[kind])
        axis.set_title(
            f"Images by {title}" + (f", the {MAX_BARS} most frequent of {number}" if number > MAX_BARS else "")
        )
    _split_legend(figure, stats)
    return figure


def _findings(stats: dict[str, SplitStats], total: SplitStats) -> Figure:
    """Regions by finding; where they differ by more than MAX_LINEAR_RATIO on a logarithmic scale, in one colour."""
    found = total.findings.most_common(MAX_FINDINGS)
    names, numbers = [name for name, _ in found], [number for _, number in found]
    is_log = numbers[0] > MAX_LINEAR_RATIO * numbers[-1]
    parts = {"all": numbers}  # parts of a bar on a logarithmic scale would have no meaning
    if not is_log:
        parts = {split: [counts.findings[name] for name in names] for split, counts in stats.items()}
    figure, (axis,) = _figure([len(names)])
    _stacked_bars(axis, names, parts, total=total.num_regions, is_log=is_log)
    more = (
        f", the {MAX_FINDINGS} most frequent of {len(total.findings):,}" if len(total.findings) > MAX_FINDINGS else ""
    )
    axis.set_title(f"Regions by finding{more}{' (logarithmic)' if is_log else ''}")
    if not is_log:
        _split_legend(figure, stats)
    return figure


def _regions(stats: dict[str, SplitStats]) -> Figure:
    """Regions by the share of the image that their box covers, and images by number of regions."""
    figure, axes = _figure([len(AREA_STRATA), len(REGION_BINS)])
    _stacked_bars(
        axes[0], AREA_STRATA, {s: [counts.areas[name] for name in AREA_STRATA] for s, counts in stats.items()}
    )
    axes[0].set_title("Regions by box area, share of the image")
    parts = {split: [counts.regions_per_image[name] for name in REGION_BINS] for split, counts in stats.items()}
    _stacked_bars(axes[1], REGION_BINS, parts)
    axes[1].set_title("Images by number of regions")
    _split_legend(figure, stats)
    return figure


def _text_lengths(total: SplitStats) -> Figure:
    """For every level of text the range that holds 90 % of its lengths in words, the middle half and the median."""
    levels = [level for level in TEXT_LEVELS if total.words.get(level)]
    figure, (axis,) = _figure([len(levels)])
    for place, level in enumerate(levels):
        low, first, median, third, high = (percentile_of(total.words[level], p) for p in (5, 25, 50, 75, 95))
        axis.plot([low, high], [place, place], color=MUTED, linewidth=1.6, solid_capstyle="round")
        axis.barh(place, max(third - first, 0.15), left=first, height=0.46, color=ACCENT, alpha=0.9)
        axis.plot([median], [place], marker="o", markersize=5, color=TEXT, markeredgecolor=BACKGROUND)
        axis.annotate(
            f"{_short_number(sum(total.words[level].values()))} texts, median {median}",
            (max(high, third), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=MUTED,
        )
    _label_bars(axis, [level.replace("_", " ") for level in levels])
    axis.set_xlim(0, max(percentile_of(total.words[level], 95) for level in levels) * 1.45 + 3)
    axis.set_title("Words of a text: 5 to 95 %, middle half, median")
    return figure


def _figure(num_bars: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure with one panel below the other, each as high as its bars need."""
    heights = [max(number, 1) * INCHES_OF_BAR + 0.55 for number in num_bars]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    return figure, [figure.add_subplot(grid[row]) for row in range(len(heights))]


def _stacked_bars(
    axis: Axes, names: Sequence[str], parts: dict[str, list[int]], *, total: int | None = None, is_log: bool = False
) -> None:
    """Nothing; draws horizontal bars, the parts stacked, with the sum and its share of the total at the end of each."""
    start = np.zeros(len(names))
    for part, numbers in parts.items():
        axis.barh(range(len(names)), numbers, left=start, height=0.7, color=SPLIT_COLOURS.get(part, ACCENT))
        start += np.asarray(numbers)
    total = total or int(start.sum()) or 1
    for place, number in enumerate(start):
        text = f"{_short_number(int(number))}  ({100 * number / total:.1f} %)"
        axis.annotate(
            text, (number, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, color=MUTED
        )
    if is_log:
        axis.set_xscale("log")
        axis.set_xlim(0.8, max(start.max(), 10) ** 1.25)
    else:
        axis.set_xlim(0, max(start.max(), 1) * 1.2)
    _label_bars(axis, names)
    axis.xaxis.set_major_formatter(lambda value, _: _short_number(round(value)))


def _label_bars(axis: Axes, names: Sequence[str]) -> None:
    """Nothing; names the bars from top to bottom and leaves the vertical lines of the grid alone."""
    shown = [name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…" for name in names]
    axis.set_yticks(range(len(names)), shown)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(which="both", length=0)
    axis.grid(visible=False, axis="y")


def _split_legend(figure: Figure, stats: dict[str, SplitStats]) -> None:
    """Nothing; says at the foot of the figure which colour is which split."""
    handles = [
        Patch(color=SPLIT_COLOURS[split], label=f"{split}: {s.num_images:,} images") for split, s in stats.items()
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8.5)


def _short_number(number: int) -> str:
    """A number as people read it on an axis: 950, 12.3k, 1.2M."""
    for bound, unit in ((1_000_000, "M"), (10_000, "k")):
        if number >= bound:
            return f"{number / (1_000_000 if unit == 'M' else 1_000):.1f}".removesuffix(".0") + unit
    return f"{number:,}"
