"""`evaluate.load("eval/metrics/mean_reciprocal_rank")`: the mean of 1 / rank of the first positive."""

from __future__ import annotations

import evaluate

from regionmed_clip.eval.metrics.metric_info import NUMBERS, WHOLE, WHOLES, metric_info
from regionmed_clip.eval.metrics.ranking import mean_reciprocal_rank, ranks_of_lists

INPUTS = """
Args:
    predictions: per query its scores of all gallery items; with the configuration "ranks" instead the rank of its first
        positive, from 1, which `ranks_of_first_positive` computes block by block for galleries of any size.
    references: per query the gallery rows that are right, several where a text stands there twice; none with "ranks".
Returns:
    mean_reciprocal_rank: in (0, 1]. An equal negative ranks before a positive.
"""


class MeanReciprocalRank(evaluate.Metric):
    """Mean over the queries of 1 / rank of the first positive; ties count against the query."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "ranks":
            return metric_info(self.__doc__, INPUTS, predictions=WHOLE)
        return metric_info(self.__doc__, INPUTS, predictions=NUMBERS, references=WHOLES)

    def _compute(self, predictions: list, references: list[list[int]] | None = None) -> dict[str, float]:
        return {"mean_reciprocal_rank": mean_reciprocal_rank(ranks_of_lists(predictions, references))}
