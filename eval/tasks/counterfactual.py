"""Does an embedding tell a true text from the same text made false in one respect? Regions, and images as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.ranking import even_products
from regionmed_clip.eval.tasks.counterfactual_texts import (
    CHANGES,
    TextPairs,
    false_texts,
    list_image_pairs,
    list_region_pairs,
)
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs

POSITION_CHANGES = ("place", "laterality")
TIE_RULE = "a tie is a miss"
NUM_WORST = 12


@dataclass(frozen=True)
class CounterfactualHits:
    """Outcomes of Q regions: (Q,) bool, whether the true text beats all others; their images; candidates of each."""

    is_correct: np.ndarray
    images: np.ndarray  # (Q,) int64, row of the region's image
    num_candidates: np.ndarray  # (Q,) int64, the true text included

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return float((1 / self.num_candidates).mean())


@dataclass(frozen=True)
class ScoredPairs:
    """P pairs with the outcome of each: (P,) bool, the true text scores higher; (P,) int64 clusters."""

    pairs: TextPairs
    is_won: np.ndarray
    margins: np.ndarray  # (P,) float64 cosine with the true text less that with the false one
    images: np.ndarray  # (P,) int64
    clusters: np.ndarray


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of regions under `region_reading` and of whole images; one patient's are resampled together.

    `counterfactual_pair_accuracy`: share of pairs of a true and a false text of a region in which the true one is
    nearer, of all kinds of change and of each: `_laterality`, `_place`, `_size`, `_severity`, `_negation`, `_finding`.
    `counterfactual_accuracy` and `_<change>`: share of regions whose true text beats all its false ones.
    `counterfactual_pair_accuracy_normality`: whole images, box-free, "normal" against a finding.
    `place_accuracy` and `laterality_accuracy`: as `counterfactual_accuracy_<change>` with none but texts of the split.
    """
    embedded = inputs.embedded
    regions = score_pairs(
        list_region_pairs(embedded), embedded.region_embeds, embedded.region_image, embedded, inputs.encode
    )
    every_image = np.arange(embedded.num_images)
    images = score_pairs(
        list_image_pairs(embedded, seed=inputs.seed), embedded.image_embeds, every_image, embedded, inputs.encode
    )
    measured = [*_of_regions(embedded, regions, inputs.seed), *_of_images(embedded, images, inputs.seed)]
    measured += [_position_accuracy(embedded, changed, inputs.seed) for changed in POSITION_CHANGES]
    return TaskFindings(measured=measured, details=_details(embedded, regions))


def score_pairs(
    pairs: TextPairs,
    embeds: np.ndarray,
    image_of_row: np.ndarray,
    embedded: EmbeddedSplit,
    encode: Callable[[Sequence[str]], np.ndarray],
) -> ScoredPairs:
    """The pairs with their outcomes.

    Args:
        embeds: (M, D) unit embeddings of what the pairs' rows name, regions or images; image_of_row: (M,) int64.
        encode: texts -> (T, D) unit embeddings; called once, with every distinct text.
    """
    texts = sorted({*pairs.true_texts, *pairs.false_texts})
    row_of_text = {text: row for row, text in enumerate(texts)}
    margins = np.zeros(len(pairs.rows))
    if texts:
        text_embeds = encode(texts).astype(np.float64)
        true_rows = np.array([row_of_text[text] for text in pairs.true_texts])
        false_rows = np.array([row_of_text[text] for text in pairs.false_texts])
        step = 65536  # pairs at once
        for start in range(0, len(margins), step):
            part = slice(start, start + step)
            difference = text_embeds[true_rows[part]] - text_embeds[false_rows[part]]  # (p, D)
            margins[part] = np.einsum("pd,pd->p", difference, embeds[pairs.rows[part]])
    images = image_of_row[pairs.rows]
    return ScoredPairs(pairs, margins > 0, margins, images, embedded.image_clusters[images])


def _of_regions(embedded: EmbeddedSplit, scored: ScoredPairs, seed: int) -> Iterator[Measured]:
    """Pair accuracy and accuracy of every stratum with pairs; by kind of change for the whole and for sources."""
    known = set(embedded.region_texts)
    pairs = scored.pairs
    is_known = np.array(
        [t in known and f in known for t, f in zip(pairs.true_texts, pairs.false_texts, strict=True)], dtype=bool
    )
    for stratum in iter_strata(embedded):
        is_asked = stratum.is_member[scored.images]
        if stratum.source is not None and not is_asked.any():
            continue
        yield from _pair_figures(scored, is_asked, is_known, "", stratum, seed)
        if stratum.name is None:
            for change in CHANGES:
                is_of = is_asked & (pairs.changes == change)
                if stratum.source is not None and not is_of.any():
                    continue
                yield from _pair_figures(scored, is_of, is_known, f"_{change}", stratum, seed)


def _pair_figures(
    scored: ScoredPairs, is_asked: np.ndarray, is_known: np.ndarray, suffix: str, stratum: Stratum, seed: int
) -> Iterator[Measured]:
    """`counterfactual_pair_accuracy` and `counterfactual_accuracy` of the pairs `is_asked` (P,) bool."""
    protocol = _pair_protocol(scored, is_asked) | {"of": "the region's embedding"}
    of_the_model: dict[str, Any] = {
        "in_split": _part(scored, is_asked & is_known, "both texts are region texts of the split")
    }
    changes, counts = np.unique(scored.pairs.changes[is_asked], return_counts=True)
    if len(changes) > 1:
        protocol["pairs"] = dict(zip(changes.tolist(), counts.tolist(), strict=True))
        means = [float(scored.is_won[is_asked & (scored.pairs.changes == change)].mean()) for change in changes]
        of_the_model["mean_of_changes"] = round(float(np.mean(means)), 4)
    protocol["of_the_model"] = of_the_model
    common = {"stratum": stratum, "seed": seed, "nothing": "no region text can be made false in this respect"}
    yield mean_figure(
        "counterfactual",
        f"counterfactual_pair_accuracy{suffix}",
        scored.is_won[is_asked],
        scored.clusters[is_asked],
        protocol={**protocol, "gallery": 2, "chance": 0.5},
        **common,
    )
    is_won, rows, sizes = _all_of_row(scored, is_asked)
    chance = float((1 / (sizes + 1)).mean()) if len(sizes) else None
    yield mean_figure(
        "counterfactual",
        f"counterfactual_accuracy{suffix}",
        is_won,
        scored.clusters[rows],
        protocol={**protocol, "chance": chance, "candidates": "the true text and all its false ones"},
        **common,
    )


def _all_of_row(scored: ScoredPairs, is_asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every region with pairs: (Q,) bool, all are won; (Q,) int64 its first pair; (Q,) int64 how many."""
    chosen = np.flatnonzero(is_asked)
    if not len(chosen):
        return np.zeros(0, dtype=bool), chosen, chosen
    _, starts, sizes = np.unique(scored.pairs.rows[chosen], return_index=True, return_counts=True)
    return np.logical_and.reduceat(scored.is_won[chosen], starts), chosen[starts], sizes


def _pair_protocol(scored: ScoredPairs, is_asked: np.ndarray) -> dict[str, Any]:
    """What the figures of these pairs have in common."""
    rows = np.flatnonzero(is_asked)
    texts = {scored.pairs.true_texts[row] for row in rows} | {scored.pairs.false_texts[row] for row in rows}
    return {"unique_texts": len(texts), "prompts_sha256": hash_texts(texts), "ties": TIE_RULE}


def _part(scored: ScoredPairs, is_part: np.ndarray, what: str) -> dict[str, Any]:
    """The pair accuracy of a part of the pairs, for a protocol."""
    num = int(is_part.sum())
    return {"where": what, "n": num, "value": round(float(scored.is_won[is_part].mean()), 4) if num else None}


def _of_images(embedded: EmbeddedSplit, scored: ScoredPairs, seed: int) -> Iterator[Measured]:
    """`counterfactual_pair_accuracy_normality` of every stratum with such images."""
    has_findings = np.array([bool(embedded.image_findings[row]) for row in scored.images], dtype=bool)
    for stratum in iter_strata(embedded):
        is_asked = stratum.is_member[scored.images]
        if stratum.source is not None and not is_asked.any():
            continue
        yield mean_figure(
            "counterfactual",
            "counterfactual_pair_accuracy_normality",
            scored.is_won[is_asked],
            scored.clusters[is_asked],
            stratum=stratum,
            seed=seed,
            protocol=_pair_protocol(scored, is_asked)
            | {
                "gallery": 2,
                "chance": 0.5,
                "of": "the box-free image embedding",
                "of_the_model": {
                    "abnormal": _part(scored, is_asked & has_findings, "the image has an abnormal finding"),
                    "normal": _part(scored, is_asked & ~has_findings, "the caption says that the image is normal"),
                },
            },
            nothing="no image is surely normal or surely not",
        )


def _position_accuracy(embedded: EmbeddedSplit, changed: str, seed: int) -> Measured:
    """`place_accuracy` or `laterality_accuracy` of the whole split."""
    whole = Stratum(None, None, np.ones(embedded.num_images, dtype=bool))
    hits = counterfactual_hits(embedded, embedded.region_facts, changed)
    protocol: dict[str, Any] = {
        "unique_texts": len(embedded.region_texts),
        "prompts_sha256": hash_texts(embedded.region_texts),
        "ties": TIE_RULE,
        "candidates": f"the region's text and those of the split that differ from it in {changed} alone",
    }
    outcomes, images = np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64)
    if hits is not None:
        outcomes, images = hits.is_correct, hits.images
        protocol["chance"] = hits.chance
    return mean_figure(
        "counterfactual",
        f"{changed}_accuracy",
        outcomes,
        embedded.image_clusters[images],
        stratum=whole,
        seed=seed,
        protocol=protocol,
        nothing=f"no two region texts of the split differ in {changed} alone",
    )


def counterfactual_hits(
    embedded: EmbeddedSplit, regions: Sequence[Mapping[str, Any]], changed: str
) -> CounterfactualHits | None:
    """Outcomes of all regions that have a counterfactual text among the region texts of the split; None if none has.

    Only texts of the split compete: none is beaten because training had no such words. A tie is a miss.

    Args:
        embedded: the split; regions: its M regions in order, as the examples have them.
        changed: one of POSITION_CHANGES, or another of CHANGES.
    """
    if len(regions) != embedded.num_regions:
        raise ValueError(
            f"{len(regions)} regions for {embedded.num_regions} embedded ones; every region must lie inside the frame "
            "of the model. Use a processor whose geometry pads."
        )
    row_of_text = {text: row for row, text in enumerate(embedded.region_texts)}
    queries, hits, sizes = [], [], []
    for index, region in enumerate(regions):
        others = [row_of_text[text] for text in false_texts(region, changed) if text in row_of_text]
        if others:
            rows = [int(embedded.region_text[index]), *others]
            scores = even_products(embedded.region_embeds[[index]], embedded.region_text_embeds[rows])[0]
            queries.append(index)
            hits.append(bool(scores[0] > scores[1:].max()))
            sizes.append(len(scores))
    if not queries:
        return None
    return CounterfactualHits(np.array(hits), embedded.region_image[queries], np.array(sizes))


def _details(embedded: EmbeddedSplit, scored: ScoredPairs) -> dict[str, Any]:
    """ "counterfactual_worst": the pairs that are lost by the widest margin, one a region."""
    order = np.argsort(scored.margins, kind="stable")
    _, firsts = np.unique(scored.pairs.rows[order], return_index=True)
    worst = order[np.sort(firsts)][:NUM_WORST]
    return {
        "counterfactual_worst": [
            {
                "image_id": embedded.image_ids[scored.images[row]],
                "box_pixel_xyxy": embedded.region_boxes_pixel_xyxy[scored.pairs.rows[row]].tolist(),
                "changed": str(scored.pairs.changes[row]),
                "true_text": scored.pairs.true_texts[row],
                "false_text": scored.pairs.false_texts[row],
                "margin": float(scored.margins[row]),
            }
            for row in worst.tolist()
            if not scored.is_won[row]
        ]
    }
