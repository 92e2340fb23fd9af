"""Ablation of how a region is read: prompter, roialign, maskpool, and crop-and-encode of a model without region terms.

`python -m regionmed_clip.eval.studies.roi_modes --output DIR [--seeds 0 1 2] [--modes ...] [--smoke] [key=value ...]`

Every (mode, seed) is a training of the same recipe, steps and images, in DIR/MODE-SEED; it is evaluated on the same
test split with exact boxes and with noisy ones. Whatever is finished is not done again: after an interruption the same
command goes on, a training from its last checkpoint. Delete DIR/MODE-SEED to run one anew. DIR then holds results.json,
table.md and accuracies.png.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.studies.region_outcomes import RegionOutcomes, mean_noisy_iou, measure_figures
from regionmed_clip.eval.studies.roi_comparison import Arm, compare_arms
from regionmed_clip.eval.studies.roi_report import draw_comparison, write_table
from regionmed_clip.eval.studies.trainings import TRAIN_FOLDER, Training, launch
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.processing.corpus.box_noise import MAX_BOX_NOISE
from regionmed_clip.processing.corpus.data_spec import hash_images, stream_examples

CROP = "crop-and-encode"
MODES = ("prompter", "roialign", "maskpool", CROP)
REFERENCE = "prompter"
RECIPE, SMOKE_RECIPE = (TRAIN_FOLDER / "recipes" / name for name in ("roi_ablation.yaml", "smoke.yaml"))


@dataclass(frozen=True)
class PlannedRun:
    """A training, and what of the study it is; `train_noise` is the noise on the boxes that it sees."""

    mode: str
    seed: int
    train_noise: float
    training: Training


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = build_parser()
    options = parser.parse_intermixed_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "regionmed_clip.eval.studies.roi_modes", *told])
    try:
        run_study(options, command)
    except ValueError as error:
        parser.error(str(error))
    print((options.output / "table.md").read_text(encoding="utf-8"))  # noqa: T201
    print(f"Written to {options.output}: results.json, table.md, accuracies.png")  # noqa: T201
    return 0


def run_study(options: argparse.Namespace, command: str, start: Callable[[Training], None] = launch) -> list[Result]:
    """The Results of all arms and differences, written to `options.output` with table and picture.

    Args:
        start: runs one training to its end, see `launch`.
    """
    planned = plan(options)
    for item in planned:
        item.training.check()
    runs: dict[tuple[str, float], list[RegionOutcomes]] = {}
    with tqdm(planned, desc="roi modes", unit="run") as bar:
        for item in bar:
            bar.set_postfix_str(item.training.name)
            if not item.training.is_finished:
                start(item.training)
            outcomes = evaluate(item, options)
            bar.write(f"{item.training.name}: {_in_short(outcomes)}", file=sys.stderr)
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
    stages = [stage["name"] for stage in yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]]
    off = {"loss_weights": "{image_text: 1.0}", "modes": "{roi: frozen}"}
    return [f"stages.{stage}.{key}={value}" for stage in stages for key, value in off.items()]


def evaluate(run: PlannedRun, options: argparse.Namespace) -> RegionOutcomes:
    """The outcomes of a finished training, from its outcomes.json where that was made of it with the same noise."""
    folder, facts = run.training.folder, run.training.facts()
    path = folder / "outcomes.json"
    if path.is_file():
        kept = RegionOutcomes.read(path)
        if (kept.box_noise, kept.training) == (options.box_noise, facts):
            return kept
    examples = _read_split(facts["data"], facts["split"])
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


def _in_short(outcomes: RegionOutcomes) -> str:
    """The accuracies of a training in a line."""
    return ", ".join(f"{f.metric} {f.boxes} {f.accuracy:.3f}" for f in outcomes.figures)


@lru_cache(maxsize=1)
def _read_split(data: str, split: str) -> list[Mapping[str, Any]]:
    """The examples of a split with their images encoded, drawn or read once for all trainings."""
    return list(tqdm(stream_examples(data, split, decode_images=False), desc=f"read {split}", unit="img", leave=False))


def write_outputs(output: Path, arms: Sequence[Arm], command: str) -> list[Result]:
    """The Results; `output` then holds them with the table and the picture."""
    comparison, hardware = compare_arms(arms, REFERENCE), describe_hardware()
    results = comparison.results(hardware, command)
    write_results(output / "results.json", results)
    draw_comparison(output / "accuracies.png", comparison)
    write_table(output / "table.md", comparison, hardware, command)
    return results


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m regionmed_clip.eval.studies.roi_modes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder for each training, tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s")
    parser.add_argument(
        "--smoke", action="store_const", const=SMOKE_RECIPE, dest="recipe", help="the recipe that runs in seconds"
    )
    parser.add_argument(
        "--box-noise", type=_share, default=0.2, help="of the noisy boxes: share of a side (default: 0.2)"
    )
    parser.add_argument(
        "--train-noise", type=_share, default=0.0, help="also train each mode with this noise (default: do not)"
    )
    parser.add_argument("--device", default="cpu", help="of the evaluation: cpu (default), cuda, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe keys for all trainings")
    return parser


def _share(text: str) -> float:
    """The share of noise that a user wrote."""
    value = float(text)
    if not 0 <= value <= MAX_BOX_NOISE:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to {MAX_BOX_NOISE}")
    return value


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a training never outlives its study
    sys.exit(main())
