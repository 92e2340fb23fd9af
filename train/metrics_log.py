"""JSON Lines by step: metrics.jsonl with a row for every optimiser step, validation.jsonl with one for every figure.

Both are cut back to the checkpoint's step on resume, so that no step is in them twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMED_COLUMNS = ("samples_per_s", "data_wait_share", "peak_memory_mib")  # of two runs with equal weights they differ


class MetricsLog:
    """Appends rows to a JSON Lines file; each row is on disk before the next step begins."""

    def __init__(self, path: Path, last_step: int):
        """Opens `path`, dropping the rows after `last_step` (and a last line cut off by a kill); no row, no file."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            return
        kept = [row for row in read_metrics(path) if row["step"] <= last_step]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(path)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Writes the rows."""
        if not rows:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file, none if it does not exist; an unfinished last line is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line break is unfinished or empty


def seconds_of_steps(rows: Sequence[Mapping[str, Any]], images_of_stage: Mapping[str, int]) -> float | None:
    """How long the optimiser steps took, waiting for data included; None where that is not known of all of them.

    Args:
        rows: of metrics.jsonl.
        images_of_stage: global batch size by name of the stage.
    """
    speeds = [row["samples_per_s"] for row in rows]
    if not rows or min(speeds) <= 0:
        return None
    return sum(images_of_stage[row["stage"]] / speed for row, speed in zip(rows, speeds, strict=True))


def timeless(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what depends on the machine's speed: equal for two runs that take the same steps."""
    return [{key: value for key, value in row.items() if key not in TIMED_COLUMNS} for row in rows]
