"""The controlled study behind README's claims: full, RoIAlign-only and plain-clip, on equal data in equal steps.

`python -m regionmed_clip.eval.studies.controlled --output DIR [--data jsonl:FOLDER --recipe FILE] [--seeds 0 1 2]
[--arms ...] [--jobs N] [--smoke] [key=value ...]`

Without --data the recipe's own: by default the quickstart's, on phantoms. Every (arm, seed) is a training in
DIR/ARM-SEED; its model is measured without boxes (retrieval, zero-shot), with exact and with careless boxes, and on
texts that change one word of the truth. Whatever is finished is not done again: after an interruption the same command
goes on, a training from its last checkpoint. Delete DIR/ARM-SEED to run one anew. DIR then holds results.json, table.md
and arms.png. With --jobs 2 two trainings run at a time, each pinned to half of the cores. `make study` runs it on
phantoms and on the real sources.
"""

from __future__ import annotations

import argparse

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.selection import TEMPLATE_NOTE
from regionmed_clip.eval.studies.arm_report import list_keys
from regionmed_clip.eval.studies.measured_runs import PlannedRun
from regionmed_clip.eval.studies.orders import global_only
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

RECIPE = TRAIN_FOLDER / "recipes" / "quickstart.yaml"
FULL, ROIALIGN, PLAIN = "full", "roialign_only", "plain_clip"
ARMS = (FULL, ROIALIGN, PLAIN)
PAIRS = ((FULL, PLAIN), (FULL, ROIALIGN))
TASKS = ("retrieval", "zero_shot", "region", "robustness", "counterfactual")
METRICS = (
    "region_to_text_accuracy",
    "region_to_text_accuracy_jitter@20",
    "place_accuracy",
    "laterality_accuracy",
    "counterfactual_pair_accuracy",
    "region_balanced_accuracy",
    "image_to_text_recall@1",
    "image_to_text_recall@10",
    "text_to_image_recall@1",
    "text_to_image_recall@10",
    "macro_auroc",
)
DESCRIPTIONS = {
    FULL: "the recipe as it is.",
    ROIALIGN: "the same recipe with the mean of RoIAlign in the place of the prompter (model.roi_mode=roialign).",
    PLAIN: "image-text alone at every step; it reads regions without training for it, by the better of crops and dense "
    "features.",
}


def run_study(options: argparse.Namespace, command: str, start: Start | None = None) -> list[Result]:
    """The Results of all arms and differences, written to `options.output` with table and picture.

    Args:
        start: runs one training to its end; None: `launch`.
    """
    refuse_stages(options.overrides)
    comparison = measure_arms(options, plan(options), PAIRS, title="controlled study", start=start)
    steps = comparison.arms[0].runs[0].training["steps"]
    notes = [f"Each arm takes {steps} steps of {options.recipe.stem}.yaml."]
    notes += [f"{arm.name}: {DESCRIPTIONS[arm.name]}" for arm in comparison.arms]
    whole = [key for key in list_keys(comparison) if key[1] is None]
    shown = {"command": command, "notes": notes, "title": "Full, RoIAlign-only, plain-clip: equal data, equal steps"}
    return write_outputs(options.output, comparison, whole, data_note=TEMPLATE_NOTE, **shown)


def plan(options: argparse.Namespace) -> list[PlannedRun]:
    """The trainings in their order: all arms of a seed before the next seed."""
    changes = {
        FULL: [],
        ROIALIGN: ["model.roi_mode=roialign"],
        PLAIN: [override_stages(global_only(read_recipe(options.recipe)["stages"]))],
    }
    arms = {
        arm: ArmPlan(options.recipe, changes[arm], METRICS, TASKS, is_plain=arm == PLAIN)
        for arm in dict.fromkeys(options.arms)
    }
    return plan_arms(options, arms, options.data)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = arms_parser("regionmed_clip.eval.studies.controlled", __doc__, ARMS, RECIPE)
    parser.add_argument("--data", help="a data spec in the place of the recipe's: jsonl:FOLDER or a built corpus")
    add_smoke(parser)
    return parser


main = command_of(build_parser, run_study)

if __name__ == "__main__":
    run_as_script(main)
