"""What the pages of all studies share: cells, Markdown tables, and words for data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regionmed_clip.eval.selection import PHANTOM_NOTE
from regionmed_clip.eval.studies.pooling import Pooled

INTERVAL_NOTE = (
    "95 % bootstrap interval, images resampled with all their regions and seeds (where a text is the query: texts), "
    "trainings fixed"
)


def format_cell(figure: Pooled, sign: str = "") -> str:
    """`value [low, high]`; with `sign` "+" every number bears one."""
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def format_markdown(rows: Sequence[Sequence[str]], num_left: int) -> str:
    """The rows, the first its head, as a table whose first `num_left` columns are texts."""
    rule = ["---"] * num_left + ["---:"] * (len(rows[0]) - num_left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def describe_data(run: Any) -> str:
    """The revision and the split of the data on which a training was evaluated, and what it may not be taken for."""
    note = f": {PHANTOM_NOTE}" if run.data_revision.startswith("phantom@") else ""
    return f"{run.data_revision}, split {run.split}{note}."
