"""Study of training orders: the global, region and joint stages of a recipe left out or reordered, in equal steps.

`python -m regionmed_clip.eval.studies.training_orders --output DIR [--seeds 0 1 2] [--arms ...] [--jobs N] [--smoke]
[key=value ...]`

Every (arm, seed) is a training of the recipe with other `stages`, in DIR/ARM-SEED; its model is evaluated without boxes
(retrieval, zero-shot) and with them (region -> text). Whatever is finished is not done again: after an interruption the
same command goes on, a training from its last checkpoint. Delete DIR/ARM-SEED to run one anew. DIR then holds
results.json, table.md and arms.png. With --jobs 2 two trainings run at a time, each pinned to half of the cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.studies.arm_report import list_keys
from regionmed_clip.eval.studies.measured_runs import PlannedRun
from regionmed_clip.eval.studies.orders import ARMS, GLOBAL_ONLY, THREE_STAGES, Stages, list_arms, num_steps
from regionmed_clip.eval.studies.recipes import override_stages, read_recipe, refuse_stages
from regionmed_clip.eval.studies.running import Start
from regionmed_clip.eval.studies.study_command import (
    ArmPlan,
    add_smoke,
    arms_parser,
    command_of,
    measure_arms,
    plan_arms,
    run_as_script,
    write_outputs,
)
from regionmed_clip.eval.studies.trainings import TRAIN_FOLDER

RECIPE = TRAIN_FOLDER / "recipes" / "training_orders.yaml"
METRICS = (
    "image_to_text_recall@1",
    "image_to_text_recall@10",
    "text_to_image_recall@1",
    "text_to_image_recall@10",
    "macro_auroc",
    "region_to_text_accuracy",
)


def run_study(options: argparse.Namespace, command: str, start: Start | None = None) -> list[Result]:
    """The Results of all arms and differences, written to `options.output` with table and picture.

    Args:
        start: runs one training to its end; None: `launch`.
    """
    refuse_stages(options.overrides)
    arms, same = list_arms(read_recipe(options.recipe)["stages"], options.arms)
    pairs = [(name, reference) for reference in (THREE_STAGES, GLOBAL_ONLY) for name in arms if name != reference]
    pairs = [pair for pair in pairs if pair != (GLOBAL_ONLY, THREE_STAGES)]  # the other way round it is there
    comparison = measure_arms(options, plan(options, arms), pairs, title="training orders", start=start)
    shown = {"command": command, "notes": describe_arms(arms, same), "title": "Training orders, equal steps"}
    return write_outputs(options.output, comparison, list_keys(comparison), **shown)


def plan(options: argparse.Namespace, arms: Mapping[str, Stages]) -> list[PlannedRun]:
    """The trainings in their order: all arms of a seed before the next seed."""
    plans = {
        arm: ArmPlan(options.recipe, [override_stages(stages)], METRICS, is_plain=arm == GLOBAL_ONLY)
        for arm, stages in arms.items()
    }
    return plan_arms(options, plans)


def describe_arms(arms: Mapping[str, Stages], same: Mapping[str, str]) -> list[str]:
    """A line for each arm with its stages, one for the number of steps, one for each arm that is another one."""
    lines = [f"Each arm takes {num_steps(next(iter(arms.values())))} steps."]
    for name, stages in arms.items():
        told = []
        for stage in stages:
            weights = stage.get("loss_weights", {"image_text": 1.0})
            terms = ", ".join(f"{term} x {float(weight):g}" for term, weight in weights.items())
            told.append(f"{stage['name']} {stage['steps']} ({terms})")
        lines.append(f"{name}: {' -> '.join(told)}.")
    lines += [f"{name} is the same as {other}, trained once." for name, other in same.items()]
    if GLOBAL_ONLY in arms:
        lines.append(f"{GLOBAL_ONLY} reads regions without training for it, by the better of crops and dense features.")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = arms_parser("regionmed_clip.eval.studies.training_orders", __doc__, tuple(ARMS), RECIPE)
    add_smoke(parser)
    return parser


main = command_of(build_parser, run_study)

if __name__ == "__main__":
    run_as_script(main)
