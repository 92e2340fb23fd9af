"""Image-text retrieval without boxes, both ways, over the unique captions of the split."""

from __future__ import annotations

from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.ranking import (
    TIE_RULE,
    chance_of_hit,
    count_positives,
    ranks_of_first_positive,
    reciprocal_ranks,
)
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs

KS = (1, 5, 10)
MIN_UNIQUE_TEXTS = 20


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of the split under test; see `measure_retrieval`."""
    return TaskFindings(measured=measure_retrieval(inputs.embedded, seed=inputs.seed))


def measure_retrieval(embedded: EmbeddedSplit, *, seed: int = 0) -> list[Measured]:
    """`image_to_text_recall@k`, `text_to_image_recall@k` and `_mrr` of both, of every stratum with its own gallery.

    Queries: every image against the stratum's unique captions, and every unique caption against its images. An
    image's positives are all texts with its key, a text's positives all images with its key. Where images are the
    queries, those of a patient are resampled together. A stratum with fewer than MIN_UNIQUE_TEXTS unique captions gets
    no number.
    """
    measured = []
    for stratum in iter_strata(embedded):
        measured.extend(_measure_stratum(embedded, stratum, seed))
    return measured


def _measure_stratum(embedded: EmbeddedSplit, stratum: Stratum, seed: int) -> list[Measured]:
    """The figures of one stratum in both directions."""
    images = np.flatnonzero(stratum.is_member)
    texts = np.unique(embedded.image_caption[images])
    protocol = {
        "unique_texts": len(texts),
        "prompts_sha256": hash_texts(embedded.captions[row] for row in texts),
        "ties": TIE_RULE,
    }
    directions = {"image_to_text": (images, texts), "text_to_image": (texts, images)}
    if len(texts) < MIN_UNIQUE_TEXTS:
        reason = too_few_texts(len(texts))
        return [
            skipped("retrieval", metric, reason, n=len(queries), stratum=stratum, gallery=len(gallery), **protocol)
            for name, (queries, gallery) in directions.items()
            for metric in (*(f"{name}_recall@{k}" for k in KS), f"{name}_mrr")
        ]
    image_side = (embedded.image_embeds[images], embedded.image_keys[images], embedded.image_clusters[images])
    text_side = (embedded.caption_embeds[texts], embedded.caption_keys[texts], None)
    sides = {"image_to_text": (image_side, text_side), "text_to_image": (text_side, image_side)}
    measured = []
    for name, ((q_embeds, q_keys, clusters), (g_embeds, g_keys, _)) in sides.items():
        ranks = ranks_of_first_positive(q_embeds, g_embeds, q_keys, g_keys)
        common = {"stratum": stratum, "seed": seed, "protocol": {**protocol, "gallery": len(g_embeds)}}
        num_positives = count_positives(q_keys, g_keys)
        measured.extend(recall_figures("retrieval", name, ranks, num_positives, clusters=clusters, **common))
        measured.append(mean_figure("retrieval", f"{name}_mrr", reciprocal_ranks(ranks), clusters, **common))
    return measured


def too_few_texts(num_unique: int) -> str:
    """The reason why so few unique texts give no recall."""
    return f"{num_unique} unique text{'s' * (num_unique != 1)}, fewer than {MIN_UNIQUE_TEXTS}"


def recall_figures(
    task: str,
    direction: str,
    ranks: np.ndarray,
    num_positives: np.ndarray,
    *,
    clusters: np.ndarray | None,
    stratum: Stratum,
    seed: int,
    protocol: dict[str, Any],
) -> list[Measured]:
    """`<direction>_recall@k` for every k of KS; chance is that of a gallery in random order.

    Args:
        ranks: (Q,) int64 of the queries' first positives; num_positives: (Q,) int64 in the gallery, of
            `protocol["gallery"]` items.
        clusters: (Q,) int64, equal for queries that are resampled together; None: each is a cluster of its own.
    """
    galleries = np.full(len(ranks), protocol["gallery"])
    return [
        mean_figure(
            task,
            f"{direction}_recall@{k}",
            ranks <= k,
            clusters,
            stratum=stratum,
            seed=seed,
            protocol=protocol | {"chance": float(chance_of_hit(num_positives, galleries, k).mean())},
        )
        for k in KS
    ]
