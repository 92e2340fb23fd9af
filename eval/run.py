"""`regionmed-eval`: measures saved models on data by tasks, and writes results.json, a Markdown table and a page.

Under `accelerate launch --num_processes N -m regionmed_clip.eval.run ...` every process embeds its share of the images
and the main one writes; without a GPU add `--config_file train/accelerate/cpu_2_processes.yaml`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from regionmed_clip.eval.baselines.model_entries import FORM, parse_entries, parse_training_images
from regionmed_clip.eval.evaluation import Evaluation, Settings
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.embedding_cache import default_cache_folder
from regionmed_clip.eval.tasks.held_out_examples import HELD_OUT_SPLIT
from regionmed_clip.eval.tasks.leaks import MODES
from regionmed_clip.eval.tasks.region_readings import TRAINING_FREE
from regionmed_clip.eval.tasks.registry import TASKS
from regionmed_clip.processing.corpus.data_spec import FORMS


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = shlex.join(["regionmed-eval", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        evaluation = Evaluation(_settings(options, command))
        results = evaluation.run()
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")  # without the usage, under which it would be lost
    if evaluation.share.is_main:
        whole = [result for result in results if result.source is None and result.stratum is None]
        print(format_table(whole))  # noqa: T201
        print(f"Written to {options.output}: {', '.join(evaluation.written)}")  # noqa: T201
    return 0


def _settings(options: argparse.Namespace, command: str) -> Settings:
    """The settings that the command line gives."""
    names = tuple(name for name in re.split(r"[\s,]+", " ".join(options.tasks)) if name)
    names = TASKS if names == ("all",) else names
    models = tuple(parse_entries(options.model, options.baselines))
    return Settings(
        models=models,
        data=tuple(options.data),
        tasks=names,
        output=options.output,
        split=options.split,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
        cache=None if options.no_cache else options.cache,
        leaks=options.leaks,
        training_images=parse_training_images(options.training_images, models),
        has_colour_probe=options.colour_probe,
        is_smoke=options.smoke,
        command=command,
    )


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="regionmed-eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model", nargs="+", required=True, metavar=FORM, help="folders of saved models; all are compared to the first"
    )
    add("--baselines", nargs="+", default=(), metavar="READING", help=f"also read the first one's regions by these: "
        f"{', '.join(TRAINING_FREE)}")  # fmt: skip
    add("--data", nargs="+", required=True, metavar="SPEC", help=FORMS.replace("%", "%%"))
    add("--tasks", nargs="+", default=["all"], metavar="TASK", help=f"some of {', '.join(TASKS)}, or all (default)")
    add("--output", required=True, metavar="DIR", help="where results.json, results.md and report.html go")
    add(
        "--split",
        default="test",
        help=f"split of the data (default: test); {HELD_OUT_SPLIT} where they have none: the part of train that "
        "train/finetune_vqa.py holds out",
    )
    add("--batch-size", type=int, default=64, help="images in one pass (default: 64)")
    add("--device", default="auto", help="cpu, cuda, ...; auto (default): the fastest there is")
    add("--seed", type=int, default=0, help="of the bootstrap and of everything drawn (default: 0)")
    add(
        "--cache",
        default=default_cache_folder(),
        metavar="DIR",
        help="where embeddings are kept (default: %(default)s)",
    )
    add("--no-cache", action="store_true", help="neither look for embeddings nor keep them")
    add(
        "--leaks",
        choices=MODES,
        default=MODES[0],
        help="where images or patients under test were trained on: refuse (default), or mark every figure",
    )
    add(
        "--training-images",
        nargs="+",
        default=(),
        metavar="[NAME=]FILE",
        help="what a model was trained on, for one that has no record of it: the training_images.parquet of a run, or "
        "a built corpus",
    )
    add("--colour-probe", action="store_true", help="also run the colour-and-size control")
    add("--smoke", action="store_true", help="a few images of every split: does everything run?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
