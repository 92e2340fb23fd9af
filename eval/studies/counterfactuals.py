"""Does a region's embedding tell where the region is? Its text against the same text with another place or side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.processing.corpus.captions import state_region
from regionmed_clip.processing.corpus.negatives import list_candidates
from regionmed_clip.processing.corpus.records import RegionRecord

CHANGES = ("place", "laterality")
_STATED = ("finding", "anatomy", "laterality", "place", "size", "severity", "certainty", "is_negated")


@dataclass(frozen=True)
class CounterfactualHits:
    """Outcomes of Q regions: (Q,) bool, whether the true text beats all others; their images; candidates of each."""

    is_correct: np.ndarray
    clusters: np.ndarray  # (Q,) int64, row of the region's image
    num_candidates: np.ndarray  # (Q,) int64, the true text included

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return float((1 / self.num_candidates).mean())


def counterfactual_texts(region: Mapping[str, Any], changed: str) -> list[str]:
    """The texts that differ from the region's in place or side alone and are false of it; see corpus/negatives.py.

    Args:
        region: a region of an example.
        changed: one of CHANGES.
    """
    record = RegionRecord(box=tuple(region["box"]), **{name: region[name] for name in _STATED})
    candidates = list_candidates(state_region(record), None, frozenset())
    return [candidate.text for candidate in candidates if candidate.changed == changed]


def counterfactual_hits(
    embedded: EmbeddedSplit, regions: Sequence[Mapping[str, Any]], changed: str
) -> CounterfactualHits | None:
    """Outcomes of all regions that have a counterfactual text among the region texts of the split; None if none has.

    Only texts of the split compete: none is beaten because training had no such words. A tie is a miss.

    Args:
        embedded: the split; regions: its M regions in order, as the examples have them.
        changed: one of CHANGES.
    """
    if len(regions) != embedded.num_regions:
        raise ValueError(
            f"{len(regions)} regions for {embedded.num_regions} embedded ones; every region must lie inside the frame "
            "of the model. Use a processor whose geometry pads."
        )
    row_of_text = {text: row for row, text in enumerate(embedded.region_texts)}
    queries, hits, sizes = [], [], []
    for index, region in enumerate(regions):
        others = [row_of_text[text] for text in counterfactual_texts(region, changed) if text in row_of_text]
        if others:
            rows = [int(embedded.region_text[index]), *others]
            scores = embedded.region_text_embeds[rows] @ embedded.region_embeds[index]
            queries.append(index)
            hits.append(bool(scores[0] > scores[1:].max()))
            sizes.append(len(scores))
    if not queries:
        return None
    return CounterfactualHits(np.array(hits), embedded.region_image[queries], np.array(sizes))
