"""Where a model errs: which findings it takes for which, its worst regions and its worst images, from embeddings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.ranking import nearest
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit

MAX_LABELS = 16  # of a confusion matrix; the rarest beyond share one row
OTHER = "other findings"
_CHUNK = 4_000_000  # scores held at once


@dataclass(frozen=True)
class Error:
    """A query that the model gets wrong: rows of the query, of its best true answer and of what was chosen instead.

    `margin` is the cosine of the chosen answer minus that of the best true one; `rank` that of the best true answer.
    """

    query: int
    truth: int
    chosen: int
    margin: float
    rank: int


def worst_errors(
    query_embeds: np.ndarray,
    gallery_embeds: np.ndarray,
    query_keys: np.ndarray,
    gallery_keys: np.ndarray,
    count: int,
) -> list[Error]:
    """The `count` queries whose best wrong answer leads the best true one by most, widest margin first.

    Args:
        query_embeds: (Q, D); gallery_embeds: (G, D); the score is their inner product. Equal keys are true answers.
            Queries without any true answer in the gallery are left out.
    """
    errors: list[Error] = []
    step = max(1, _CHUNK // max(len(gallery_embeds), 1))
    for start in range(0, len(query_embeds), step):
        scores = query_embeds[start : start + step] @ gallery_embeds.T  # (q, G)
        is_true = query_keys[start : start + step, None] == gallery_keys[None, :]
        true_scores, false_scores = np.where(is_true, scores, -np.inf), np.where(is_true, -np.inf, scores)
        truth, chosen = true_scores.argmax(axis=1), false_scores.argmax(axis=1)
        rows = np.arange(len(scores))
        margins = false_scores[rows, chosen] - true_scores[rows, truth]
        ranks = 1 + (false_scores >= true_scores[rows, truth][:, None]).sum(axis=1)
        is_error = is_true.any(axis=1) & (margins >= 0) & np.isfinite(margins)
        errors += [
            Error(start + int(row), int(truth[row]), int(chosen[row]), float(margins[row]), int(ranks[row]))
            for row in np.flatnonzero(is_error)
        ]
        errors = sorted(errors, key=lambda error: (-error.margin, error.query))[:count]
    return errors


def worst_regions(embedded: EmbeddedSplit, count: int) -> list[Error]:
    """The worst regions in region -> text, at most one an image and one a true text, so that they differ."""
    errors = worst_errors(
        embedded.region_embeds, embedded.region_text_embeds, embedded.region_keys, embedded.region_text_keys, 50 * count
    )
    chosen: list[Error] = []
    seen: set[tuple[str, int]] = set()
    for error in errors:
        marks = {("image", int(embedded.region_image[error.query])), ("key", int(embedded.region_keys[error.query]))}
        if len(chosen) < count and seen.isdisjoint(marks):
            chosen.append(error)
            seen |= marks
    return chosen


def worst_images(embedded: EmbeddedSplit, count: int) -> list[Error]:
    """The worst images in image -> text, among all captions of the split."""
    return worst_errors(
        embedded.image_embeds, embedded.caption_embeds, embedded.image_keys, embedded.caption_keys, count
    )


def confusion_by_source(embedded: EmbeddedSplit) -> dict[str, dict[str, Any]]:
    """Source -> {"labels", "counts", "rows", "columns"}: the finding of a region by that of its nearest region text.

    The text's finding is the commonest among the regions that bear it. Negated regions, and sources with one finding,
    are left out. `counts[i][j]`: regions of label i read as label j.
    """
    if not embedded.num_regions:
        return {}
    finding_of_text = _findings_of_texts(embedded)
    best = nearest(embedded.region_embeds, embedded.region_text_embeds)
    sources = embedded.image_sources[embedded.region_image]
    matrices = {}
    for source in sorted(set(sources.tolist())):
        is_query = (sources == source) & ~embedded.region_is_negated
        truth, read = embedded.region_findings[is_query], finding_of_text[best[is_query]]
        if len(set(truth.tolist())) > 1:
            matrices[f"findings confused, {source}"] = confusion(truth.tolist(), read.tolist())
    return matrices


def confusion(truth: list[str], read: list[str]) -> dict[str, Any]:
    """The counts of (true, read) label pairs, labels by frequency of the truth; rare ones joined as OTHER."""
    counts = Counter(truth)
    order = sorted({*truth, *read}, key=lambda label: (-counts[label], label))
    labels = order if len(order) <= MAX_LABELS else [*order[: MAX_LABELS - 1], OTHER]
    place = {label: min(row, len(labels) - 1) for row, label in enumerate(order)}
    table = np.zeros((len(labels), len(labels)), dtype=int)
    for true_label, read_label in zip(truth, read, strict=True):
        table[place[true_label], place[read_label]] += 1
    return {"labels": labels, "counts": table.tolist(), "rows": "the true finding", "columns": "what the model reads"}


def _findings_of_texts(embedded: EmbeddedSplit) -> np.ndarray:
    """(U,) str: the commonest finding of the regions that bear each region text."""
    votes: list[Counter[str]] = [Counter() for _ in embedded.region_texts]
    for text, finding in zip(embedded.region_text.tolist(), embedded.region_findings.tolist(), strict=True):
        votes[text][finding] += 1
    return np.array([vote.most_common(1)[0][0] if vote else "" for vote in votes], dtype=str)
