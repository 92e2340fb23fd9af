"""A split as arrays: what every task reads, and the collector that builds it from examples and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.captions import study_phrase

STATED = (  # what an example says of a region
    *("box", "finding", "anatomy", "laterality", "place", "size", "severity", "certainty", "is_negated"),
    *("description", "key", "text_origin"),
)


@dataclass(frozen=True, kw_only=True)
class EmbeddedSplit:
    """One split as arrays. N images, T unique captions, M regions, U unique region texts, D shared width.

    Embeddings are float32 of unit length. Keys are canonical: equal wording always means an equal key here.

    Attributes:
        image_ids: N names; image_sources, image_modalities: (N,) str; image_studies: (N,) str, what the image is, as
            captions name it ("axial CT of the abdomen"); image_findings: N sets of findings shown.
        image_sizes_hw: (N, 2) int32 height and width of the original in pixels. image_clusters: (N,) int64, equal for
            images of one patient, which are resampled together; an image without a patient is a cluster of its own.
            image_sexes: (N,) str, "" where unknown; image_ages: (N,) float32 years, NaN where unknown.
        image_embeds: (N, D). image_caption: (N,) int64 row of the image's caption. caption_embeds: (T, D);
            caption_keys: (T,) int64; captions: T strings.
        region_image: (M,) int64 row of the region's image. region_embeds: (M, D). region_text: (M,) int64 row of its
            text. region_findings: (M,) str; region_is_negated: (M,) bool. region_boxes_pixel_xyxy: (M, 4) float32 in
            original pixels. region_colour_size: (M, 5) float32: mean red, green, blue (0..1) of the box in the
            model's frame, then its width and height as fractions of that frame. region_facts: M dicts, everything the
            example says of the region (STATED), its text and key included, without the mask.
        region_texts: U strings; region_text_keys: (U,) int64; region_text_embeds: (U, D).
        num_regions_outside: regions wholly outside the model's frame, left out of every array above.
    """

    image_ids: list[str]
    image_sources: np.ndarray
    image_modalities: np.ndarray
    image_studies: np.ndarray
    image_findings: list[frozenset[str]]
    image_sizes_hw: np.ndarray
    image_clusters: np.ndarray
    image_sexes: np.ndarray
    image_ages: np.ndarray
    image_embeds: np.ndarray
    image_caption: np.ndarray
    captions: list[str]
    caption_keys: np.ndarray
    caption_embeds: np.ndarray
    region_image: np.ndarray
    region_embeds: np.ndarray
    region_text: np.ndarray
    region_findings: np.ndarray
    region_is_negated: np.ndarray
    region_boxes_pixel_xyxy: np.ndarray
    region_colour_size: np.ndarray
    region_facts: list[dict[str, Any]]
    region_texts: list[str]
    region_text_keys: np.ndarray
    region_text_embeds: np.ndarray
    num_regions_outside: int = 0

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def num_regions(self) -> int:
        """M."""
        return len(self.region_image)

    @property
    def image_keys(self) -> np.ndarray:
        """(N,) int64: the key of each image's caption."""
        return self.caption_keys[self.image_caption]

    @property
    def region_keys(self) -> np.ndarray:
        """(M,) int64: the key of each region's text."""
        return self.region_text_keys[self.region_text]

    @property
    def region_clusters(self) -> np.ndarray:
        """(M,) int64: the cluster of each region's image."""
        return self.image_clusters[self.region_image]

    @property
    def region_area_shares(self) -> np.ndarray:
        """(M,) float64: area of each box as a share of its image."""
        sides = self.region_boxes_pixel_xyxy[:, 2:] - self.region_boxes_pixel_xyxy[:, :2]
        sizes_hw = self.image_sizes_hw[self.region_image]
        return sides.astype(np.float64).prod(axis=1) / sizes_hw.astype(np.float64).prod(axis=1)

    def select_region_texts(self, is_region: np.ndarray) -> np.ndarray:
        """Sorted rows of the region texts that the regions chosen by `is_region` (M,) bool bear."""
        return np.unique(self.region_text[is_region])


@dataclass(frozen=True, kw_only=True)
class ComputedRows:
    """What a model and an image processor make of N images with A annotated regions, M of them inside the frame.

    Attributes:
        image_embeds: (N, D) float32. region_embeds: reading -> (M, D) float32. All of unit length.
        is_inside: (A,) bool, whether any of the region lies in the model's frame.
        region_colour_size: (M, 5) float32; see `EmbeddedSplit`.
    """

    image_embeds: np.ndarray
    region_embeds: dict[str, np.ndarray]
    is_inside: np.ndarray
    region_colour_size: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[ComputedRows]) -> ComputedRows:
        """The rows of all parts, one after the other."""
        return cls(
            image_embeds=np.concatenate([part.image_embeds for part in parts]),
            region_embeds={
                name: np.concatenate([part.region_embeds[name] for part in parts]) for name in parts[0].region_embeds
            },
            is_inside=np.concatenate([part.is_inside for part in parts]),
            region_colour_size=np.concatenate([part.region_colour_size for part in parts]),
        )


class SplitRows:
    """Collects what the examples of a split say, image by image, and joins it to what a model made of them."""

    def __init__(self) -> None:
        self.images: list[Mapping[str, Any]] = []  # examples without their pixels
        self.regions: list[tuple[int, Mapping[str, Any]]] = []  # row of the image, the region

    def add(self, example: Mapping[str, Any]) -> None:
        """None; takes in the next example, whose image is not looked at."""
        self.regions.extend((len(self.images), region) for region in example["regions"])
        image = {key: example[key] for key in ("image_id", "source", "modality", "caption", "caption_key")}
        image |= {key: example.get(key) for key in ("patient_id", "patient_sex", "patient_age")}
        image |= {"size_hw": (example["height"], example["width"]), "study": _study_phrase(example)}
        self.images.append(image | {"findings": _shown_findings(example["regions"])})

    def texts(self, is_inside: np.ndarray) -> list[str]:
        """The unique captions, then the unique texts of the regions that `is_inside` (A,) bool keeps."""
        regions = [region["description"] for (_, region), keep in zip(self.regions, is_inside, strict=True) if keep]
        return [*dict.fromkeys(image["caption"] for image in self.images), *dict.fromkeys(regions)]

    def finish(self, computed: ComputedRows, text_embeds: np.ndarray) -> dict[str, EmbeddedSplit]:
        """The split under each reading; `text_embeds` (T + U, D) are the unit embeddings of `texts`."""
        captions, image_caption, caption_keys = unique_texts(
            [image["caption"] for image in self.images], [image["caption_key"] for image in self.images]
        )
        kept = [row for row, keep in zip(self.regions, computed.is_inside, strict=True) if keep]
        regions = [region for _, region in kept]
        texts, region_text, text_keys = unique_texts([r["description"] for r in regions], [r["key"] for r in regions])
        shared = {
            "image_ids": [image["image_id"] for image in self.images],
            "image_sources": np.array([image["source"] for image in self.images], dtype=str),
            "image_modalities": np.array([image["modality"] for image in self.images], dtype=str),
            "image_studies": np.array([image["study"] for image in self.images], dtype=str),
            "image_findings": [image["findings"] for image in self.images],
            "image_sizes_hw": np.array([image["size_hw"] for image in self.images], dtype=np.int32),
            "image_clusters": clusters_of(self.images),
            "image_sexes": np.array([image["patient_sex"] or "" for image in self.images], dtype=str),
            "image_ages": np.array([_age_or_nan(image["patient_age"]) for image in self.images], dtype=np.float32),
            "image_embeds": computed.image_embeds,
            "image_caption": image_caption,
            "captions": captions,
            "caption_keys": caption_keys,
            "caption_embeds": text_embeds[: len(captions)],
            "region_image": np.array([row for row, _ in kept], dtype=np.int64),
            "region_text": region_text,
            "region_findings": np.array([r["finding"] for r in regions], dtype=str),
            "region_is_negated": np.array([bool(r["is_negated"]) for r in regions], dtype=bool),
            "region_boxes_pixel_xyxy": np.array([r["box"] for r in regions], dtype=np.float32).reshape(-1, 4),
            "region_colour_size": computed.region_colour_size,
            "region_facts": [{name: region.get(name) for name in STATED} for region in regions],
            "region_texts": texts,
            "region_text_keys": text_keys,
            "region_text_embeds": text_embeds[len(captions) :],
            "num_regions_outside": int((~computed.is_inside).sum()),
        }
        return {name: EmbeddedSplit(region_embeds=embeds, **shared) for name, embeds in computed.region_embeds.items()}


def clusters_of(images: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N,) int64: the row of the first image of the same patient of the same source; without a patient its own row.

    Args:
        images: N dicts with `source`, and with `patient_id` where it is known.
    """
    first: dict[tuple[str, str], int] = {}
    clusters = [
        row if image.get("patient_id") is None else first.setdefault((image["source"], image["patient_id"]), row)
        for row, image in enumerate(images)
    ]
    return np.array(clusters, dtype=np.int64)


def _age_or_nan(years: float | None) -> float:
    """The age, or NaN where it is unknown."""
    return float("nan") if years is None else float(years)


def _study_phrase(example: Mapping[str, Any]) -> str:
    """What the image is, as captions name it."""
    return study_phrase(example["modality"], example.get("view"), example.get("anatomy"))


def _shown_findings(regions: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The findings that the image shows: those of its regions that are not negated."""
    return frozenset(region["finding"] for region in regions if not region["is_negated"])


def unique_texts(texts: Sequence[str], keys: Sequence[int]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(the distinct texts in order of appearance, (Q,) row of each item's text, (T,) canonical key of each text).

    Items are positives of each other when their keys are equal or their wording is: both relations are joined, and
    the smallest key of a joined group stands for it. So one wording never counts as its own negative.
    """
    row_of_text: dict[str, int] = {}
    rows = np.array([row_of_text.setdefault(text, len(row_of_text)) for text in texts], dtype=np.int64)
    parent: dict[int, int] = {int(key): int(key) for key in keys}

    def find(key: int) -> int:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    key_of_row: dict[int, int] = {}
    for row, key in zip(rows.tolist(), keys, strict=True):
        first, second = find(key_of_row.setdefault(row, int(key))), find(int(key))
        parent[max(first, second)] = min(first, second)
    canonical = np.array([find(key_of_row[row]) for row in range(len(row_of_text))], dtype=np.int64)
    return list(row_of_text), rows, canonical
