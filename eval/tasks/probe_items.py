"""What a probe learns and answers: frozen embeddings of images or regions, each with one label among its group's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.questions import ClassQuestion


@dataclass(frozen=True)
class ProbeItems:
    """M items with one label each; a probe is fitted and asked within a group: a source, or a modality of it.

    Attributes:
        features: (M, D) float32. groups, labels: (M,) str. images: (M,) int64 row of each item's image.
        names: (M,) str, what an item is called in every run and for every model; draws go by them.
        clusters: (M,) int64 patients.
    """

    features: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    names: np.ndarray
    clusters: np.ndarray

    def __len__(self) -> int:
        """M."""
        return len(self.labels)

    def take(self, rows: np.ndarray) -> ProbeItems:
        """The items of `rows`, int64 rows or (M,) bool."""
        columns = self.features, self.groups, self.labels, self.images, self.names, self.clusters
        return ProbeItems(*(column[rows] for column in columns))

    def classes(self) -> np.ndarray:
        """(M,) str: group and label, which together tell the classes of all groups apart."""
        return np.char.add(np.char.add(self.groups, "\n"), self.labels)


def image_items(embedded: EmbeddedSplit, questions: Sequence[ClassQuestion]) -> ProbeItems:
    """The images that single-label questions ask for, in any split; the group is the question's name."""
    asked = [question.asked_of(embedded) for question in questions]
    rows = np.concatenate([np.zeros(0, np.int64), *(question.images for question in asked)])
    labels = [question.labels[index] for question in asked for index in question.truth]
    return ProbeItems(
        features=embedded.image_embeds[rows],
        groups=np.array([question.name for question in asked for _ in question.images], dtype=str),
        labels=np.array(labels, dtype=str),
        images=rows,
        names=np.array([embedded.image_ids[row] for row in rows], dtype=str),
        clusters=embedded.image_clusters[rows],
    )


def region_items(embedded: EmbeddedSplit, labels_of: dict[str, list[str]]) -> ProbeItems:
    """The regions that show, and do not deny, one of the findings `labels_of` their source; the group is the source."""
    sources = embedded.image_sources[embedded.region_image]
    is_taken = np.zeros(embedded.num_regions, dtype=bool)
    for source, labels in labels_of.items():
        is_taken |= (sources == source) & np.isin(embedded.region_findings, labels)
    rows = np.flatnonzero(is_taken & ~embedded.region_is_negated)
    images = embedded.region_image[rows]
    names = [
        f"{embedded.image_ids[image]}\n{embedded.region_boxes_pixel_xyxy[row].tolist()}"
        for row, image in zip(rows, images, strict=True)
    ]
    return ProbeItems(
        features=embedded.region_embeds[rows],
        groups=sources[rows],
        labels=embedded.region_findings[rows],
        images=images,
        names=np.array(names, dtype=str),
        clusters=embedded.region_clusters[rows],
    )


def draw_shots(items: ProbeItems, shots: int, draw: int, seed: int) -> ProbeItems:
    """At most `shots` items of every class, of different images as far as there are; equal for equal seed and draw.

    The choice goes by the hash of the items' names, so it does not depend on their order or on the model.
    """
    order = np.argsort([_hash(f"{seed}\n{draw}\n{name}") for name in items.names], kind="stable")
    classes = items.classes()[order]
    chosen = []
    for name in np.unique(classes):
        rows = order[classes == name]
        _, first = np.unique(items.images[rows], return_index=True)
        is_first = np.zeros(len(rows), dtype=bool)
        is_first[first] = True
        chosen.append(np.concatenate([rows[is_first], rows[~is_first]])[:shots])
    return items.take(np.concatenate([np.zeros(0, np.int64), *chosen]))


def thin_items(items: ProbeItems, most: int) -> ProbeItems:
    """At most `most` items, those with the smallest hashes of their names."""
    if len(items) <= most:
        return items
    order = np.argsort([_hash(name) for name in items.names], kind="stable")
    return items.take(np.sort(order[:most]))


def _hash(text: str) -> int:
    """A 64-bit hash, equal in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
