"""Entry: `accelerate launch train/pretrain.py` trains, evaluates, pictures and packs a model (train/arguments.py)."""

import sys

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
    """Fills OUTPUT_DIR with results.json, final/ and report/, and prints the table."""
    folder, facts, data = run.output_dir, run.facts(), run.training_data()
    stage_flat_folder(run.model, run.processor, folder / "final", results=[], facts=facts, training_data=data)  # safe
    evaluated = evaluate_run(run, describe_hardware())
    facts["text_origin"] = evaluated.text_origin
    stage_flat_folder(
        run.model, run.processor, folder / "final", results=evaluated.results, facts=facts, training_data=data
    )
    shown = {"examples": evaluated.examples, "embedded": evaluated.embedded, "processor": run.processor}
    write_report(folder / "report", results=evaluated.results, model=run.model, **run.logs(), **shown)
    sys.stdout.write(
        f"{format_table(evaluated.results)}\nmodel: {folder / 'final'}\nreport: {folder / 'report' / 'index.md'}\n"
    )
    if run.best is not None:
        best, facts = run.best, run.facts(run.best)
        path = stage_flat_folder(
            best.model, run.processor, folder / "best", results=[], facts=facts, training_data=data
        )
        sys.stdout.write(f"best model: {path} (step {best.step}, {best.reason})\n")
    write_results(folder / "results.json", evaluated.results)  # last: a job script takes it for the end of the run
    remove_cache(run)


if __name__ == "__main__":
    with failing_together():
        trained = pretrain(parse_command_line(sys.argv[1:]), Interruption().install())
        if trained.accelerator.is_main_process:
            write_outputs(trained)
        leave(trained.accelerator)
