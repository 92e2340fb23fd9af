"""Ablation of how a region is read: prompter, roialign, maskpool, and crop-and-encode of a model without region terms.

`python -m regionmed_clip.eval.studies.roi_modes --output DIR [--seeds 0 1 2] [--modes ...] [--smoke] [key=value ...]`

Every (mode, seed) is a training of the same recipe, steps and images, in DIR/MODE-SEED; it is evaluated on the same
test split with exact boxes and with noisy ones. Whatever is finished is not done again: after an interruption the same
command goes on, a training from its last checkpoint. Delete DIR/MODE-SEED to run one anew. DIR then holds results.json,
table.md and accuracies.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.studies.recipes import read_recipe
from regionmed_clip.eval.studies.region_outcomes import RegionOutcomes, mean_noisy_iou, measure_figures
from regionmed_clip.eval.studies.roi_comparison import Arm, compare_arms
from regionmed_clip.eval.studies.roi_report import draw_comparison, write_table
from regionmed_clip.eval.studies.running import run_all
from regionmed_clip.eval.studies.splits import read_split
from regionmed_clip.eval.studies.study_command import add_smoke, command_of, run_as_script, study_parser
from regionmed_clip.eval.studies.trainings import TRAIN_FOLDER, Training, launch
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE
from regionmed_clip.processing.corpus.data_spec import hash_images

CROP = "crop-and-encode"
MODES = ("prompter", "roialign", "maskpool", CROP)
REFERENCE = "prompter"
PICTURE = "accuracies.png"
RECIPE = TRAIN_FOLDER / "recipes" / "roi_ablation.yaml"


@dataclass(frozen=True)
class PlannedRun:
    """A training, and what of the study it is; `train_noise` is the noise on the boxes that it sees."""

    mode: str
    seed: int
    train_noise: float
    training: Training


def run_study(options: argparse.Namespace, command: str, start: Callable[[Training], None] = launch) -> list[Result]:
    """The Results of all arms and differences, written to `options.output` with table and picture.

    Args:
        start: runs one training to its end, see `launch`.
    """
    planned = plan(options)
    measured = run_all(planned, lambda item: evaluate(item, options), title="roi modes", start=start)
    runs: dict[tuple[str, float], list[RegionOutcomes]] = {}
    for item, outcomes in zip(planned, measured, strict=True):
        runs.setdefault((item.mode, item.train_noise), []).append(outcomes)
    return write_outputs(options.output, [Arm(*arm, of_arm) for arm, of_arm in runs.items()], command)


def plan(options: argparse.Namespace) -> list[PlannedRun]:
    """The trainings in their order: all modes of a seed before the next seed."""
    planned = []
    seeds, modes = dict.fromkeys(options.seeds), dict.fromkeys(options.modes)
    for seed, noise, mode in product(seeds, sorted({0.0, options.train_noise}), modes):
        if mode == CROP and noise:
            continue  # its training sees no box
        name = f"{mode}-noisy-{seed}" if noise else f"{mode}-{seed}"
        overrides = [*options.overrides, f"seed={seed}", *_mode_overrides(mode, options.recipe)]
        overrides += [f"box_noise={noise:g}"] if noise else []
        training = Training(name, options.output / name, options.recipe, tuple(overrides))
        planned.append(PlannedRun(mode, seed, noise, training))
    return planned


def _mode_overrides(mode: str, recipe: Path) -> list[str]:
    """What of the recipe a mode changes; crop-and-encode is plain CLIP, the same steps with the region terms off."""
    if mode != CROP:
        return [f"model.roi_mode={mode}"]
    off = {"loss_weights": "{image_text: 1.0}", "loss_kinds": "{}", "modes": "{roi: frozen}", "adapters": "drop"}
    names = [stage["name"] for stage in read_recipe(recipe)["stages"]]
    return [f"stages.{name}.{key}={value}" for name in names for key, value in off.items()]


def evaluate(run: PlannedRun, options: argparse.Namespace) -> RegionOutcomes:
    """The outcomes of a finished training, from its outcomes.json where that was made of it with the same noise."""
    folder, facts = run.training.folder, run.training.facts()
    path = folder / "outcomes.json"
    if path.is_file():
        kept = RegionOutcomes.read(path)
        if (kept.box_noise, kept.training) == (options.box_noise, facts):
            return kept
    examples = read_split(facts["data"], facts["split"])
    model, processor = load_model(folder / "final", options.device)
    reading = "crop" if run.mode == CROP else "roi"
    noise: dict[str, Any] = {"box_noise": options.box_noise, "seed": run.seed}
    outcomes = RegionOutcomes(
        mode=run.mode,
        noisy_iou=mean_noisy_iou(examples, **noise),
        model_revision=weights_revision(model),
        data_revision=facts["data_revision"],
        split=facts["split"],
        split_sha256=hash_images((example["image_id"], example["sha256"]) for example in examples),
        training=facts,
        figures=measure_figures(model, processor, examples, reading=reading, device=options.device, **noise),
        **noise,
    )
    outcomes.write(path)
    return outcomes


def write_outputs(output: Path, arms: Sequence[Arm], command: str) -> list[Result]:
    """The Results; `output` then holds them with the table and the picture."""
    comparison, hardware = compare_arms(arms, REFERENCE), describe_hardware()
    results = comparison.results(hardware, command)
    write_results(output / "results.json", results)
    draw_comparison(output / PICTURE, comparison)
    write_table(output / "table.md", comparison, hardware, command)
    return results


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = study_parser("regionmed_clip.eval.studies.roi_modes", __doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s")
    add_smoke(parser)
    parser.add_argument(
        "--box-noise", type=_share, default=0.2, help="of the noisy boxes: share of a side (default: 0.2)"
    )
    parser.add_argument(
        "--train-noise", type=_share, default=0.0, help="also train each mode with this noise (default: do not)"
    )
    return parser


def _share(text: str) -> float:
    """The share of noise that a user wrote."""
    value = float(text)
    if not 0 <= value <= MAX_BOX_NOISE:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to {MAX_BOX_NOISE}")
    return value


main = command_of(build_parser, run_study, PICTURE)

if __name__ == "__main__":
    run_as_script(main)
