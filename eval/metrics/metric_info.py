"""What the folders beside this file share: metrics that `evaluate.load("eval/metrics/<name>")` loads offline.

Each folder holds one `evaluate.Metric` over the functions of this package, for use outside of our harness: batches are
added with `add_batch`, or gathered from processes with Accelerate and computed by one of them. Intervals are the
harness's part: `regionmed_clip.eval.intervals`.
"""

from __future__ import annotations

from datasets import Features, List, Value
from evaluate import MetricInfo

CITATION = "RegionMed-CLIP; see CITATION.cff of the repository."

NUMBER, WHOLE, TRUTH = Value("float64"), Value("int64"), Value("bool")
NUMBERS, WHOLES = List(NUMBER), List(WHOLE)
MAP, MASK, BOXES = List(NUMBERS), List(List(TRUTH)), List(NUMBERS)


def metric_info(description: str, inputs: str, *, predictions: object, references: object | None = None) -> MetricInfo:
    """The MetricInfo of a metric: what it is, what `compute` takes and gives, and the types of its columns."""
    columns = {"predictions": predictions} | ({} if references is None else {"references": references})
    return MetricInfo(description=description, citation=CITATION, inputs_description=inputs, features=Features(columns))
