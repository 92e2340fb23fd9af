"""Phrases to be found in images: each text of an image's regions with all boxes it is true of, and one of no box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.region_facts import is_true_of, record_of
from regionmed_clip.processing.corpus.captions import is_normal_caption
from regionmed_clip.processing.corpus.finding_table import may_be_one
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.seeded_choice import SeededChoice

ABSENT_RULE = (
    "one an image: a region text of its source and modality whose finding the image does not show; images without "
    "regions only where their caption claims normality"
)


@dataclass(frozen=True)
class Phrases:
    """Q phrases asked of the images of a split, in the order of the images.

    Attributes:
        texts: Q strings.
        images: (Q,) int64 row of the image.
        boxes: Q arrays (n, 4) float32 of boxes in original pixels; n is 0 for a phrase that the image does not show.
        regions: (Q,) int64 row of the first region that bears the phrase; -1 for an absent one.
    """

    texts: list[str]
    images: np.ndarray
    boxes: list[np.ndarray]
    regions: np.ndarray

    @property
    def num_boxes(self) -> np.ndarray:
        """(Q,) int64: annotated boxes of each phrase; 0: absent."""
        return np.array([len(boxes) for boxes in self.boxes], dtype=np.int64)

    def of_images(self, images: range) -> Phrases:
        """Those that are asked of a run of images."""
        start, end = np.searchsorted(self.images, [images.start, images.stop]).tolist()
        return Phrases(self.texts[start:end], self.images[start:end], self.boxes[start:end], self.regions[start:end])

    def of_image(self, image: int) -> slice:
        """The phrases that are asked of an image."""
        start, end = np.searchsorted(self.images, [image, image + 1])
        return slice(int(start), int(end))


def list_phrases(embedded: EmbeddedSplit, *, seed: int = 0) -> Phrases:
    """The phrases of a split: of each image the texts of its regions that are not negated, and one that is absent.

    A phrase's boxes are those of every region of the image that it is true of: "cavity" has the box of "cavity in the
    left lung" too. Which finding is absent is decided by the seed and the image's name, each as likely as any other.
    """
    records = [record_of(facts) for facts in embedded.region_facts]
    absent = _AbsentPhrases(embedded, seed)
    texts, images, boxes, regions = [], [], [], []
    for image, rows in _regions_by_image(embedded):
        shown = [row for row in rows if not records[row].is_negated]
        firsts = {int(embedded.region_keys[row]): row for row in reversed(shown)}  # key -> its first region
        for row in sorted(firsts.values()):
            is_there = [_bears(embedded, records, row, other) for other in shown]
            texts.append(embedded.region_texts[embedded.region_text[row]])
            boxes.append(embedded.region_boxes_pixel_xyxy[np.array(shown)[is_there]])
            images.append(image)
            regions.append(row)
        text = absent.choose(image, [records[row] for row in rows])
        if text is not None:
            texts.append(text)
            boxes.append(np.zeros((0, 4), dtype=np.float32))
            images.append(image)
            regions.append(-1)
    return Phrases(texts, np.array(images, dtype=np.int64), boxes, np.array(regions, dtype=np.int64))


def _regions_by_image(embedded: EmbeddedSplit) -> Iterator[tuple[int, list[int]]]:
    """(image, rows of its regions) for every image of the split."""
    starts = np.searchsorted(embedded.region_image, np.arange(embedded.num_images + 1))
    for image in range(embedded.num_images):
        yield image, list(range(starts[image], starts[image + 1]))


def _bears(embedded: EmbeddedSplit, records: Sequence[RegionRecord], row: int, other: int) -> bool:
    """Whether the text of region `row` is true of region `other`."""
    return bool(embedded.region_keys[row] == embedded.region_keys[other]) or is_true_of(records[row], records[other])


class _AbsentPhrases:
    """Texts of findings that an image does not show, by source and modality."""

    def __init__(self, embedded: EmbeddedSplit, seed: int):
        self._embedded, self._seed = embedded, seed
        self._texts: dict[tuple[str, str], dict[str, set[str]]] = {}  # (source, modality) -> finding -> its texts
        for row in np.flatnonzero(~embedded.region_is_negated):
            of_group = self._texts.setdefault(self._group(embedded.region_image[row]), {})
            text = embedded.region_texts[embedded.region_text[row]]
            of_group.setdefault(str(embedded.region_findings[row]), set()).add(text)

    def _group(self, image: int) -> tuple[str, str]:
        return str(self._embedded.image_sources[image]), str(self._embedded.image_modalities[image])

    def choose(self, image: int, regions: Sequence[RegionRecord]) -> str | None:
        """A text that is false of the image, or None where there is none or nothing is known of what it shows."""
        caption = self._embedded.captions[self._embedded.image_caption[image]]
        if not regions and not is_normal_caption(caption):
            return None
        shown = {region.finding for region in regions if not region.is_negated}
        texts = self._texts.get(self._group(image), {})
        others = sorted(name for name in texts if not any(may_be_one(name, finding) for finding in shown))
        if not others:
            return None
        choice = SeededChoice("absent phrase", self._seed, self._embedded.image_ids[image])
        return choice.pick(sorted(texts[choice.pick(others)]))
