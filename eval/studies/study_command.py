"""What the commands of all studies share: their options, what they print, and the files they leave."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.selection import PHANTOM_NOTE
from regionmed_clip.eval.studies.arm_report import draw_arms, write_page
from regionmed_clip.eval.studies.arms import Key, compare, gather_arms
from regionmed_clip.eval.studies.measured_runs import PlannedRun, measure_run
from regionmed_clip.eval.studies.pooling import Comparison
from regionmed_clip.eval.studies.running import Start, run_all, split_cores

# A study evaluates the finished models itself, and needs no checkpoint of them.
LEAN_RUN = ("baseline=false", "evaluation.tasks=[retrieval]", "keep_checkpoints=1")
PICTURE = "arms.png"


def run_command(
    parser: argparse.ArgumentParser,
    run_study: Callable[[argparse.Namespace, str], Any],
    arguments: Sequence[str] | None,
    picture: str = PICTURE,
) -> int:
    """The exit status of a study's command line: 0, or 2 after a message on what was wrong with the input.

    Args:
        run_study: (options, command for the record) -> anything; leaves its files in `options.output`.
    """
    options = parser.parse_intermixed_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    try:
        run_study(options, f"{parser.prog} {shlex.join(told)}")
    except ValueError as error:
        parser.error(str(error))
    print((options.output / "table.md").read_text(encoding="utf-8"))  # noqa: T201
    print(f"Written to {options.output}: results.json, table.md, {picture}")  # noqa: T201
    return 0


def study_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all studies have; `module` is the name after `python -m`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for each training, tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--device", default="cpu", help="of the evaluation: cpu (default), cuda, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys for all trainings")
    return parser


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """None; the parser then has --jobs."""
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on its share of the cores")


def conditions_of(options: argparse.Namespace) -> dict[str, int]:
    """What decides the weights of all trainings besides recipe and overrides: the threads that each computes with."""
    return {"threads": len(split_cores(options.jobs)[0])}


def measure_arms(
    options: argparse.Namespace,
    planned: Sequence[PlannedRun],
    pairs: Sequence[tuple[str, str]],
    *,
    title: str,
    start: Start | None = None,
) -> Comparison:
    """The arms of the planned runs compared, after every one of them was trained and evaluated.

    Args:
        planned: all with the same metrics.
        pairs: arms whose paired differences first - second are taken.
        title: what the progress bar says.
        start: runs one training to its end; None: `launch`.
    """
    device = options.device
    measured = run_all(planned, lambda run: measure_run(run, device), title=title, start=start, jobs=options.jobs)
    return compare(gather_arms(planned, measured), pairs, planned[0].metrics)


def write_outputs(
    output: Path,
    comparison: Comparison,
    keys: Sequence[Key],
    *,
    command: str,
    notes: Sequence[str],
    title: str,
    data_note: str = "",
) -> list[Result]:
    """The Results of a study of arms; `output` then holds them with the page, and the picture of the figures `keys`.

    `data_note` stands below the picture: what the data may not be taken for; of phantoms it is known.
    """
    hardware = describe_hardware()
    results = comparison.results(hardware, command)
    write_results(output / "results.json", results)
    write_page(output / "table.md", comparison, hardware=hardware, command=command, notes=notes)
    note = PHANTOM_NOTE if results[0].data_revision.startswith("phantom@") else data_note
    draw_arms(output / PICTURE, comparison, keys, title=title, note=note)
    return results
