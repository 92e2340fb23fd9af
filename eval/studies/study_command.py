"""What the commands of all studies share: their options, what they print, and the files they leave."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.selection import PHANTOM_NOTE
from regionmed_clip.eval.studies.arm_report import draw_arms, write_page
from regionmed_clip.eval.studies.arms import Key, compare, gather_arms
from regionmed_clip.eval.studies.measured_runs import TASKS, PlannedRun, measure_run
from regionmed_clip.eval.studies.pooling import Comparison
from regionmed_clip.eval.studies.running import Start, run_all, split_cores
from regionmed_clip.eval.studies.trainings import TRAIN_FOLDER, Training

# A study evaluates the finished models itself, and needs no checkpoint of them.
LEAN_RUN = ("baseline=false", "evaluation.tasks=[retrieval]", "keep_checkpoints=1")
PICTURE = "arms.png"
SMOKE_RECIPE = TRAIN_FOLDER / "recipes" / "smoke.yaml"


def command_of(
    build_parser: Callable[[], argparse.ArgumentParser],
    run_study: Callable[[argparse.Namespace, str], Any],
    picture: str = PICTURE,
) -> Callable[..., int]:
    """A study's `main`: arguments, those of the process where there are none -> the exit status of `run_command`."""
    return lambda arguments=None: run_command(build_parser(), run_study, arguments, picture)


def run_as_script(main: Callable[[], int]) -> NoReturn:
    """Never returns: leaves with the exit status of `main`; told to end, it ends as by an error.

    So no training outlives its study.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())


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


def arms_parser(module: str, description: str | None, arms: Sequence[str], recipe: Path) -> argparse.ArgumentParser:
    """The command line of a study of `arms`, by default all of them and made of `recipe`."""
    parser = study_parser(module, description)
    parser.add_argument("--arms", nargs="+", choices=tuple(arms), default=list(arms), help="default: all")
    parser.add_argument("--recipe", type=Path, default=recipe, help="of the trainings (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on its share of the cores")
    return parser


def add_smoke(parser: argparse.ArgumentParser) -> None:
    """None; the parser then has --smoke, which takes the recipe that runs in seconds."""
    told = "the recipe that runs in seconds"
    parser.add_argument("--smoke", action="store_const", const=SMOKE_RECIPE, dest="recipe", help=told)


@dataclass(frozen=True)
class ArmPlan:
    """How an arm is trained and measured, whatever the seed.

    Attributes:
        recipe: of its trainings; `overrides`: what it changes there, after what the user does.
        metrics, tasks, is_plain: see `PlannedRun`.
        conditions: what decides its weights besides, but for the threads.
    """

    recipe: Path
    overrides: Sequence[str]
    metrics: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    is_plain: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)


def plan_arms(options: argparse.Namespace, arms: Mapping[str, ArmPlan], data: str | None = None) -> list[PlannedRun]:
    """The trainings in their order: all arms of a seed before the next seed; `data`: in the place of the recipes'."""
    threads = {"threads": len(split_cores(options.jobs)[0])}  # on which the order of sums depends
    given = [] if data is None else [f"data={json.dumps(data)}"]
    planned = []
    for seed in dict.fromkeys(options.seeds):
        for arm, plan in arms.items():
            name = f"{arm}-{seed}"
            overrides = (*given, *options.overrides, *LEAN_RUN, f"seed={seed}", *plan.overrides)
            conditions = {**threads, **plan.conditions}
            training = Training(name, options.output / name, plan.recipe, overrides, conditions)
            planned.append(PlannedRun(arm, seed, training, plan.metrics, plan.tasks, plan.is_plain))
    return planned


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
