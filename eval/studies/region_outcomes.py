"""What a study keeps of one evaluated model: the outcome of every region, under exact and under noisy boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regionmed_clip.eval.metrics.boxes import pairwise_iou
from regionmed_clip.eval.studies.trainings import write_json
from regionmed_clip.eval.tasks.counterfactual import POSITION_CHANGES, counterfactual_hits
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.measured import hash_texts
from regionmed_clip.eval.tasks.region import region_text_hits
from regionmed_clip.processing.corpus.box_noise import jitter_example

BOXES = ("exact", "noisy")
Examples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one model: the outcomes (0 or 1) of its Q regions and the row of each one's image.

    Attributes:
        metric: "region_to_text_accuracy" among all region texts of the split; "place_accuracy" and
            "laterality_accuracy" among the text and its counterfactuals.
        boxes: one of BOXES.
        gallery: candidates of a region, None where their number differs; chance: expected accuracy of guessing.
    """

    metric: str
    boxes: str
    outcomes: list[int]
    images: list[int]
    gallery: int | None
    unique_texts: int
    prompts_sha256: str
    chance: float

    @property
    def accuracy(self) -> float:
        """The mean outcome."""
        return sum(self.outcomes) / len(self.outcomes)


@dataclass(frozen=True, kw_only=True)
class RegionOutcomes:
    """Everything measured of one trained model; a file of its own, so that a study goes on where it stopped."""

    mode: str
    seed: int
    box_noise: float  # of the noisy boxes of the evaluation
    noisy_iou: float  # mean overlap of a noisy box with the exact one
    model_revision: str
    data_revision: str
    split: str
    split_sha256: str
    training: dict[str, Any]
    figures: list[Figure]

    def write(self, path: Path) -> None:
        """None; `path` then holds the outcomes, whole or not at all."""
        write_json(path, asdict(self))

    def in_short(self) -> str:
        """The accuracies in a line."""
        return ", ".join(f"{f.metric} {f.boxes} {f.accuracy:.3f}" for f in self.figures)

    @classmethod
    def read(cls, path: Path) -> RegionOutcomes:
        """The outcomes of a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "figures": [Figure(**figure) for figure in values["figures"]]})


def measure_figures(
    model: Any,
    processor: Any,
    examples: Examples,
    *,
    reading: str,
    box_noise: float,
    seed: int,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> list[Figure]:
    """The figures of a model on the examples, under exact boxes and under boxes with noise of the given share.

    Args:
        examples: encoded or decoded; gone through twice.
        reading: how regions are read, see `embed_examples`.
        seed: of the noise: equal seeds give all models the same noisy boxes.
    """
    figures = []
    for boxes in BOXES:
        shown = examples if boxes == "exact" else jitter_all(examples, box_noise, seed)
        embedded = embed_examples(
            model, processor, shown, region_reading=reading, batch_size=batch_size, device=device, progress=progress
        )
        figures.extend(figures_of(embedded, [region for example in shown for region in example["regions"]], boxes))
    return figures


def figures_of(embedded: EmbeddedSplit, regions: Sequence[Mapping[str, Any]], boxes: str) -> list[Figure]:
    """The figures of an embedded split whose M regions are `regions`; counterfactual ones where there are any."""
    texts = embedded.region_texts
    shared = {"boxes": boxes, "unique_texts": len(texts), "prompts_sha256": hash_texts(texts)}
    figures = [
        Figure(
            metric="region_to_text_accuracy",
            outcomes=region_text_hits(embedded, embedded.region_embeds).astype(int).tolist(),
            images=embedded.region_image.tolist(),
            gallery=len(texts),
            chance=1 / len(texts),
            **shared,
        )
    ]
    for changed in POSITION_CHANGES:
        hits = counterfactual_hits(embedded, regions, changed)
        if hits is not None:
            figures.append(
                Figure(
                    metric=f"{changed}_accuracy",
                    outcomes=hits.is_correct.astype(int).tolist(),
                    images=hits.images.tolist(),
                    gallery=None,
                    chance=hits.chance,
                    **shared,
                )
            )
    return figures


def jitter_all(examples: Examples, box_noise: float, seed: int) -> list[dict[str, Any]]:
    """The examples with noise on all boxes."""
    return [jitter_example(example, box_noise, seed) for example in examples]


def mean_noisy_iou(examples: Examples, box_noise: float, seed: int) -> float:
    """Mean intersection over union of the noisy boxes with the exact ones."""
    ious = []
    for example, noisy in zip(examples, jitter_all(examples, box_noise, seed), strict=True):
        for region, moved in zip(example["regions"], noisy["regions"], strict=True):
            ious.append(float(pairwise_iou(np.array([region["box"], moved["box"]]))[0, 1]))
    return float(np.mean(ious))
