"""Which examples the pictures show: the first of each stratum in split order, never chosen by their outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.processing.corpus.shown_image import shown_image

PHANTOM_NOTE = "phantom data: procedurally drawn pictures, not clinical evidence"
TEMPLATE_NOTE = "text by template from labels"
MAX_SHOWN_REGIONS = 3


@dataclass(frozen=True)
class Shown:
    """One example of a picture: its row in the split, its image as RGB, and the few regions that are shown."""

    row: int
    image: Image.Image
    example: Mapping[str, Any]
    regions: list[Mapping[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image in pixels."""
        return self.image.height, self.image.width

    @property
    def title(self) -> str:
        """Modality and name of the image in two lines, the caption of a panel; a long name keeps its end."""
        name = str(self.example["image_id"])
        return f"{self.example['modality']}\n{name if len(name) <= 36 else '...' + name[-33:]}"


def choose_rows(embedded: EmbeddedSplit, count: int, *, min_meanings: int = 0) -> list[int]:
    """At most `count` rows of images: strata (source and modality) in turn, within a stratum in split order.

    Args:
        min_meanings: images with at least so many different region texts come first; others fill up.
    """
    num_meanings = np.zeros(embedded.num_images, dtype=np.int64)
    pairs = {(int(row), int(key)) for row, key in zip(embedded.region_image, embedded.region_keys, strict=True)}
    for row, _ in pairs:
        num_meanings[row] += 1
    queues: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(-np.minimum(num_meanings, min_meanings), kind="stable").tolist():
        if min_meanings and not num_meanings[row]:
            continue
        stratum = (str(embedded.image_sources[row]), str(embedded.image_modalities[row]))
        queues.setdefault(stratum, []).append(row)
    chosen: list[int] = []
    for place in range(count):
        for stratum in sorted(queues):
            if len(chosen) < count and place < len(queues[stratum]):
                chosen.append(queues[stratum][place])
    return chosen


def collect(examples: Iterable[Mapping[str, Any]], embedded: EmbeddedSplit, rows: Iterable[int]) -> dict[int, Shown]:
    """The examples of the wanted rows, by row, from one pass over the split that stops at the last of them."""
    wanted = set(rows)
    found: dict[int, Shown] = {}
    for row, example in enumerate(examples):  # by place, not by id: two parts of a mixture may hold the same image
        if row in wanted and example["image_id"] == embedded.image_ids[row]:
            image = shown_image(example).convert("RGB")
            found[row] = Shown(row, image, example, _some_regions(example["regions"]))
            if len(found) == len(wanted):
                break
    missing = sorted(wanted - set(found))
    if missing:
        raise ValueError(
            f"examples hold no image {embedded.image_ids[missing[0]]!r} in its place ({len(missing)} of {len(wanted)} "
            "missing); pictures need the split that was embedded. Pass the same examples, from their beginning."
        )
    return found


def _some_regions(regions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most MAX_SHOWN_REGIONS regions, those of different meaning first, then the largest; in their order."""
    areas = [(r["box"][2] - r["box"][0]) * (r["box"][3] - r["box"][1]) for r in regions]
    by_area = sorted(range(len(regions)), key=lambda i: -areas[i])
    largest_of_key = {regions[i]["key"]: i for i in reversed(by_area)}
    order = sorted(by_area, key=lambda i: largest_of_key[regions[i]["key"]] != i)
    return [regions[i] for i in sorted(order[:MAX_SHOWN_REGIONS])]


def shown_regions(embedded: EmbeddedSplit, image_row: int) -> list[int]:
    """Rows of at most MAX_SHOWN_REGIONS regions of the image, one of each meaning first, then the largest."""
    rows = np.flatnonzero(embedded.region_image == image_row)
    by_area = rows[np.argsort(-embedded.region_area_shares[rows], kind="stable")].tolist()
    largest_of_key = {int(embedded.region_keys[row]): row for row in reversed(by_area)}
    order = sorted(by_area, key=lambda row: largest_of_key[int(embedded.region_keys[row])] != row)
    return sorted(order[:MAX_SHOWN_REGIONS])


def best_region_texts(embedded: EmbeddedSplit, region: int, count: int) -> list[tuple[int, float]]:
    """(row of the text, cosine) of the `count` region texts of the split nearest to a region, best first."""
    scores = embedded.region_text_embeds @ embedded.region_embeds[region]
    best = np.argsort(-scores, kind="stable")[:count]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))


def data_note(embedded: EmbeddedSplit, shown: Iterable[Shown]) -> str:
    """What the data of the pictures is and is not; stands below every one of them."""
    notes = [PHANTOM_NOTE] if (embedded.image_sources == "phantom").any() else []
    is_template = any(
        s.example.get("text_origin", "template") == "template" for s in shown if s.example["source"] != "phantom"
    )
    return "; ".join(notes + [TEMPLATE_NOTE] * is_template)
