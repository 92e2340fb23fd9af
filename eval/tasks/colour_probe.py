"""A control that sees no picture: a linear probe on the mean colour and the size of the box.

Where it does well, the region task can be solved by colour blobs; its figure stands in every table beside the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, iter_strata
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region import balanced_accuracy_figure, iter_label_questions, region_accuracy_figure

L2_PENALTY = 1e-4
FEATURES = "mean red, green, blue of the box in the model's frame, its width and height; standardised"


@dataclass(frozen=True)
class _Training:
    """Training regions of the probe: (M, 5) features, and for each region its text, key, source and finding."""

    features: np.ndarray
    texts: list[str]
    keys: list[int]
    sources: np.ndarray
    findings: np.ndarray  # "" for a negated one

    @classmethod
    def read(cls, processor: Any, examples: Iterable[Mapping[str, Any]], max_images: int, progress: bool) -> _Training:
        """The regions of the first `max_images` examples, each decoded once."""
        features, regions, sources = [np.zeros((0, 5), np.float32)], [], []
        bar = tqdm(desc="colour probe", unit="img", disable=not progress or None, leave=False)
        for example in islice(examples, max_images):
            prepared = PreparedExample.read(example, processor.image_processor, False)
            features.append(prepared.colour_size())
            regions.extend(prepared.regions)
            sources.extend([example["source"]] * len(prepared.regions))
            bar.update()
        bar.close()
        return cls(
            np.concatenate(features),
            [region["description"] for region in regions],
            [int(region["key"]) for region in regions],
            np.array(sources, dtype=str),
            np.array(["" if region["is_negated"] else region["finding"] for region in regions], dtype=str),
        )

    def keys_in_gallery(self, embedded: EmbeddedSplit) -> np.ndarray:
        """(M,) int64 canonical key of each region's text in the test gallery, -1 where it is not in it."""
        row_of_text = {text: row for row, text in enumerate(embedded.region_texts)}
        row_of_key = {int(key): row for row, key in enumerate(embedded.region_text_keys)}
        rows = [row_of_text.get(text, row_of_key.get(key, -1)) for text, key in zip(self.texts, self.keys, strict=True)]
        return np.array([embedded.region_text_keys[row] if row >= 0 else -1 for row in rows], dtype=np.int64)


def measure_colour_probe(
    processor: Any,
    train_examples: Iterable[Mapping[str, Any]],
    embedded: EmbeddedSplit,
    *,
    max_train_images: int = 3000,
    seed: int = 0,
    progress: bool = True,
) -> list[Measured]:
    """The probe's `region_to_text_accuracy` in every stratum and `region_balanced_accuracy` of every source.

    It may answer any text of the test gallery that occurs in training; for the labels a probe of its own is fitted on
    each source, every label weighing the same.
    """
    if not embedded.num_regions:
        return []
    training = _Training.read(processor, train_examples, max_train_images, progress)
    keys = training.keys_in_gallery(embedded)
    is_correct = np.zeros(embedded.num_regions, dtype=bool)
    if (keys >= 0).any():
        predicted = fit_and_predict(training.features[keys >= 0], keys[keys >= 0], embedded.region_colour_size)
        is_correct = predicted == embedded.region_keys
    measured = []
    for stratum in iter_strata(embedded):
        is_query = stratum.is_member[embedded.region_image]
        measured.append(region_accuracy_figure(embedded, is_correct, stratum, is_query, seed))
    measured.extend(_label_figures(training, embedded, seed))
    extra = {"features": FEATURES, "train_regions": len(keys), "classes": len(set(keys[keys >= 0].tolist()))}
    extra["ties"] = "of equal classes the first"
    return [replace(figure, protocol={**figure.protocol, **extra}) for figure in measured]


def _label_figures(training: _Training, embedded: EmbeddedSplit, seed: int) -> Iterator[Measured]:
    """`region_balanced_accuracy` of every source with at least two findings in the test split that training shows."""
    for stratum, is_query, labels in iter_label_questions(embedded):
        is_taught = (training.sources == stratum.source) & np.isin(training.findings, labels)
        if len(labels) < 2 or not is_taught.any():
            continue
        predicted = fit_and_predict(
            training.features[is_taught],
            training.findings[is_taught],
            embedded.region_colour_size[is_query],
            is_balanced=True,
        )
        is_correct = predicted == embedded.region_findings[is_query]
        yield balanced_accuracy_figure(embedded, is_correct, stratum, is_query, seed)


def fit_and_predict(
    features: np.ndarray, classes: np.ndarray, queries: np.ndarray, *, is_balanced: bool = False
) -> np.ndarray:
    """(Q,) classes that multinomial logistic regression predicts for `queries` (Q, F).

    Args:
        features: (M, F) float; standardised here by their own mean and deviation.
        classes: (M,) of any sortable values.
        is_balanced: every class weighs the same in the loss, however often it occurs.

    The fit is convex: zero start, full-batch L-BFGS in float64, penalty L2_PENALTY on the weights.
    """
    names, targets, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if len(names) == 1:
        return np.full(len(queries), names[0])
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-8
    inputs = torch.from_numpy((features - mean) / deviation).double()
    labels = torch.from_numpy(targets).long()
    shares = torch.from_numpy(len(targets) / (len(names) * counts)) if is_balanced else None
    weight = torch.zeros(features.shape[1], len(names), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weight + bias, labels, weight=shares)
        loss = loss + L2_PENALTY * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    logits = torch.from_numpy((queries - mean) / deviation).double() @ weight.detach() + bias.detach()
    return names[logits.argmax(dim=1).numpy()]
