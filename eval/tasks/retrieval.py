"""Image-text retrieval without boxes, both ways, over the unique captions of the split."""

from __future__ import annotations

import numpy as np

from regionmed_clip.eval.intervals import percentile_interval, resample_mean
from regionmed_clip.eval.metrics.ranking import TIE_RULE, ranks_of_first_positive, recall_at_k
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped

KS = (1, 5, 10)
MIN_UNIQUE_TEXTS = 20


def measure_retrieval(embedded: EmbeddedSplit, *, seed: int = 0) -> list[Measured]:
    """`image_to_text_recall@k` and `text_to_image_recall@k` of every stratum, each with its own gallery.

    Queries: every image against the stratum's unique captions, and every unique caption against its images. An
    image's positives are all texts with its key, a text's positives all images with its key. A stratum with fewer than
    MIN_UNIQUE_TEXTS unique captions gets no number.
    """
    measured = []
    for stratum in iter_strata(embedded):
        measured.extend(_measure_stratum(embedded, stratum, seed))
    return measured


def _measure_stratum(embedded: EmbeddedSplit, stratum: Stratum, seed: int) -> list[Measured]:
    """The recalls of one stratum in both directions."""
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
            skipped(
                "retrieval", f"{name}_recall@{k}", reason, n=len(q), stratum=stratum, gallery=len(gallery), **protocol
            )
            for name, (q, gallery) in directions.items()
            for k in KS
        ]
    image_side = (embedded.image_embeds[images], embedded.image_keys[images])
    text_side = (embedded.caption_embeds[texts], embedded.caption_keys[texts])
    sides = {"image_to_text": (image_side, text_side), "text_to_image": (text_side, image_side)}
    measured = []
    for name, ((q_embeds, q_keys), (g_embeds, g_keys)) in sides.items():
        ranks = ranks_of_first_positive(q_embeds, g_embeds, q_keys, g_keys)
        measured.extend(recall_figures("retrieval", name, ranks, stratum, seed, {**protocol, "gallery": len(g_embeds)}))
    return measured


def too_few_texts(num_unique: int) -> str:
    """The reason why so few unique texts give no recall."""
    return f"{num_unique} unique text{'s' * (num_unique != 1)}, fewer than {MIN_UNIQUE_TEXTS}"


def recall_figures(
    task: str, direction: str, ranks: np.ndarray, stratum: Stratum, seed: int, protocol: dict
) -> list[Measured]:
    """`<direction>_recall@k` for every k of KS from the ranks (Q,) of the queries' first positives."""
    figures = []
    for k in KS:
        hits = ranks <= k
        resampled = resample_mean(hits, seed=seed)
        low, high = percentile_interval(resampled)
        figures.append(
            Measured(
                task=task,
                metric=f"{direction}_recall@{k}",
                value=recall_at_k(ranks, k),
                low=low,
                high=high,
                n=len(ranks),
                source=stratum.source,
                stratum=stratum.name,
                protocol=protocol,
                resampled=resampled,
                clusters=np.arange(len(ranks)),
            )
        )
    return figures
