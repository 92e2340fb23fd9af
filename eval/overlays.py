"""Pictures of the model at work: regions with their texts, heat maps of a text, and what retrieval brings up."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from regionmed_clip.eval.selection import Shown, best_region_texts, shown_regions
from regionmed_clip.eval.style import HEAT_MAP, HIT, MISS, TRUTH, bare, drawing, frame, head
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.processing.corpus.plot_style import MUTED, TEXT

NUM_BEST = 3
NUM_RETRIEVED = 5
COOL_SHARE = 0.4  # the lower part of a heat map's range stays transparent


def draw_region_overlays(path: Path, shown: Sequence[Shown], embedded: EmbeddedSplit, note: str = "") -> bool:
    """Whether there was anything to draw; images with numbered boxes beside each box's best texts of the whole gallery.

    Scores are cosines, of the regions as the split was read. Green: the best text means what the region means.
    """
    regions = {one.row: shown_regions(embedded, one.row) for one in shown}
    shown = [one for one in shown if regions[one.row]]
    if not shown:
        return False
    num_rows = -(-len(shown) // 2)
    with drawing(path, (16, 0.8 + 3.4 * num_rows)) as figure:
        grid = figure.subplots(num_rows, 4, squeeze=False, width_ratios=[1, 1.6, 1, 1.6])
        for axes in grid.flat:
            bare(axes)
        for place, one in enumerate(shown):
            picture, text = grid[place // 2, place % 2 * 2 : place % 2 * 2 + 2]
            _draw_image(picture, one)
            _draw_regions(picture, text, one, regions[one.row], embedded)
        head(figure, f"Regions and their best texts among {len(embedded.region_texts)}", note)
    return True


def _draw_image(axes: Axes, shown: Shown, title: str | None = None) -> None:
    """None; the image in its own pixels, with a small title."""
    axes.imshow(np.asarray(shown.image), interpolation="bilinear")
    axes.set_anchor("N")
    axes.set_title(shown.title if title is None else title, fontsize=8.5, fontweight="normal", color=MUTED, loc="left")


def draw_box(axes: Axes, box: Sequence[float], colour: str, label: str = "") -> None:
    """None; the box outlined, with a label above its upper left corner; pixel k is [k, k + 1), drawn around k."""
    x0, y0, x1, y1 = box
    outline = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8)
    outline.set_path_effects([withStroke(linewidth=3.6, foreground="#000000aa")])  # stands out on light and on heat
    axes.add_patch(outline)
    outline.set_clip_on(False)
    if label:
        axes.annotate(
            label,
            (x0 - 0.5, y0 - 0.5),
            xytext=(1, -1),
            textcoords="offset points",
            va="bottom",
            ha="left",
            fontsize=8,
            fontweight="bold",
            color="black",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
        )


def _draw_regions(picture: Axes, text: Axes, shown: Shown, regions: Sequence[int], embedded: EmbeddedSplit) -> None:
    """None; the boxes on the picture and, beside it, each region's best texts, its score bars and the truth."""
    y, step = 1.0, 1.0 / 15
    text.set_xlim(0, 1)
    text.set_ylim(0, 1)
    for number, region in enumerate(regions, start=1):
        best, truth = best_region_texts(embedded, region, NUM_BEST), embedded.region_keys[region]
        colour = HIT if embedded.region_text_keys[best[0][0]] == truth else MISS
        draw_box(picture, embedded.region_boxes_pixel_xyxy[region].tolist(), colour, str(number))
        y -= step * 0.2
        heading = f"{number}  {_short(embedded.region_texts[embedded.region_text[region]], 66)}"
        text.text(0, y, heading, va="top", fontsize=8.2, fontweight="bold", color=TRUTH)
        for candidate, score in best:
            y -= step
            is_right = embedded.region_text_keys[candidate] == truth
            bar_colour, length = (HIT if is_right else MISS), 0.1 * max(score, 0.0)
            text.add_patch(Rectangle((0.0, y - step * 0.58), length, step * 0.5, color=bar_colour))
            text.text(0.115, y, f"{score:.2f}", va="top", fontsize=7.8, color=MUTED)
            words = _short(embedded.region_texts[candidate], 68)
            text.text(0.19, y, words, va="top", fontsize=7.8, color=HIT if is_right else TEXT)
        y -= step * 1.3
    hidden = len(shown.example["regions"]) - len(regions)
    if hidden > 0:
        text.text(0, y - step * 0.2, f"and {hidden} more regions", va="top", fontsize=8, color=MUTED)


def _short(text: str, width: int) -> str:
    """The text cut to `width` characters at a word, with dots where it was cut."""
    return text if len(text) <= width else textwrap.shorten(text, width, placeholder=" ...")


def draw_heat_maps(
    path: Path,
    model: Any,
    processor: Any,
    shown: Sequence[Shown],
    texts: Sequence[Sequence[str]],
    note: str = "",
) -> bool:
    """Whether there was anything to draw; for each image the picture with its boxes, then the heat map of each text.

    Heat is the cosine of the dense feature of each patch with the text, upsampled to the original image; no box is
    given to the model. The boxes of the regions that the text describes are outlined.

    Args:
        texts: for each image the texts to look for.
    """
    pairs = [(s, t) for s, t in zip(shown, texts, strict=True) if t]
    if not pairs:
        return False
    columns = max(len(t) for _, t in pairs)
    with drawing(path, (3.5 * (columns + 1), 0.8 + 3.3 * len(pairs))) as figure:
        grid = figure.subplots(len(pairs), columns + 1, squeeze=False)
        for axes in grid.flat:
            bare(axes)
        for row, (one, wanted) in zip(grid, pairs, strict=True):
            _draw_image(row[0], one)
            for region in one.regions:
                draw_box(row[0], region["box"], TRUTH)
            maps = heat_of_texts(model, processor, one, wanted)
            for axes, text, heat in zip(row[1:], wanted, maps, strict=False):
                _draw_text_heat(axes, one, text, heat)
        head(figure, "Where the model sees a text (no box given)", note)
    return True


def heat_of_texts(model: Any, processor: Any, shown: Shown, texts: Sequence[str]) -> list[np.ndarray]:
    """For each text the (height, width) cosine map over the original image; NaN where the model did not see it."""
    with torch.inference_mode():
        pixel_values = processor(images=shown.image, window=None)["pixel_values"]  # 8 bits already: no window
        dense = model.get_dense_features(pixel_values.to(model.device))  # (1, D, h, w)
        encoded = {name: value.to(model.device) for name, value in processor.encode_texts(list(texts)).items()}
        embeds = torch.nn.functional.normalize(model.get_text_features(**encoded).pooler_output.float(), dim=-1)
        dense = torch.nn.functional.normalize(dense.float(), dim=1)[0]
        heat = torch.einsum("dhw,td->thw", dense, embeds)
    return processor.post_process_heatmap(heat, target_sizes=[shown.size] * len(texts))


def _draw_text_heat(axes: Axes, shown: Shown, text: str, heat: np.ndarray) -> None:
    """None; the dimmed grey image under the heat of one text, which shows above COOL_SHARE of its range; own boxes."""
    low, high = float(np.nanmin(heat)), float(np.nanmax(heat))
    strength = np.nan_to_num((heat - low) / max(high - low, 1e-6))  # (H, W) in [0, 1]
    draw_heat(axes, shown.image, strength)
    own = [region for region in shown.example["regions"] if region["description"] == text]
    for region in own:
        draw_box(axes, region["box"], TRUTH)
    label = text if own else f"{text} (not annotated here)"
    title = textwrap.fill(label, 46)
    axes.set_title(title if "\n" in title else f"{title}\n", fontsize=8.5, fontweight="normal", loc="left")
    axes.set_xlabel(f"cosine {low:.2f} to {high:.2f} (bright)", fontsize=7.5, loc="left")


def draw_heat(axes: Axes, image: Image.Image, strength: np.ndarray) -> None:
    """None; the image dimmed and grey, under the part of `strength` (H, W) in [0, 1] above COOL_SHARE."""
    axes.imshow(np.asarray(image.convert("L")) * 0.7, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    is_hot = np.clip((strength - COOL_SHARE) / (1 - COOL_SHARE), 0, 1)
    axes.imshow(strength, cmap=HEAT_MAP, alpha=0.8 * is_hot, vmin=0, vmax=1, interpolation="bilinear")


def draw_text_to_image(
    path: Path, texts: Sequence[int], images: Mapping[int, Shown], embedded: EmbeddedSplit, note: str = ""
) -> bool:
    """Whether there was anything to draw; each caption of `texts` (rows) with its nearest images, hits green."""
    if not texts:
        return False
    with drawing(path, (13.5, 0.8 + 2.35 * len(texts))) as figure:
        grid = figure.subplots(len(texts), NUM_RETRIEVED + 1, squeeze=False, width_ratios=[1.5] + [1] * NUM_RETRIEVED)
        for row, text in zip(grid, texts, strict=True):
            bare(row[0]).text(0, 0.5, textwrap.fill(embedded.captions[text], 34), va="center", fontsize=9)
            row[0].set_xlim(0, 1)
            scores = embedded.image_embeds @ embedded.caption_embeds[text]
            for axes, image in zip(row[1:], nearest_images(embedded, text), strict=False):
                _draw_image(bare(axes), images[image], f"{scores[image]:.2f}")
                is_hit = embedded.image_keys[image] == embedded.caption_keys[text]
                frame(axes, HIT if is_hit else MISS)
            for axes in row[1 + embedded.num_images :]:
                bare(axes)
        head(figure, f"Text to image: nearest of {embedded.num_images:,} images (green: same meaning)", note)
    return True


def nearest_images(embedded: EmbeddedSplit, text: int) -> list[int]:
    """Rows of the NUM_RETRIEVED images nearest to a caption row, best first."""
    scores = embedded.image_embeds @ embedded.caption_embeds[text]
    return np.argsort(-scores, kind="stable")[:NUM_RETRIEVED].tolist()


def draw_image_to_text(path: Path, shown: Sequence[Shown], embedded: EmbeddedSplit, note: str = "") -> bool:
    """Whether there was anything to draw; each image beside its NUM_RETRIEVED nearest captions, hits green."""
    if not shown:
        return False
    with drawing(path, (12, 0.8 + 2.35 * len(shown))) as figure:
        grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[1, 3.2])
        for (picture, text), one in zip(grid, shown, strict=True):
            _draw_image(bare(picture), one)
            bare(text).set_xlim(0, 1)
            text.set_ylim(0, 1)
            text.text(0.06, 1.0, _fit(one.example["caption"]), va="top", fontsize=8.5, fontweight="bold", color=TRUTH)
            scores = embedded.caption_embeds @ embedded.image_embeds[one.row]
            for place, best in enumerate(np.argsort(-scores, kind="stable")[:NUM_RETRIEVED], start=1):
                is_hit = embedded.caption_keys[best] == embedded.image_keys[one.row]
                y = 1.0 - place / (NUM_RETRIEVED + 1.1)
                text.text(0.0, y, f"{scores[best]:.2f}", va="top", fontsize=8.5, color=MUTED)
                text.text(0.06, y, _fit(embedded.captions[best]), va="top", fontsize=8.5, color=HIT if is_hit else TEXT)
        title = f"Image to text: nearest of {len(embedded.captions):,} captions (yellow: its own; green: same meaning)"
        head(figure, title, note)
    return True


def _fit(caption: str) -> str:
    """The caption in at most two lines of 105 characters."""
    return textwrap.fill(_short(caption, 200), 105)
