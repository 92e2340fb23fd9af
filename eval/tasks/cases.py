"""Similar cases: this box of this image and its text, and which other images show the like, no box of theirs given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.ranking import TIE_RULE, chance_of_hit, chance_of_precision, even_products
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum, hash_texts, iter_strata
from regionmed_clip.eval.tasks.region_facts import facts_of
from regionmed_clip.eval.tasks.retrieval import KS
from regionmed_clip.processing.corpus.entailment import Facts

_SCORES_AT_ONCE = 4_000_000
SAME_PLACE = "_same_place"
LIKENESS = {  # suffix of the metric -> what makes an image a similar case
    "": "an image of another patient with a region of equal finding",
    SAME_PLACE: "an image of another patient with a region of equal finding, side and place",
}


@dataclass(frozen=True)
class CaseRanks:
    """Outcomes of Q queries with at least one similar case.

    Attributes:
        regions: (Q,) int64 row of the query. first_ranks: (Q,) int64 rank of the first similar case.
        average_precisions: (Q,) float64. num_positives, gallery: (Q,) int64; images of other patients among which so
            many are similar.
    """

    regions: np.ndarray
    first_ranks: np.ndarray
    average_precisions: np.ndarray
    num_positives: np.ndarray
    gallery: np.ndarray


def measure_cases(embedded: EmbeddedSplit, *, seed: int = 0) -> Iterator[Measured]:
    """`case_recall@k` and `case_mean_average_precision`, and both `_same_place`, of the whole split and of sources.

    A query is a region that is not negated: the sum of the unit embeddings of its box and of its text. The gallery is
    all images of other patients, by their box-free embeddings. The protocol has the same figure by the box and by the
    text alone. Queries without a similar case are left out and counted; for the same place, so are those that state
    neither side nor place.
    """
    facts = [facts_of(region) for region in embedded.region_facts]
    is_placed = np.array([bool(fact.side or fact.place) for fact in facts], dtype=bool)
    for suffix, is_query in (("", ~embedded.region_is_negated), (SAME_PLACE, is_placed & ~embedded.region_is_negated)):
        queries = np.flatnonzero(is_query)
        text_embeds = embedded.region_text_embeds[embedded.region_text[queries]]
        box_embeds = embedded.region_embeds[queries]
        shows, meanings = similar_images(embedded, facts, has_place=bool(suffix))
        ranked = {
            name: rank_cases(embedded, queries, embeds, shows, meanings[queries])
            for name, embeds in (("both", box_embeds + text_embeds), ("box", box_embeds), ("text", text_embeds))
        }
        for stratum in (one for one in iter_strata(embedded) if one.name is None):
            is_asked = stratum.is_member[embedded.region_image[ranked["both"].regions]]
            if stratum.source is None or is_asked.any():
                num_queries = int(stratum.is_member[embedded.region_image[queries]].sum())
                yield from _of_stratum(embedded, ranked, suffix, stratum, is_asked, num_queries, seed)


def _of_stratum(
    embedded: EmbeddedSplit,
    ranked: dict[str, CaseRanks],
    suffix: str,
    stratum: Stratum,
    is_asked: np.ndarray,
    num_queries: int,
    seed: int,
) -> Iterator[Measured]:
    """The figures of the ranked queries `is_asked` (Q,) bool, of `num_queries` with or without a similar case."""
    asked = ranked["both"].regions[is_asked]
    texts = [embedded.region_texts[row] for row in np.unique(embedded.region_text[asked])]
    protocol = {
        "gallery": embedded.num_images,
        "unique_texts": len(texts),
        "prompts_sha256": hash_texts(texts),
        "query": "unit embeddings of box and text, added",
        "positives": LIKENESS[suffix],
        "queries_without_positive": num_queries - len(asked),
        "ties": TIE_RULE,
    }
    for metric, outcomes, chances in _figures_of(ranked, suffix):
        known: dict[str, Any] = {}
        if len(asked):
            alone = {f"by_{name}_alone": round(float(outcomes[name][is_asked].mean()), 4) for name in ("box", "text")}
            known = {"of_the_model": alone, "chance": float(chances[is_asked].mean())}
        yield mean_figure(
            "region",
            metric,
            outcomes["both"][is_asked],
            embedded.region_clusters[asked],
            stratum=stratum,
            seed=seed,
            protocol=protocol | known,
            nothing="no region of which another patient has a similar case",
        )


def _figures_of(ranked: dict[str, CaseRanks], suffix: str) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    """(metric, by query embedding the outcome of each query (Q,), (Q,) what guessing is expected to reach)."""
    both = ranked["both"]
    for k in KS:
        hits = {name: ranks.first_ranks <= k for name, ranks in ranked.items()}
        yield f"case_recall{suffix}@{k}", hits, chance_of_hit(both.num_positives, both.gallery, k)
    precisions = {name: ranks.average_precisions for name, ranks in ranked.items()}
    yield f"case_mean_average_precision{suffix}", precisions, chance_of_precision(both.num_positives, both.gallery)


def similar_images(
    embedded: EmbeddedSplit, facts: Sequence[Facts], *, has_place: bool
) -> tuple[np.ndarray, np.ndarray]:
    """((N, C) bool: which of C meanings each image shows, (M,) int64 meaning of each region).

    Args:
        facts: of each of the M regions.
        has_place: a meaning is a finding with its side and place, not the finding alone.
    """
    meanings, rows = np.unique([_meaning(fact, has_place) for fact in facts], return_inverse=True)
    shows = np.zeros((embedded.num_images, len(meanings)), dtype=bool)
    is_there = ~embedded.region_is_negated
    shows[embedded.region_image[is_there], rows[is_there]] = True
    return shows, rows


def _meaning(fact: Facts, has_place: bool) -> str:
    """What makes two regions alike, as a text."""
    return "\x1f".join((fact.finding, *((fact.side or "", fact.place or "") if has_place else ())))


def rank_cases(
    embedded: EmbeddedSplit, queries: np.ndarray, embeds: np.ndarray, shows: np.ndarray, meanings: np.ndarray
) -> CaseRanks:
    """The ranks of similar cases for queries (Q,) with embeddings (Q, D); those without a positive are left out.

    Args:
        shows, meanings: see `similar_images`; the meaning (Q,) of each query.
    """
    clusters = embedded.image_clusters
    kept, ranks, precisions, positives, galleries = [], [], [], [], []
    step = max(1, _SCORES_AT_ONCE // max(embedded.num_images, 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        is_other = clusters[None, :] != embedded.region_clusters[queries[part]][:, None]  # (q, N)
        is_positive = shows[:, meanings[part]].T & is_other
        has_positive = is_positive.any(axis=1)
        scores = even_products(embeds[part][has_positive], embedded.image_embeds)
        is_positive, is_other = is_positive[has_positive], is_other[has_positive]
        scores[~is_other] = -np.inf
        order = np.lexsort((is_positive, -scores), axis=1)  # best first; of equals negatives first
        is_hit = np.take_along_axis(is_positive, order, axis=1)
        places = np.arange(1, scores.shape[1] + 1)
        num = is_hit.sum(axis=1)
        kept.append(queries[part][has_positive])
        ranks.append(is_hit.argmax(axis=1) + 1)
        precisions.append((is_hit * is_hit.cumsum(axis=1) / places).sum(axis=1) / num)
        positives.append(num)
        galleries.append(is_other.sum(axis=1))
    joined = [np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (kept, ranks, precisions)]
    counts = [np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (positives, galleries)]
    return CaseRanks(*joined, *counts)
