"""Robustness of region embeddings: how far they move when a box is drawn a little differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from regionmed_clip.eval.intervals import percentile_interval, resample_mean
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.measured import Measured, Stratum, iter_strata, skipped
from regionmed_clip.processing.corpus.box_noise import jitter_example

JITTER_PERCENTS = (10, 20)  # of a box's sides, by which each of its edges moves at most


def embed_jittered(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[int, np.ndarray]:
    """Percent -> (M, D) unit-length region embeddings of the split with boxes jittered by that much at most.

    The boxes depend on `seed` and the image's name alone, so that all models see the same. `examples` is gone through
    once for each percentage.
    """
    found = {}
    for percent in JITTER_PERCENTS:
        moved = (jitter_example(example, percent / 100, seed) for example in examples)
        split = embed_examples(model, processor, moved, batch_size=batch_size, device=device, progress=progress)
        found[percent] = split.region_embeds
    return found


def measure_robustness(embedded: EmbeddedSplit, jittered: Mapping[int, np.ndarray], *, seed: int = 0) -> list[Measured]:
    """`region_jitter_cosine@PERCENT` of every stratum: mean cosine of a region's embedding with its jittered one.

    The protocol holds the 10th percentile beside it. Images are resampled whole.
    """
    for embeds in jittered.values():
        if len(embeds) != embedded.num_regions:
            raise ValueError(
                f"{embedded.num_regions} regions were embedded exactly and {len(embeds)} with jitter; they must be the "
                "same ones. A geometry that crops loses regions at its rim: use geometry='pad'."
            )
    measured = []
    for stratum in iter_strata(embedded):
        is_query = stratum.is_member[embedded.region_image]
        for percent, embeds in jittered.items():
            measured.append(_mean_cosine(embedded, embeds, percent, stratum, is_query, seed))
    return measured


def _mean_cosine(
    embedded: EmbeddedSplit, embeds: np.ndarray, percent: int, stratum: Stratum, is_query: np.ndarray, seed: int
) -> Measured:
    """The mean cosine of the queries (M,) bool."""
    metric = f"region_jitter_cosine@{percent}"
    if not is_query.any():
        return skipped("robustness", metric, "no regions", n=0, stratum=stratum)
    cosines = (embedded.region_embeds[is_query].astype(np.float64) * embeds[is_query]).sum(axis=1)
    clusters = embedded.region_image[is_query]
    resampled = resample_mean(cosines, clusters, seed=seed)
    low, high = percentile_interval(resampled)
    return Measured(
        task="robustness",
        metric=metric,
        value=float(cosines.mean()),
        low=low,
        high=high,
        n=len(cosines),
        source=stratum.source,
        stratum=stratum.name,
        protocol={"jitter": f"every edge by at most {percent} % of its side", "p10": float(np.percentile(cosines, 10))},
        resampled=resampled,
        clusters=clusters,
    )
