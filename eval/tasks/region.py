"""Region tasks with given boxes: region -> text, text -> region, finding labels, and sensitivity to the box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import (
    percentile_interval,
    resample_mean_of_class_ratios,
    resample_median,
)
from regionmed_clip.eval.metrics.boxes import pairwise_iou
from regionmed_clip.eval.metrics.classification import balanced_accuracy
from regionmed_clip.eval.metrics.ranking import TIE_RULE, count_positives, nearest, ranks_of_first_positive
from regionmed_clip.eval.tasks.cases import measure_cases
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.in_image import measure_in_image
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata, skipped
from regionmed_clip.eval.tasks.retrieval import KS, MIN_UNIQUE_TEXTS, recall_figures, too_few_texts
from regionmed_clip.eval.tasks.strata import iter_region_strata
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs

MAX_PAIR_IOU = 0.3
NUM_WORST = 12


def measure_region(embedded: EmbeddedSplit, *, seed: int = 0, is_brief: bool = False) -> list[Measured]:
    """Every region figure of every stratum; strata choose the queries, the gallery is always the whole split's.

    Patients are resampled whole.

    Args:
        is_brief: without the choice inside an image, the similar cases and the strata of `strata.py`.
    """
    if not embedded.num_regions:
        whole = Stratum(None, None, np.ones(embedded.num_images, dtype=bool))
        return [skipped("region", "region_to_text_accuracy", "no regions in the split", n=0, stratum=whole)]
    is_correct = region_text_hits(embedded, embedded.region_embeds)
    measured = []
    for stratum in iter_strata(embedded):
        is_query = stratum.is_member[embedded.region_image]
        measured.append(region_accuracy_figure(embedded, is_correct, stratum, is_query, seed))
        if stratum.name is None and is_query.any():
            measured.extend(_text_to_region(embedded, stratum, is_query, seed))
        if is_query.any():
            measured.extend(_median_cosine(embedded, stratum, is_query, seed))
    measured.extend(_balanced_accuracies(embedded, seed))
    if not is_brief:
        measured.extend(measure_in_image(embedded, seed=seed))
        measured.extend(measure_cases(embedded, seed=seed))
        for part in iter_region_strata(embedded):
            stratum = Stratum(part.source, part.name, np.ones(embedded.num_images, dtype=bool))
            measured.append(region_accuracy_figure(embedded, is_correct, stratum, part.is_member, seed))
    return measured


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of the split under test, and the regions that are most surely given a false text."""
    measured = measure_region(inputs.embedded, seed=inputs.seed, is_brief=inputs.is_brief)
    return TaskFindings(measured=measured, details={} if inputs.is_brief else list_confusions(inputs.embedded))


def list_confusions(embedded: EmbeddedSplit) -> dict[str, Any]:
    """ "region_worst": rows of the NUM_WORST regions whose best false text leads the true one by most."""
    if not embedded.num_regions:
        return {}
    best = nearest(embedded.region_embeds, embedded.region_text_embeds)
    is_false = embedded.region_text_keys[best] != embedded.region_keys
    own = (embedded.region_embeds * embedded.region_text_embeds[embedded.region_text]).sum(axis=1)
    leads = (embedded.region_embeds * embedded.region_text_embeds[best]).sum(axis=1) - own
    rows = np.flatnonzero(is_false)
    rows = rows[np.argsort(-leads[rows], kind="stable")][:NUM_WORST]
    return {
        "region_worst": [
            {
                "image_id": embedded.image_ids[embedded.region_image[row]],
                "box_pixel_xyxy": embedded.region_boxes_pixel_xyxy[row].tolist(),
                "true_text": embedded.region_texts[embedded.region_text[row]],
                "chosen_text": embedded.region_texts[best[row]],
                "lead": float(leads[row]),
            }
            for row in rows.tolist()
        ]
    }


def region_text_hits(
    embedded: EmbeddedSplit, region_embeds: np.ndarray, regions: np.ndarray | None = None
) -> np.ndarray:
    """(M,) bool: of all unique region texts one that bears the region's key is nearest; a tie with another is a miss.

    Args:
        region_embeds: (M, D); or (m, D) of the `regions` (m,) int64 of the split alone, for (m,) hits.
    """
    keys = embedded.region_keys if regions is None else embedded.region_keys[regions]
    return ranks_of_first_positive(region_embeds, embedded.region_text_embeds, keys, embedded.region_text_keys) == 1


def region_accuracy_figure(
    embedded: EmbeddedSplit, is_correct: np.ndarray, stratum: Stratum, is_query: np.ndarray, seed: int
) -> Measured:
    """`region_to_text_accuracy` of the queries (M,) bool from the outcomes (M,) bool."""
    protocol = {**_gallery_protocol(embedded, len(embedded.region_texts)), "ties": TIE_RULE}
    if not is_query.any():
        return skipped("region", "region_to_text_accuracy", "no regions", n=0, stratum=stratum, **protocol)
    num_right = count_positives(embedded.region_keys[is_query], embedded.region_text_keys)
    protocol["chance"] = float(num_right.mean() / len(embedded.region_texts))
    return mean_figure(
        "region",
        "region_to_text_accuracy",
        is_correct[is_query],
        embedded.region_clusters[is_query],
        stratum=stratum,
        seed=seed,
        protocol=protocol,
    )


def _gallery_protocol(embedded: EmbeddedSplit, gallery: int) -> dict:
    """The protocol of a ranking over the split's region texts or regions."""
    protocol = {
        "gallery": gallery,
        "unique_texts": len(embedded.region_texts),
        "prompts_sha256": hash_texts(embedded.region_texts),
    }
    if embedded.num_regions_outside:
        protocol["regions_outside_frame"] = embedded.num_regions_outside
    return protocol


def _text_to_region(embedded: EmbeddedSplit, stratum: Stratum, is_query: np.ndarray, seed: int) -> list[Measured]:
    """`text_to_region_recall@k`: each unique text of the stratum against all regions of the split; none of too few."""
    texts = embedded.select_region_texts(is_query)
    protocol = {**_gallery_protocol(embedded, embedded.num_regions), "ties": TIE_RULE}
    if len(texts) < MIN_UNIQUE_TEXTS:
        reason = too_few_texts(len(texts))
        names = [f"text_to_region_recall@{k}" for k in KS]
        return [skipped("region", name, reason, n=len(texts), stratum=stratum, **protocol) for name in names]
    keys = embedded.region_text_keys[texts], embedded.region_keys
    ranks = ranks_of_first_positive(embedded.region_text_embeds[texts], embedded.region_embeds, *keys)
    common = {"stratum": stratum, "seed": seed, "protocol": protocol}
    return recall_figures("region", "text_to_region", ranks, count_positives(*keys), clusters=None, **common)


def iter_label_questions(embedded: EmbeddedSplit) -> Iterator[tuple[Stratum, np.ndarray, list[str]]]:
    """For every source: the stratum, its regions that show a finding (M,) bool, and the sorted findings among them."""
    region_sources = embedded.image_sources[embedded.region_image]
    for source in sorted(set(embedded.image_sources.tolist())):
        is_query = (region_sources == source) & ~embedded.region_is_negated
        labels = sorted(set(embedded.region_findings[is_query].tolist()))
        yield Stratum(source, None, embedded.image_sources == source), is_query, labels


def _balanced_accuracies(embedded: EmbeddedSplit, seed: int) -> Iterator[Measured]:
    """`region_balanced_accuracy` by finding for every source with at least two findings among its regions.

    The answer is the nearest finding, a tie is a miss; a finding is the mean embedding of its region texts in the
    source.
    """
    for stratum, is_query, labels in iter_label_questions(embedded):
        if len(labels) < 2:
            reason = f"{len(labels)} finding label{'s' * (len(labels) != 1)} in the split, two needed"
            yield skipped("region", "region_balanced_accuracy", reason, n=int(is_query.sum()), stratum=stratum)
            continue
        prototypes = []
        for label in labels:
            rows = embedded.select_region_texts(is_query & (embedded.region_findings == label))
            mean = embedded.region_text_embeds[rows].mean(axis=0)
            prototypes.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        truth = np.searchsorted(labels, embedded.region_findings[is_query])
        ranks = ranks_of_first_positive(
            embedded.region_embeds[is_query], np.stack(prototypes), truth, np.arange(len(labels))
        )
        figure = balanced_accuracy_figure(embedded, ranks == 1, stratum, is_query, seed)
        yield replace(figure, protocol={**figure.protocol, "ties": TIE_RULE})


def balanced_accuracy_figure(
    embedded: EmbeddedSplit, is_correct: np.ndarray, stratum: Stratum, is_query: np.ndarray, seed: int
) -> Measured:
    """`region_balanced_accuracy` of the outcomes (Q,) bool for the findings of the Q regions of `is_query` (M,)."""
    truth, clusters = embedded.region_findings[is_query], embedded.region_clusters[is_query]
    texts = {embedded.region_texts[row] for row in embedded.select_region_texts(is_query)}
    labels, counts = np.unique(truth, return_counts=True)
    resampled = resample_mean_of_class_ratios(is_correct, truth, clusters, seed=seed)
    low, high = percentile_interval(resampled)
    return Measured(
        task="region",
        metric="region_balanced_accuracy",
        value=balanced_accuracy(is_correct, truth),
        low=low,
        high=high,
        n=len(truth),
        source=stratum.source,
        protocol={
            "gallery": len(labels),
            "unique_texts": len(texts),
            "prompts_sha256": hash_texts(texts),
            "chance": 1.0 / len(labels),
            "labels": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
            "candidates": "per label the mean embedding of its region texts",
        },
        resampled=resampled,
        clusters=clusters,
    )


def _median_cosine(embedded: EmbeddedSplit, stratum: Stratum, is_query: np.ndarray, seed: int) -> list[Measured]:
    """`region_median_cosine`: how alike are two boxes of one image that mean different things; lower is better.

    Pairs: regions of one image with different text keys and an overlap (IoU) below MAX_PAIR_IOU. No pairs, no figure.
    """
    cosines, clusters = different_region_cosines(embedded, is_query)
    if not len(cosines):
        return []
    resampled = resample_median(cosines, clusters, seed=seed)
    low, high = percentile_interval(resampled)
    return [
        Measured(
            task="region",
            metric="region_median_cosine",
            value=float(np.sort(cosines)[(len(cosines) - 1) // 2]),
            low=low,
            high=high,
            n=len(cosines),
            source=stratum.source,
            stratum=stratum.name,
            protocol={"pairs": f"same image, different keys, IoU < {MAX_PAIR_IOU}", "lower_is_better": True},
            resampled=resampled,
            clusters=clusters,
        )
    ]


def different_region_cosines(embedded: EmbeddedSplit, is_query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((Q,) cosines, (Q,) clusters) of the pairs of chosen regions of one image: other meaning, low overlap."""
    keys = embedded.region_keys
    cosines, clusters = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    chosen = np.flatnonzero(is_query)
    for rows in np.split(chosen, np.flatnonzero(np.diff(embedded.region_image[chosen])) + 1):
        if len(rows) < 2 or len(set(keys[rows].tolist())) < 2:
            continue
        first, second = np.triu_indices(len(rows), k=1)
        boxes = embedded.region_boxes_pixel_xyxy[rows]
        is_pair = (keys[rows][first] != keys[rows][second]) & (pairwise_iou(boxes)[first, second] < MAX_PAIR_IOU)
        embeds = embedded.region_embeds[rows]
        cosines.append((embeds @ embeds.T)[first, second][is_pair])
        clusters.append(np.full(int(is_pair.sum()), embedded.region_clusters[rows[0]]))
    return np.concatenate(cosines), np.concatenate(clusters)
