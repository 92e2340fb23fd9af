"""The figures of answered questions: of the whole split, open and closed, marked or not, by kind and by source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.differences import subtract
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, Stratum
from regionmed_clip.eval.tasks.vqa_questions import AskedSplit

TASK = "vqa"
MIN_QUESTIONS = 20  # of a kind or source; fewer give no figure of their own: their interval would say nothing
PART_NAMES = {  # metric without its suffix -> what it is taken over
    "vqa_accuracy": "all questions",
    "vqa_open_accuracy": "open questions",
    "vqa_closed_accuracy": "closed questions",
    "vqa_marked_accuracy": "questions that mark a region",
    "vqa_unmarked_accuracy": "questions that mark no region",
}


@dataclass(frozen=True)
class AnsweredSplit:
    """A split of questions with who they are resampled with.

    Attributes:
        asked: the Q questions.
        clusters: (Q,) int64 patient of each question's image.
        sources: (Q,) str source of each question's image.
        seed: of the bootstrap.
    """

    asked: AskedSplit
    clusters: np.ndarray
    sources: np.ndarray
    seed: int

    def parts(self) -> dict[str, np.ndarray]:
        """Metric without its suffix -> (Q,) bool questions that it is taken over."""
        asked = self.asked
        members = (
            np.ones(len(asked), dtype=bool),
            ~asked.is_closed,
            asked.is_closed,
            asked.is_marked,
            ~asked.is_marked,
        )
        return dict(zip(PART_NAMES, members, strict=True))

    def strata(self) -> Iterator[tuple[Stratum, np.ndarray]]:
        """The sources, where there are several, then the kinds, each with (Q,) bool; of those with MIN_QUESTIONS."""
        names = sorted(set(self.sources.tolist()))
        for source in names if len(names) > 1 else ():
            yield from self._large(Stratum(source, None, self.sources == source))
        for kind in sorted(set(self.asked.kinds.tolist())):
            yield from self._large(Stratum(None, f"kind {kind}", self.asked.kinds == kind))

    def figures(
        self,
        outcomes: np.ndarray,
        suffix: str,
        protocol: Mapping[str, Any],
        chance: np.ndarray | None = None,
        *,
        has_strata: bool = True,
    ) -> Iterator[Measured]:
        """Accuracies `vqa_accuracy{suffix}` ... of the whole, and `vqa_accuracy{suffix}` of the strata.

        Args:
            outcomes: (Q,) bool, whether the answer is right.
            chance: (Q,) what answering without a look is expected to reach.
            has_strata: whether to take the strata too.
        """
        whole = Stratum(None, None, np.ones(len(outcomes), dtype=bool))
        for metric, is_member in self.parts().items():
            if is_member.any() or metric == "vqa_accuracy":
                yield self._mean(f"{metric}{suffix}", whole, outcomes, is_member, protocol, chance)
        for stratum, is_member in self.strata() if has_strata else ():
            yield self._mean(f"vqa_accuracy{suffix}", stratum, outcomes, is_member, protocol, chance)

    def _large(self, stratum: Stratum) -> Iterator[tuple[Stratum, np.ndarray]]:
        if stratum.is_member.sum() >= MIN_QUESTIONS:
            yield stratum, stratum.is_member

    def _mean(
        self,
        metric: str,
        stratum: Stratum,
        outcomes: np.ndarray,
        is_member: np.ndarray,
        protocol: Mapping[str, Any],
        chance: np.ndarray | None,
    ) -> Measured:
        asked = self.asked
        texts = {text for text, is_in in zip(asked.texts, is_member, strict=True) if is_in}
        said = {**protocol, "unique_texts": len(texts), "images": len(np.unique(asked.images[is_member]))}
        if chance is not None:
            said["chance"] = float(chance[is_member].mean())
        own = outcomes[is_member], self.clusters[is_member]
        return mean_figure(TASK, metric, *own, stratum=stratum, seed=self.seed, protocol=said)


def gain(metric: str, first: Measured, second: Measured, seed: int, meaning: str) -> Measured:
    """first - second as a figure of its own, paired by question, with `meaning` in its protocol."""
    difference = subtract(first, second, seed)
    protocol = {**difference.protocol, "difference": meaning, "of": [first.value, second.value]}
    return replace(difference, metric=metric, protocol=protocol)


def table_by_kind(split: AnsweredSplit, outcomes: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each kind, and one for all: its number of questions, and the accuracy of each of `outcomes` (Q,)."""
    kinds = split.asked.kinds
    members = {kind: kinds == kind for kind in sorted(set(kinds.tolist()))} | {"all": np.ones(len(kinds), dtype=bool)}
    return [
        {"kind": kind, "n": int(is_member.sum())}
        | {name: round(float(right[is_member].mean()), 4) for name, right in outcomes.items()}
        for kind, is_member in members.items()
    ]
