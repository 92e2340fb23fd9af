"""Measuring a command in a process of its own: wall time, processor time and peak memory of it and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

POLL_S = 0.05
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took; `peak_mb` is the largest memory of its own (USS) of all its processes at one moment."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure_module(module: str, arguments: Sequence[str]) -> Cost:
    """The cost of `python -m MODULE ARGUMENTS`, children included; RuntimeError with its output where it fails."""
    with tempfile.TemporaryFile() as output:
        started_at = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=output, stderr=subprocess.STDOUT)
        watch = _Watch(process.pid)
        watch.start()
        code = process.wait()
        wall_s = time.perf_counter() - started_at
        watch.stop()
        if code != 0:
            output.seek(0)
            text = output.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{module} {' '.join(arguments)} ended with {code}:\n{text}")
    return Cost(wall_s, watch.cpu_s, watch.peak_mb)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of paired rounds."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Nothing; prints the report as JSON and writes it to `path` if one is given, whole or not at all."""
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if path is not None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)


class _Watch(threading.Thread):
    """Follows a process and its children until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self._cpu_of: dict[tuple[int, float], float] = {}
        self._root = psutil.Process(pid)
        self._ended = threading.Event()

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes seen, each as of its last look."""
        return sum(self._cpu_of.values())

    def stop(self) -> None:
        """Nothing; ends the watching."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Nothing; looks every POLL_S seconds."""
        while not self._ended.wait(POLL_S):
            total = 0
            for process in self._family():
                try:
                    times = process.cpu_times()
                    total += process.memory_full_info().uss
                    self._cpu_of[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:  # it has just ended: its last look stands
                    continue
            self.peak_mb = max(self.peak_mb, total / MEGABYTE)

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:  # the root has just ended
            return []
