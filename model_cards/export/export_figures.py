"""The figures of an export to be published: parity, 8-bit cosines, sizes, and speed against eager in several exports.

`OMP_NUM_THREADS=1 python -m regionmed_clip.model_cards.export.export_figures --model runs/quickstart/final
[--output FILE]` (a minute)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regionmed_clip.eval.benchmarks.measure import write_report
from regionmed_clip.eval.benchmarks.origin import describe_origin
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.model_cards.export.export_folder import DEFAULT_DATA, ExportSettings, export_model

MODULE = "regionmed_clip.model_cards.export.export_figures"


def main() -> None:
    """Exports several times and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--exports", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = describe_origin(f"OMP_NUM_THREADS=1 python -m {MODULE}", sys.argv[1:], load_model(options.model)[0])
    reports = []
    for _ in range(options.exports):
        with tempfile.TemporaryDirectory(prefix="export-figures-") as work:
            settings = ExportSettings(model=options.model, output=Path(work) / "onnx", is_int8=True, data=options.data)
            reports.append(export_model(settings))
    write_report(options.output, origin | summarize(reports))


def summarize(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several exports of one model: the worst difference and cosine of all, and every speed."""
    first = reports[0]
    paths = {name: _of_path([report["paths"][name] for report in reports]) for name in first["paths"]}
    return {
        "data_revision": first["inputs"]["source"],
        "inputs": {name: number for name, number in first["inputs"].items() if name != "source"},
        "threads": first["threads"],
        "paths": paths,
        "preprocessing": first["preprocessing"],
    }


def _of_path(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one path."""
    cosines = [one["least"] for entry in entries for one in entry["int8"]["cosine"].values()]
    speeds = [entry["times_as_fast_as_eager"] for entry in entries]
    return {
        "largest_difference": max(max(entry["largest_difference"].values()) for entry in entries),
        "least_int8_cosine": min(cosines),
        "bytes": entries[0]["bytes"],
        "int8_bytes": entries[0]["int8"]["bytes"],
        "batch": entries[0]["batch"],
        "times_as_fast_as_eager": {name: [one[name] for one in speeds if name in one] for name in ("onnx", "int8")},
    }


if __name__ == "__main__":
    main()
