"""The Result record: one measured number with its interval, its protocol and where it came from."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

PROTOCOL_KEYS = ("gallery", "unique_texts", "split", "split_sha256", "prompts_sha256")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number that this code measured; the unit of results.json, of every table and of the model card.

    `low` and `high` bound the 95 % interval. `value` is None for a figure that was deliberately not computed; then
    `protocol["skipped"]` says why. `source` and `stratum` are None for the whole split. `n` counts the queries.
    """

    model: str
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    source: str | None = None
    stratum: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    model_revision: str
    data_revision: str
    seed: int
    hardware: str
    command: str

    def check(self) -> None:
        """None for a sound record; otherwise ValueError naming the record, the value, the rule and the way out."""
        name = f"result {self.model}/{self.metric} (source {self.source}, stratum {self.stratum})"
        for key in ("model", "task", "metric", "model_revision", "data_revision", "hardware", "command"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise ValueError(f"{name}: {key} is {getattr(self, key)!r}; it must be a non-empty string. Fill it in.")
        missing = [key for key in PROTOCOL_KEYS if key not in self.protocol]
        if missing:
            raise ValueError(
                f"{name}: protocol lacks {missing}; every key of {PROTOCOL_KEYS} is stated, null if unused."
            )
        for key in ("n", "seed"):
            if (
                not isinstance(getattr(self, key), int)
                or isinstance(getattr(self, key), bool)
                or getattr(self, key) < 0
            ):
                raise ValueError(f"{name}: {key} is {getattr(self, key)!r}; it must be a whole number >= 0.")
        if self.value is None:
            if self.low is not None or self.high is not None or not self.protocol.get("skipped"):
                raise ValueError(f"{name}: value is None; then low and high are None and protocol['skipped'] says why.")
            return
        numbers = (self.value, self.low, self.high)
        if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) for x in numbers):
            raise ValueError(f"{name}: value, low, high are {numbers}; all three must be finite numbers.")
        if self.low > self.high:
            raise ValueError(f"{name}: low {self.low} exceeds high {self.high}; the interval must be in order.")


def write_results(path: str | Path, results: Iterable[Result]) -> None:
    """None; `path` then is the JSON list, a line a record, complete or not at all (temporary name, then rename)."""
    path = Path(path)
    lines = []
    for result in results:
        result.check()
        lines.append(json.dumps(asdict(result), allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    os.replace(temporary, path)


def read_results(path: str | Path) -> list[Result]:
    """The records of a results.json; ValueError naming the file, the row and the field for anything else."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); a results file is a JSON list of Result records.") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a {type(rows).__name__}; a results file is a JSON list of Result records.")
    names = {f.name for f in fields(Result)}
    results = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != names:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}: row {index} has {found}; it must have exactly {sorted(names)}. Write it again.")
        result = Result(**row)
        result.check()
        results.append(result)
    return results


def find_result(
    results: Sequence[Result], *, model: str, metric: str, source: str | None = None, stratum: str | None = None
) -> Result | None:
    """The first record of that model, metric, source and stratum, or None."""
    wanted = (model, metric, source, stratum)
    return next((r for r in results if (r.model, r.metric, r.source, r.stratum) == wanted), None)


def describe_hardware() -> str:
    """One line on the machine: accelerator or processor, cores and threads; no host name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor_name()}, {cores} cores, {torch.get_num_threads()} threads"


def _processor_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
