"""`regionmed-export`: a saved model as graphs that run without this package, kept once they agree with the model.

regionmed-export --model runs/quickstart/final --format onnx --int8 --output runs/onnx
python runs/onnx/onnx_inference.py picture.png --labels "left pleural effusion" "no finding"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from regionmed_clip.model_cards.export.export_folder import (
    DEFAULT_DATA,
    FORMATS,
    ONNX,
    ExportSettings,
    export_model,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    disable_progress_bar()  # that of loading weights
    try:
        report = export_model(
            ExportSettings(
                model=options.model,
                output=options.output,
                format=options.format,
                is_int8=options.int8,
                data=options.data,
                split=options.split,
            )
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(format_report(report))  # noqa: T201
    print(f"Written to {options.output}")  # noqa: T201
    return 0


def format_report(report: Mapping[str, Any]) -> str:
    """A line for each path: how near it is to the model and how fast, and the same of its 8-bit graph."""
    lines = []
    for name, entry in report["paths"].items():
        differs = max(entry["largest_difference"].values())
        line = f"{name}: differs from the model by at most {differs:.1e}, {_speed(entry, report['format'])}"
        if "int8" in entry:
            least = min(one["least"] for one in entry["int8"]["cosine"].values())
            fate = entry["int8"].get("left_out")
            line += f"; int8: least cosine {least:.4f}, "
            line += f"left out: {fate}" if fate else _speed(entry, "int8")
        lines.append(line)
    return "\n".join(lines)


def _speed(entry: Mapping[str, Any], name: str) -> str:
    return f"{entry['times_as_fast_as_eager'][name]:.2f} times as fast as eager"


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="regionmed-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="a saved model; anything regionmed-eval takes")
    add("--output", required=True, metavar="DIR", help="a folder that is not there yet")
    add("--format", choices=FORMATS, default=ONNX, help="default: %(default)s")
    add("--int8", action="store_true", help="ONNX graphs of 8-bit weights too, each where it is near enough")
    add("--data", default=DEFAULT_DATA, metavar="SPEC", help=f"what they are compared on (default: {DEFAULT_DATA})")
    add("--split", default="test", help="which split of it (default: test)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
