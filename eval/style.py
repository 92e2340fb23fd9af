"""How our pictures look, and how they are saved: dark panels, one palette, small files."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from regionmed_clip.processing.corpus.plot_style import BACKGROUND, HOUSE_STYLE, MUTED, TEXT

HIT, MISS, TRUTH = "#34d399", "#fb7185", "#fbbf24"
MODEL_COLOURS = {"regionmed-clip": "#2dd4bf", "plain-clip": "#8b9dc3", "colour-size-probe": "#f59e0b"}
SERIES = ("#2dd4bf", "#a78bfa", "#f59e0b", "#60a5fa", "#fb7185", "#a3e635", "#f472b6")
STAGE_SHADES = ("#16263a", "#1c2140", "#26203c", "#152b2c")
HEAT_MAP = "inferno"

NOTE_LETTER_IN = 0.068  # inches, mean width of a letter of the note
MAX_BYTES = 400_000
_MEANINGFUL = (HIT, MISS, TRUTH, TEXT, MUTED)


@contextmanager
def drawing(path: Path, size_inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure in our style; saved as PNG at `path` when the block ends well."""
    with matplotlib.rc_context(HOUSE_STYLE):
        figure = Figure(figsize=size_inches, layout="constrained")
        yield figure
        _save(figure, path)


def head(figure: Figure, title: str, note: str) -> None:
    """None; puts the title above everything and the note on the data (what it may not be taken for) below."""
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=TEXT)
    if note:
        lines = textwrap.fill(note, width=int(figure.get_figwidth() / NOTE_LETTER_IN))  # cut off, it would be no note
        figure.supxlabel(lines, x=0.012, ha="left", fontsize=8.5, color=MUTED)


def bare(axes: Axes) -> Axes:
    """The axes without ticks, grid, frame and background, for pictures and text."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def frame(axes: Axes, colour: str, width: float = 2.5) -> None:
    """None; draws a coloured frame around the axes."""
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)


def _save(figure: Figure, path: Path) -> None:
    """None; the figure as a PNG of at most MAX_BYTES; written whole."""
    canvas = FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    canvas.draw()
    data = _small_png(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _small_png(image: Image.Image) -> bytes:
    """The image as PNG of at most MAX_BYTES: in full colour, else 256 colours dithered, else flat, else smaller."""
    data = _png(image)
    if len(data) <= MAX_BYTES:
        return data
    while True:
        palette = _palette(image)
        for dither in (Image.Dither.FLOYDSTEINBERG, Image.Dither.NONE):
            data = _png(image.quantize(palette=palette, dither=dither))
            if len(data) <= MAX_BYTES:
                return data
        image = image.resize((round(image.width * 0.85), round(image.height * 0.85)), Image.Resampling.LANCZOS)


def _palette(image: Image.Image) -> Image.Image:
    """A palette of 256 colours for the image, the colours that carry meaning among them exactly."""
    meaningful = [colour for accent in _MEANINGFUL for colour in _steps_to_background(accent)]
    found = image.quantize(256 - len(meaningful), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(found[: 3 * (256 - len(meaningful))] + [value for colour in meaningful for value in colour])
    return palette


def _png(image: Image.Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=image.mode == "P")
    return buffer.getvalue()


def _steps_to_background(colour: str) -> list[tuple[int, ...]]:
    """The colour and three mixtures of it with the background: the smoothed edges of its letters and lines."""
    ink, ground = (np.array(ImageColor.getrgb(c)) for c in (colour, BACKGROUND))
    return [tuple((ground + (ink - ground) * share).round().astype(int).tolist()) for share in (1.0, 0.75, 0.5, 0.25)]
