"""HTML of what the demo answers: pure functions of numbers and texts; everything that a visitor wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]

COLOURS = ("#ffb000", "#3fb6ff", "#ff6fae", "#3ddc97", "#b99bff", "#ff8552")  # as in region_canvas.js
HEAT_COLOURS = ("#0b0724", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")  # dark to bright: "inferno"
NUM_BARS = 3
MAX_PNG_SIDE_PX = 700  # a larger picture travels as JPEG


def data_uri(picture: Image.Image) -> str:
    """The picture as a data URI: PNG where it is small, else JPEG."""
    is_small = max(picture.size) <= MAX_PNG_SIDE_PX
    stream = BytesIO()
    picture.save(stream, **({"format": "PNG"} if is_small else {"format": "JPEG", "quality": 92}))
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def note(message: str, is_error: bool = False) -> str:
    """One line for the visitor; an error is announced by screen readers."""
    if not message:
        return ""
    kind, role = ("note-error", "alert") if is_error else ("note-info", "status")
    return f'<p class="note {kind}" role="{role}">{escape(message)}</p>'


def reading(
    texts: Sequence[str], image: np.ndarray, regions: np.ndarray, drawn: Sequence[str | None], selected: int | None
) -> str:
    """A card for the whole picture and one for every box, each with its best texts.

    Args:
        image, regions: shares (T,) and (R, T), see `region_model.Reading`.
        drawn: for each box what was drawn there, if it is a region of an example.
        selected: the chosen box.
    """
    cards = [_card("Whole picture", "without boxes, this is the only answer", "card-image", "", texts, image, None)]
    for i, shares in enumerate(regions):
        classes = "card-region is-selected" if i == selected else "card-region"
        colour = COLOURS[i % len(COLOURS)]
        title = f'<span class="number">{i + 1}</span> Box {i + 1}'
        cards.append(_card(title, "", classes, f"--c:{colour}", texts, shares, drawn[i]))
    if not len(regions):
        cards.append('<p class="card card-empty">Draw a box on the picture: it gets an answer of its own here.</p>')
    return f'<div class="reading" aria-live="polite">{"".join(cards)}</div>'


def _card(
    title: str, subtitle: str, classes: str, style: str, texts: Sequence[str], shares: np.ndarray, drawn: str | None
) -> str:
    bars = "".join(_bar(texts[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")[:NUM_BARS])
    subtitle = f"<small>{subtitle}</small>" if subtitle else ""
    truth = f'<p class="drawn">Drawn here: {escape(drawn)}</p>' if drawn else ""
    return f'<section class="card {classes}" style="{style}"><h3>{title} {subtitle}</h3>{bars}{truth}</section>'


def _bar(text: str, share: float) -> str:
    percent = f"{100 * share:.0f} %"
    return (
        f'<div class="bar"><span class="bar-text">{escape(text)}</span><span class="bar-share">{percent}</span>'
        f'<span class="bar-track"><span style="width:{100 * share:.1f}%"></span></span></div>'
    )


def heat_picture(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture under the colours of its cosines (H, W), the more opaque the higher; NaN stays uncoloured."""
    low, high = _ends(heat)
    level = np.nan_to_num((heat - low) / max(high - low, 1e-6)).clip(0, 1)  # (H, W)
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT_COLOURS], dtype=np.float64)
    at = np.linspace(0, 1, len(anchors))
    colours = np.stack([np.interp(level, at, anchors[:, channel]) for channel in range(3)], axis=-1)  # (H, W, 3)
    opacity = (0.1 + 0.65 * level**1.5)[..., None]
    grey = 0.7 * np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray((grey * (1 - opacity) + colours * opacity).round().astype(np.uint8))


def heat_page(picture: Image.Image, text: str, heat: np.ndarray, boxes: Sequence[Box], scores: Sequence[float]) -> str:
    """The heat map of a text with its highest place, the boxes that fit the text, and what the colours mean."""
    height, width = heat.shape
    low, high = _ends(heat)
    row, column = np.unravel_index(int(np.nanargmax(heat)), heat.shape)
    peak = f"left:{100 * (column + 0.5) / width:.2f}%;top:{100 * (row + 0.5) / height:.2f}%"
    marks = f'<i class="peak" style="{peak}"></i>'
    for (x0, y0, x1, y1), score in zip(boxes, scores):
        place = f"left:{100 * x0 / width:.2f}%;top:{100 * y0 / height:.2f}%"
        size = f"width:{100 * (x1 - x0) / width:.2f}%;height:{100 * (y1 - y0) / height:.2f}%"
        marks += f'<i class="fits" style="{place};{size}"><b>{score:.2f}</b></i>'
    gradient = f"background:linear-gradient(90deg,{','.join(HEAT_COLOURS)})"
    said = f"{len(boxes)} proposed box{'es fit' if len(boxes) != 1 else ' fits'} the text (dashed)."
    said = said if boxes else "No proposed box fits the text well."
    image = f'<img src="{data_uri(heat_picture(picture, heat))}" alt="Heat map of: {escape(text, quote=True)}">'
    frame = f"aspect-ratio:{width}/{height};--ratio:{width / height:.4f}"
    return (
        f'<figure class="heat"><div class="heat-frame" style="{frame}">{image}{marks}</div>'
        f'<figcaption><div class="scale"><span>{low:.2f}</span><i style="{gradient}"></i><span>{high:.2f}</span></div>'
        f"Cosine of each patch with “{escape(text)}”. The ring marks the highest place. {said}</figcaption></figure>"
    )


def cases_page(query: str, cases: Sequence[tuple[float, str, Image.Image]], num_regions: int) -> str:
    """The nearest cases (score, text, tile) to a query, best first."""
    figures = "".join(
        f'<figure class="case"><img src="{data_uri(tile)}" alt=""><figcaption>{escape(text)}'
        f"<b>{score:.2f}</b></figcaption></figure>"
        for score, text, tile in cases
    )
    head = f"Nearest of {num_regions} regions of other phantoms to {escape(query)}, with cosines:"
    return f'<div class="cases-head">{head}</div><div class="cases" aria-live="polite">{figures}</div>'


def _ends(heat: np.ndarray) -> tuple[float, float]:
    """Lowest and highest cosine of a map."""
    return float(np.nanmin(heat)), float(np.nanmax(heat))
