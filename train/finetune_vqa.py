"""Entry: `accelerate launch train/finetune_vqa.py` teaches an encoder to answer (train/vqa_recipe.py)."""

import sys
from functools import partial

from regionmed_clip.eval.question_report import write_question_report
from regionmed_clip.eval.report import format_table
from regionmed_clip.eval.results import describe_hardware, write_results
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.train.failures import failing_together
from regionmed_clip.train.interruption import Interruption
from regionmed_clip.train.launch import leave
from regionmed_clip.train.vqa_evaluation import evaluate_vqa, pack_models
from regionmed_clip.train.vqa_recipe import parse_vqa_command_line
from regionmed_clip.train.vqa_training import VqaRun, finetune, remove_cache


def write_outputs(run: VqaRun) -> None:
    """Fills OUTPUT_DIR with final/, results.json and report/, controls/NAME with final/, and prints the table."""
    pack = partial(pack_models, run, stage_flat_folder, describe_hardware())
    pack([])  # safe before evaluation
    evaluated = evaluate_vqa(run, describe_hardware())
    pack(evaluated.results)
    told = {"processor": run.processor, **run.logs(), **evaluated.shown()}
    report = write_question_report(run.output_dir / "report", run.output_dir / "report.html", **told)
    sys.stdout.write(f"{format_table(evaluated.whole)}\nmodel: {run.output_dir / 'final'}\nreport: {report}\n")
    write_results(run.output_dir / "results.json", evaluated.results)  # last: a job script takes it for the end
    remove_cache(run)


if __name__ == "__main__":
    with failing_together():
        trained = finetune(parse_vqa_command_line(sys.argv[1:]), Interruption().install())
        if trained.accelerator.is_main_process:
            write_outputs(trained)
        leave(trained.accelerator)
