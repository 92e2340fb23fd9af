"""`evaluate.load("eval/metrics/recall_at_k")`: the share of queries that find a positive among the first k."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate

from regionmed_clip.eval.metrics.metric_info import NUMBERS, WHOLE, WHOLES, metric_info
from regionmed_clip.eval.metrics.ranking import ranks_of_lists, recall_at_k

INPUTS = """
Args:
    predictions: per query its scores of all gallery items; with the configuration "ranks" instead the rank of its first
        positive, from 1, which `ranks_of_first_positive` computes block by block for galleries of any size.
    references: per query the gallery rows that are right, several where a text stands there twice; none with "ranks".
    ks: whole numbers, (1, 5, 10) by default.
Returns:
    recall@k for every k, in [0, 1]. An equal negative ranks before a positive: constant scores find nothing.
"""


class RecallAtK(evaluate.Metric):
    """Share of queries with a positive among the first k of the gallery; ties count against the query."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "ranks":
            return metric_info(self.__doc__, INPUTS, predictions=WHOLE)
        return metric_info(self.__doc__, INPUTS, predictions=NUMBERS, references=WHOLES)

    def _compute(
        self, predictions: list, references: list[list[int]] | None = None, ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        ranks = ranks_of_lists(predictions, references)
        return {f"recall@{k}": recall_at_k(ranks, k) for k in ks}
