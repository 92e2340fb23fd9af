"""What a report shows of one model: which examples, the sheets made of them, and tables of its errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.eval.grounding_pictures import ground_images
from regionmed_clip.eval.overlays import heat_of_texts, nearest_images
from regionmed_clip.eval.report_errors import Error, confusion_by_source, worst_images, worst_regions
from regionmed_clip.eval.report_gallery import (
    Heat,
    Sheet,
    heat_sheet,
    image_to_text_sheet,
    region_sheet,
    similar_regions,
    similar_sheet,
    text_to_image_sheet,
    worst_image_sheet,
    worst_region_sheet,
)
from regionmed_clip.eval.selection import Shown, choose_rows, collect, shown_regions
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit

NUM_OVERLAYS, NUM_HEAT_MAPS, NUM_QUERIES, NUM_WORST = 8, 4, 4, 6


@dataclass(frozen=True)
class ModelReport:
    """What was written and gathered of one model.

    Attributes:
        index: path of index.md; `pictures`: name of a PNG beside it -> its caption, those that were drawn.
        note: what the data is and is not; "" where nothing needs saying.
        sheets: cards of images for the page.
        details: task -> name -> tables and counts for the page, see `html_report.write_page`.
    """

    index: Path
    pictures: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    sheets: Sequence[Sheet] = ()
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """Rows of what is shown; the worst are chosen by their outcome and say so, all others by place in the split."""

    overlays: list[int]
    heat_maps: list[int]
    queries: list[int]
    query_texts: list[int]
    similar: list[int]
    worst_regions: list[Error]
    worst_images: list[Error]

    def image_rows(self, embedded: EmbeddedSplit) -> set[int]:
        """Rows of every image that is shown."""
        regions = [error.query for error in self.worst_regions]
        regions += [row for query in self.similar for row in (query, *similar_regions(embedded, query))]
        rows = {*self.overlays, *self.heat_maps, *self.queries, *embedded.region_image[regions].tolist()}
        rows |= {error.query for error in self.worst_images}
        return rows | {row for text in self.query_texts for row in nearest_images(embedded, text)}


def choose(embedded: EmbeddedSplit) -> Choice:
    """What a report shows of a split."""
    queries = choose_rows(embedded, NUM_QUERIES)
    with_regions = choose_rows(embedded, NUM_QUERIES, min_meanings=1)
    return Choice(
        overlays=choose_rows(embedded, NUM_OVERLAYS, min_meanings=2),
        heat_maps=choose_rows(embedded, NUM_HEAT_MAPS, min_meanings=2),
        queries=queries,
        query_texts=[int(embedded.image_caption[row]) for row in queries],
        similar=[shown_regions(embedded, row)[0] for row in with_regions],
        worst_regions=worst_regions(embedded, NUM_WORST),
        worst_images=worst_images(embedded, NUM_WORST),
    )


def collect_choice(examples: Iterable[Mapping[str, Any]], embedded: EmbeddedSplit, choice: Choice) -> dict[int, Shown]:
    """The examples that are shown, by row, from one pass over the split."""
    return collect(examples, embedded, choice.image_rows(embedded))


def make_sheets(
    model: Any, processor: Any, embedded: EmbeddedSplit, choice: Choice, shown: Mapping[int, Shown], *, grounds: bool
) -> list[Sheet]:
    """The sheets that have anything to show; `grounds`: whether the model's own boxes for phrases are among them.

    `model` is in evaluation mode.
    """
    heat_shown = [shown[row] for row in choice.heat_maps]
    sheets = [
        region_sheet(embedded, [shown[row] for row in choice.overlays]),
        worst_region_sheet(embedded, choice.worst_regions, shown),
        similar_sheet(embedded, choice.similar, shown),
        _seen_sheet(model, processor, embedded, heat_shown),
    ]
    if grounds:
        sheets.append(_grounded_sheet(model, processor, heat_shown))
    sheets += [
        text_to_image_sheet(embedded, choice.query_texts, shown),
        image_to_text_sheet(embedded, [shown[row] for row in choice.queries]),
        worst_image_sheet(embedded, choice.worst_images, shown),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def make_details(embedded: EmbeddedSplit) -> dict[str, dict[str, Any]]:
    """Tables for the page: which findings are taken for which, by source."""
    confusions = confusion_by_source(embedded)
    return {"region": confusions} if confusions else {}


def texts_to_find(shown: Shown, embedded: EmbeddedSplit) -> list[str]:
    """Two texts for the heat maps of an image: of its own regions, filled up by one of another image of its stratum."""
    texts = list(dict.fromkeys(region["description"] for region in shown.regions))[:2]
    own_keys = set(embedded.region_keys[embedded.region_image == shown.row].tolist())
    region_images = embedded.region_image
    is_kin = embedded.image_sources[region_images] == embedded.image_sources[shown.row]
    is_kin &= embedded.image_modalities[region_images] == embedded.image_modalities[shown.row]
    for row in np.flatnonzero(is_kin):
        if len(texts) >= 2 or not texts:
            break
        if int(embedded.region_keys[row]) not in own_keys:
            texts.append(embedded.region_texts[embedded.region_text[row]])
    return texts


def _seen_sheet(model: Any, processor: Any, embedded: EmbeddedSplit, shown: Sequence[Shown]) -> Sheet:
    """Heat maps of two texts an image, no box given; each map on a scale of its own."""
    heats = []
    for one in shown:
        texts = texts_to_find(one, embedded)
        maps = heat_of_texts(model, processor, one, texts) if texts else []
        heats.append([_heat(one, text, heat, np.nanmin(heat), np.nanmax(heat)) for text, heat in zip(texts, maps)])
    note = "Cosine of every patch with a text, no box given; each map on its own scale. Yellow: annotated boxes."
    return heat_sheet("heat_maps", "Where the model sees a text", note, shown, heats)


def _grounded_sheet(model: Any, processor: Any, shown: Sequence[Shown]) -> Sheet:
    """Every image with one phrase of each of the images: found in its own, or nowhere; an image's maps on one scale."""
    shown = [one for one in shown if one.regions]
    phrases = list(dict.fromkeys(one.regions[0]["description"] for one in shown))
    found, maps = ground_images(model, processor, [one.image for one in shown], phrases) if phrases else ([], [])
    heats = []
    for one, answer, of_image in zip(shown, found, maps, strict=True):
        low, high = float(np.nanmedian(of_image)), float(np.nanmax(of_image))
        row = []
        for label, (phrase, heat) in enumerate(zip(phrases, of_image, strict=True)):
            is_own = answer["labels"] == label
            boxes = zip(answer["boxes"][is_own].tolist(), answer["scores"][is_own].tolist(), strict=True)
            row.append(_heat(one, phrase, heat, low, high, found=list(boxes)))
        heats.append(row)
    note = "Phrases without a box: green what the model finds, with its score, yellow what is annotated."
    return heat_sheet("grounding", "Phrases grounded", note, shown, heats, has_found=True)


def _heat(one: Shown, text: str, heat: np.ndarray, low: float, high: float, found: Sequence[Any] = ()) -> Heat:
    """The heat (H, W) of a text scaled from `low` to `high`, with the text's annotated boxes."""
    strength = np.nan_to_num((heat - low) / max(high - low, 1e-6)).clip(0.0, 1.0)
    truths = [region["box"] for region in one.example["regions"] if region["description"] == text]
    return Heat(text, strength, float(np.nanmin(heat)), float(np.nanmax(heat)), truths, list(found))
