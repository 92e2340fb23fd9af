"""Entry: `accelerate launch train/pretrain.py` trains, evaluates, pictures and packs a model (train/arguments.py)."""

import sys
from functools import partial

from regionmed_clip.eval.report import format_table, write_report
from regionmed_clip.eval.results import describe_hardware, write_results
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.train.arguments import parse_command_line
from regionmed_clip.train.evaluation import evaluate_run
from regionmed_clip.train.failures import failing_together
from regionmed_clip.train.interruption import Interruption
from regionmed_clip.train.launch import leave
from regionmed_clip.train.pretraining import TrainedRun, pretrain, remove_cache


def write_outputs(run: TrainedRun) -> None:
    """Fills OUTPUT_DIR with results.json, final/, report/ and report.html, and prints the table."""
    folder, facts = run.output_dir, run.facts(describe_hardware())
    pack = partial(stage_flat_folder, processor=run.processor, training_data=run.training_data())
    pack(run.model, folder=folder / "final", results=[], facts=facts)  # safe before evaluation
    evaluated = evaluate_run(run, describe_hardware())
    results, facts = evaluated.results, {**facts, "text_origin": evaluated.text_origin}
    pack(run.model, folder=folder / "final", results=results, facts=facts)
    write_report(folder / "report", page=folder / "report.html", **run.shown(), **evaluated.shown())
    sys.stdout.write(f"{format_table(results)}\nmodel: {folder / 'final'}\nreport: {folder / 'report.html'}\n")
    if run.best is not None:
        path = pack(run.best.model, folder=folder / "best", results=[], facts=run.facts(describe_hardware(), run.best))
        sys.stdout.write(f"best model: {path} (step {run.best.step}, {run.best.reason})\n")
    write_results(folder / "results.json", results)  # last: a job script takes it for the end of the run
    remove_cache(run)


if __name__ == "__main__":
    with failing_together():
        trained = pretrain(parse_command_line(sys.argv[1:]), Interruption().install())
        if trained.accelerator.is_main_process:
            write_outputs(trained)
        leave(trained.accelerator)
