"""`regionmed-eval`: evaluates saved models on a data spec and writes results.json, a Markdown table and a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regionmed_clip.eval.report import write_report
from regionmed_clip.eval.results import Result, describe_hardware, write_results
from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.runner import TASKS, RunContext, TaskOutcome, run_colour_probe, run_tasks
from regionmed_clip.processing.corpus.data_spec import FORMS, data_revision, split_sha256, stream_examples


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = shlex.join(["regionmed-eval", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        results = evaluate(options, command)
    except ValueError as error:
        parser.error(str(error))
    print(format_table(results))  # noqa: T201
    print(f"Written to {options.output}: results.json, results.md, report/")  # noqa: T201
    return 0


def evaluate(options: argparse.Namespace, command: str) -> list[Result]:
    """The Results of every model of the command line, written to `options.output` together with the report."""
    tasks = TASKS if options.tasks == "all" else tuple(name.strip() for name in options.tasks.split(","))
    paths = _named_paths(options.model)
    examples = stream_examples(options.data, options.split)
    shared = {
        "data_revision": data_revision(options.data),
        "split": options.split,
        "split_sha256": split_sha256(options.data, options.split),
        "seed": options.seed,
        "hardware": describe_hardware(),
        "command": command,
    }
    results: list[Result] = []
    for place, (name, path) in enumerate(paths.items()):
        model, processor = load_model(path, options.device)
        context = RunContext(model_revision=weights_revision(model), **shared)
        outcome = run_tasks(
            model,
            processor,
            {options.split: examples},
            model_name=name,
            context=context,
            tasks=tasks,
            batch_size=options.batch_size,
            device=options.device,
        )
        results.extend(outcome.results)
        if options.colour_probe and place == 0:
            train = stream_examples(options.data, "train")
            results.extend(run_colour_probe(processor, train, outcome.embedded, context=context))
        folder = Path(options.output) / ("report" if len(paths) == 1 else f"report_{place}")
        _write(Path(options.output), folder, results, model, processor, examples, outcome)
    return results


def _write(
    output: Path, report: Path, results: list[Result], model: Any, processor: Any, examples: Any, outcome: TaskOutcome
) -> None:
    """None; results so far as JSON and Markdown, and the report of this model; an interrupted run keeps what it had."""
    write_results(output / "results.json", results)
    (output / "results.md").write_text(format_table(results), encoding="utf-8")
    write_report(
        report,
        metrics_rows=[],
        results=results,
        model=model,
        processor=processor,
        examples=examples,
        embedded=outcome.embedded,
    )


def _named_paths(entries: Sequence[str]) -> dict[str, str]:
    """Model name -> folder from [NAME=]PATH entries; without a name the one model is `regionmed-clip`."""
    paths: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        name, path = (name, path) if equals else ("regionmed-clip", entry)
        if name in paths:
            raise ValueError(f"model name {name!r} is given twice; name each model: --model first=PATH second=PATH.")
        paths[name] = path
    return paths


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="regionmed-eval", description=__doc__)
    parser.add_argument("--model", nargs="+", required=True, metavar="[NAME=]PATH", help="folders with saved models")
    parser.add_argument("--data", required=True, metavar="SPEC", help=FORMS)
    parser.add_argument("--tasks", default="all", help=f"some of {','.join(TASKS)}, or all (default)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where results.json and report/ go")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in one pass (default: 64)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--colour-probe", action="store_true", help="also run the colour-and-size control")
    return parser


if __name__ == "__main__":
    sys.exit(main())
