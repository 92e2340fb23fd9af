"""Study on real data: region learning with and without hard negatives, and full against LoRA fine-tuning of a start.

`python -m regionmed_clip.eval.studies.real_data --output DIR --data jsonl:../shared/data --start FOLDER [--seeds 0 1 2]
[--arms ...] [--jobs N] [key=value ...]`

FOLDER holds a model trained on phantoms (RUN/final). Every (arm, seed) is a training in DIR/ARM-SEED; all are evaluated
on the same held-out split, source by source. Whatever is finished is not done again: after an interruption the same
command goes on, a training from its last checkpoint. Delete DIR/ARM-SEED to run one anew. DIR then holds results.json,
table.md and arms.png. With --jobs 2 two trainings run at a time, each pinned to half of the cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.selection import TEMPLATE_NOTE
from regionmed_clip.eval.studies.arm_report import list_keys
from regionmed_clip.eval.studies.measured_runs import PlannedRun
from regionmed_clip.eval.studies.pooling import Comparison
from regionmed_clip.eval.studies.real_arms import with_negatives, with_towers, without_negatives
from regionmed_clip.eval.studies.recipes import override_stages, read_recipe, refuse_stages
from regionmed_clip.eval.studies.running import Start
from regionmed_clip.eval.studies.study_command import (
    ArmPlan,
    arms_parser,
    command_of,
    measure_arms,
    plan_arms,
    run_as_script,
    write_outputs,
)
from regionmed_clip.eval.studies.trainings import TRAIN_FOLDER
from regionmed_clip.eval.tasks.revision import weights_revision

RECIPE, FINETUNE_RECIPE = (TRAIN_FOLDER / "recipes" / name for name in ("real_small.yaml", "finetune.yaml"))
WITHOUT, WITH = "without_hard_negatives", "with_hard_negatives"
FULL, LORA = "full_fine_tuning", "lora_fine_tuning"
ARMS = (WITHOUT, WITH, FULL, LORA)
PAIRS = ((WITH, WITHOUT), (LORA, FULL))
METRICS = (
    "region_to_text_accuracy",
    "region_balanced_accuracy",
    "image_to_text_recall@1",
    "image_to_text_recall@10",
    "text_to_image_recall@1",
    "text_to_image_recall@10",
)
LEFT_OUT = (
    "A source has no retrieval figure with fewer than 20 unique texts, and no balanced accuracy with one finding."
)


@dataclass(frozen=True)
class StartFacts:
    """What the study needs to know of the checkpoint it fine-tunes: the side of its frames and which weights it has."""

    folder: Path
    image_size: int
    revision: str

    @classmethod
    def read(cls, folder: Path) -> StartFacts:
        """The facts of a saved folder."""
        model, processor = load_model(folder)
        return cls(folder, processor.image_processor.frame_size[0], weights_revision(model))


def run_study(options: argparse.Namespace, command: str, start: Start | None = None) -> list[Result]:
    """The Results of all arms and differences, written to `options.output` with table and picture.

    Args:
        start: runs one training to its end; None: `launch`.
    """
    refuse_stages(options.overrides)
    facts = _read_start(options)
    comparison = measure_arms(options, plan(options, facts), PAIRS, title="real data", start=start)
    keys = [key for key in list_keys(comparison) if key[0].startswith("region")] or list_keys(comparison)
    notes, title = describe_arms(options, comparison, facts), "Regions of real images, source by source"
    shown = {"command": command, "notes": notes, "title": title, "data_note": TEMPLATE_NOTE}
    return write_outputs(options.output, comparison, keys, **shown)


def plan(options: argparse.Namespace, start: StartFacts | None) -> list[PlannedRun]:
    """The trainings in their order: all arms of a seed before the next seed."""
    arms = {}
    for arm in dict.fromkeys(options.arms):
        recipe, own = arm_overrides(arm, options, start)
        conditions = {"start": start.revision} if arm in (FULL, LORA) and start is not None else {}
        arms[arm] = ArmPlan(recipe, own, METRICS, conditions=conditions)
    return plan_arms(options, arms, options.data)


def arm_overrides(arm: str, options: argparse.Namespace, start: StartFacts | None) -> tuple[Path, list[str]]:
    """(the recipe of an arm, what it overrides there)."""
    if arm in (WITHOUT, WITH):
        stages = read_recipe(options.recipe)["stages"]
        made = with_negatives(stages) if arm == WITH else without_negatives(stages)
        number = options.num_negatives if arm == WITH else 0
        return options.recipe, [f"num_negatives={number}", override_stages(made)]
    mode = "lora" if arm == LORA else "full"
    stages = with_towers(read_recipe(options.finetune_recipe)["stages"], mode, options.lora_rate)
    started = [f"model.start={json.dumps(str(start.folder))}", "tokenizer.source=start"]
    return options.finetune_recipe, [*started, f"image_size={start.image_size}", override_stages(stages)]


def describe_arms(options: argparse.Namespace, comparison: Comparison, start: StartFacts | None) -> list[str]:
    """Lines on the arms that ran, and on figures that a source has not."""
    steps = {arm.name: arm.runs[0].training["steps"] for arm in comparison.arms}
    lines = [f"Texts of the data: {TEMPLATE_NOTE} where a source has no captions. {LEFT_OUT}"]
    for name, number in steps.items():
        if name in (WITHOUT, WITH):
            negatives = f"{options.num_negatives if name == WITH else 0} hard negatives a region"
            lines.append(f"{name}: {options.recipe.stem} from random weights, {number} steps, {negatives}.")
        else:
            rates = f", learning rates of the towers x {options.lora_rate:g}" if name == LORA else ""
            told = f"{options.finetune_recipe.stem}, {number} steps from the checkpoint of weights {start.revision}"
            lines.append(f"{name}: {told}{rates}.")
    return lines


def _read_start(options: argparse.Namespace) -> StartFacts | None:
    """The facts of --start; a ValueError where an arm needs it and it is not given."""
    if options.start is not None:
        return StartFacts.read(options.start)
    needing = [arm for arm in options.arms if arm in (FULL, LORA)]
    if needing:
        raise ValueError(f"{' and '.join(needing)} need a checkpoint: give --start RUN/final, or choose other --arms.")
    return None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = arms_parser("regionmed_clip.eval.studies.real_data", __doc__, ARMS, RECIPE)
    parser.add_argument("--data", required=True, help="jsonl:FOLDER or a built corpus")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="the trained model that is fine-tuned: RUN/final")
    parser.add_argument("--finetune-recipe", type=Path, default=FINETUNE_RECIPE, help="default: %(default)s")
    parser.add_argument("--num-negatives", type=int, default=3, help="hard negatives of a region (default: 3)")
    parser.add_argument(
        "--lora-rate", type=float, default=10.0, help="by LoRA, times a tower's learning rate (default: 10)"
    )
    return parser


main = command_of(build_parser, run_study)

if __name__ == "__main__":
    run_as_script(main)
