"""Pictures of phrases found in images: the heat of every phrase with the boxes that answer it, or none."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from regionmed_clip.eval.overlays import draw_box, draw_heat
from regionmed_clip.eval.selection import Shown
from regionmed_clip.eval.style import HIT, TRUTH, bare, drawing, head
from regionmed_clip.processing.corpus.plot_style import MUTED, TEXT

NO_BOXES: Mapping[str, Sequence[Sequence[float]]] = {}


def ground_images(
    model: Any, processor: Any, images: Sequence[Image.Image], phrases: Sequence[str], **settings: Any
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Per image what `post_process_grounding` gives, and the heat of the T phrases (T, height, width), both in pixels.

    Args:
        images: of 8 bits, as `shown_image` gives them: a window that was saved with the processor holds not for them.
        settings: of `processor.post_process_grounding`.
    """
    sizes = [(image.height, image.width) for image in images]
    pixel_values = processor(images=list(images), window=None)["pixel_values"].to(model.device)
    texts = {name: tensor.to(model.device) for name, tensor in processor.encode_texts(phrases).items()}
    with torch.inference_mode():
        outputs = model.ground_phrases(pixel_values, **texts)
    found = processor.post_process_grounding(outputs, sizes, phrases, **settings)
    return found, processor.post_process_heatmap(outputs.heat, sizes)


def draw_grounding(
    path: Path,
    images: Sequence[Image.Image],
    phrases: Sequence[str],
    found: Sequence[Mapping[str, Any]],
    heat: Sequence[np.ndarray],
    *,
    true_boxes: Sequence[Mapping[str, Sequence[Sequence[float]]]] | None = None,
    note: str = "",
) -> bool:
    """Whether there was anything to draw; a row for each image: itself, then every phrase with its heat and its boxes.

    Heat is on one scale in a row, from the median over its phrases to the highest value: a phrase that the model does
    not see stays cold. Found boxes are green with their cosine, annotated ones yellow.

    Args:
        phrases: T texts.
        found, heat: of each image, see `ground_images`.
        true_boxes: of each image the annotated boxes (x0, y0, x1, y1) of a phrase, in original pixels.
    """
    if not images or not phrases:
        return False
    truths = [NO_BOXES] * len(images) if true_boxes is None else true_boxes
    with drawing(path, (2.9 * (len(phrases) + 1), 0.8 + 3.3 * len(images))) as figure:
        grid = figure.subplots(len(images), len(phrases) + 1, squeeze=False)
        for row, image, answer, maps, truth in zip(grid, images, found, heat, truths, strict=True):
            for axes in row:
                bare(axes)
            row[0].imshow(np.asarray(image.convert("RGB")), interpolation="bilinear")
            low, high = float(np.nanmedian(maps)), float(np.nanmax(maps))
            for axes, phrase, label, one in zip(row[1:], phrases, range(len(phrases)), maps, strict=True):
                draw_heat(axes, image, np.nan_to_num((one - low) / max(high - low, 1e-6)).clip(0.0, 1.0))
                _draw_answer(axes, phrase, answer, label, float(np.nanmax(one)), truth.get(phrase, ()))
        head(figure, "Where the model grounds a phrase (green), where it is annotated (yellow)", note)
    return True


def draw_grounding_of(path: Path, model: Any, processor: Any, shown: Sequence[Shown], note: str = "") -> bool:
    """Whether there was anything to draw; every image with one text of each of the images: seen in its own, or nowhere.

    Args:
        shown: images of a split with their regions; those without regions are left out.
    """
    shown = [one for one in shown if one.regions]
    phrases = list(dict.fromkeys(one.regions[0]["description"] for one in shown))
    if not phrases:
        return False
    images = [one.image for one in shown]
    truths: list[dict[str, list[Sequence[float]]]] = [{} for _ in shown]
    for one, truth in zip(shown, truths, strict=True):
        for region in one.regions:
            truth.setdefault(region["description"], []).append(region["box"])
    found, heat = ground_images(model, processor, images, phrases)
    return draw_grounding(path, images, phrases, found, heat, true_boxes=truths, note=note)


def _draw_answer(
    axes: Axes, phrase: str, answer: Mapping[str, Any], label: int, peak: float, truth: Sequence[Sequence[float]]
) -> None:
    """None; the boxes of one phrase, annotated and found, and in words how many were found and the peak of its heat."""
    for box in truth:
        draw_box(axes, box, TRUTH)
    is_own = answer["labels"] == label
    for box, score in zip(answer["boxes"][is_own].tolist(), answer["scores"][is_own].tolist(), strict=True):
        draw_box(axes, box, HIT, f"{score:.2f}")
    num_found = int(is_own.sum())
    title = textwrap.fill(phrase, 36)
    axes.set_title(title if "\n" in title else f"{title}\n", fontsize=8.5, fontweight="normal", loc="left")
    counted = "not seen" if num_found == 0 else f"{num_found} box{'es' if num_found > 1 else ''}"
    colour = TEXT if num_found else MUTED
    axes.set_xlabel(f"{counted}; heat up to {peak:.2f}", fontsize=7.5, loc="left", color=colour)
