"""From a command line to models that answer: output folder, questions, the run, its controls, what they leave."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.processing.corpus.data_spec import data_revision
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .adapters import check_targets
from .checkpoint import Best, find_checkpoint
from .interruption import RESUMABLE_EXIT_CODE, Interrupted, Interruption
from .launch import (
    agree_on_output_dir,
    check_number_of_processes,
    check_sharing,
    leave,
    start_accelerator,
    use_all_cores,
)
from .metrics_log import read_metrics, seconds_of_steps
from .precision import resolve_precision
from .pretraining import tell_how_it_resumes, tell_how_to_go_on
from .run_lock import RunLock
from .trackers import refuse_missing_trackers
from .training_data import read_training_data
from .vqa_data import VqaData, majority_of, open_vqa_data, prepare_vqa_data, write_vqa_training_data
from .vqa_model import VqaStart, build_vqa_model, open_vqa_start
from .vqa_recipe import VqaCommandLine, VqaRecipe
from .vqa_trainer import VqaTrainer
from .vqa_validation import QuestionValidator
from .watching import METRICS_NAME, VALIDATION_NAME
from .whole_files import write_whole

CONTROLS_FOLDER = "controls"


@dataclass(frozen=True)
class TrainedAnswers:
    """A finished run or control: the model with its best weights, in evaluation mode, and why it was kept."""

    recipe: VqaRecipe  # without epochs
    folder: Path
    model: RegionMedClipForVisualQuestionAnswering
    best: Best


@dataclass(frozen=True)
class VqaRun:
    """What training gives to evaluation, report and card; `controls` by name."""

    command_line: VqaCommandLine
    output_dir: Path
    accelerator: Accelerator
    processor: RegionMedClipProcessor
    cache: Path
    data: VqaData
    main: TrainedAnswers
    controls: dict[str, TrainedAnswers]
    lock: RunLock | None  # of the output folder, on the main process

    def training_data(self) -> dict[str, Any]:
        """What training_data.json says of the images that the model was trained on."""
        return read_training_data(self.output_dir)

    def majority(self) -> dict[str, dict[str, str]]:
        """The most frequent training answer to each question and in each kind."""
        return majority_of(self.data.asked)

    def logs(self) -> dict[str, Any]:
        """`metrics_rows` and `validation_rows` of the main run, for the report."""
        return {
            "metrics_rows": read_metrics(self.output_dir / METRICS_NAME),
            "validation_rows": read_metrics(self.output_dir / VALIDATION_NAME),
        }

    def facts(self, trained: TrainedAnswers, hardware: str | None = None) -> dict[str, Any]:
        """What the model card says of a run beside its numbers; `hardware`: one line on the machine that trained."""
        recipe, counts = trained.recipe, self.data.counts
        regions = ", ".join(f"{mode} {share:g}" for mode, share in recipe.regions.by_mode().items())
        modes = f"vision {recipe.modes.vision}, text {recipe.modes.text}, ROI processor {recipe.modes.roi}"
        seen = f"regions {regions}" if recipe.has_images else "no image: the question alone"
        data = f"{counts['training_questions']} questions about {counts['training_images']} images"
        batch = f"batch {recipe.global_batch_size} images of up to {recipe.questions_per_image} questions"
        return {
            "base": f"a {recipe.encoder} encoder, {Path(recipe.start or '').name}",
            "data": data_revision(recipe.data or ""),
            "training": [
                f"{data}, {counts['answers']} answers, all of the training part alone",
                f"{recipe.encoder} encoder {Path(recipe.start or '').name}, trained parts: {modes}; {seen}",
                f"{recipe.steps} steps at most, {batch}, learning rate {recipe.learning_rate:g}, seed {recipe.seed}",
                f"kept: the weights of {trained.best.metric} {trained.best.value:.4f} on {trained.best.split}",
            ],
            "num_parameters": trained.model.num_parameters(),
            "image_size": self.processor.image_processor.frame_size[0],
            "recipe": recipe.name,
            "training_seconds": seconds_of_steps(
                read_metrics(trained.folder / METRICS_NAME), {recipe.stage().name: recipe.global_batch_size}
            ),
            "training_hardware": hardware,
        }


def finetune(command_line: VqaCommandLine, interruption: Interruption | None = None) -> VqaRun:
    """Trains the recipe's model, then its controls, on every process.

    Where `interruption` is asked for while a model trains, all processes leave with `RESUMABLE_EXIT_CODE`.
    """
    recipe = command_line.recipe
    refuse_missing_trackers(recipe)
    accelerator = _start_processes(recipe)
    start = open_vqa_start(recipe)
    output_dir = agree_on_output_dir(command_line, accelerator)
    cache = output_dir / "cache"
    lock = RunLock(output_dir) if accelerator.is_main_process else None
    if accelerator.is_main_process:
        write_whole(output_dir / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        prepare_vqa_data(recipe, cache, start.processor.image_processor)
    accelerator.wait_for_everyone()
    data = open_vqa_data(recipe, cache, start.processor)
    recipe = recipe.with_steps(len(data.train))
    if accelerator.is_main_process:
        write_vqa_training_data(recipe, data, output_dir)
        _tell_counts(recipe, data)
    runs = {"": (recipe, output_dir)}
    runs |= {name: (recipe.control(name), output_dir / CONTROLS_FOLDER / name) for name in recipe.controls}
    trained = {}
    try:
        for name, (of_run, folder) in runs.items():
            trained[name] = _train(of_run, folder, start, data, accelerator, command_line.resume, interruption)
    except Interrupted as interrupted:
        if accelerator.is_main_process:
            tell_how_to_go_on(interrupted, output_dir)
        leave(accelerator, RESUMABLE_EXIT_CODE)
    main = trained.pop("")
    return VqaRun(command_line, output_dir, accelerator, start.processor, cache, data, main, trained, lock)


def _train(
    recipe: VqaRecipe,
    folder: Path,
    start: VqaStart,
    data: VqaData,
    accelerator: Accelerator,
    resume: bool,
    interruption: Interruption | None,
) -> TrainedAnswers:
    identity = run_identity(recipe, start, data)
    if resume and accelerator.is_main_process:
        found = find_checkpoint(folder / "checkpoints", identity)
        tell_how_it_resumes(folder, None if found is None else found[1])
    model = build_vqa_model(recipe, data.vocabulary)
    check_targets(model.config, [recipe.stage()])
    validator = QuestionValidator(recipe, data.validation, accelerator.device) if accelerator.is_main_process else None
    trainer = VqaTrainer(recipe, model, data.train, folder, accelerator, identity, interruption, validator)
    best = trainer.train(resume)
    return TrainedAnswers(recipe, folder, model.eval(), best)


def run_identity(recipe: VqaRecipe, start: VqaStart, data: VqaData) -> dict[str, Any]:
    """Plain values that decide the weights, and which of them are the best."""
    return {
        **recipe.decisive(),
        "precision": resolve_precision(recipe.precision),
        "data": data_revision(recipe.data or ""),
        "counts": data.counts,
        "start_revision": start.revision,
    }


def _start_processes(recipe: VqaRecipe) -> Accelerator:
    accelerator = start_accelerator(resolve_precision(recipe.precision), has_unused_parameters=True)
    if accelerator.is_fsdp2:
        raise ValueError(
            "Accelerate is configured for FSDP2; an answer head is small, so this trainer replicates the model. Start "
            "it with train/accelerate/multi_gpu_ddp.yaml or on one process."
        )
    check_number_of_processes(recipe.name, recipe.num_processes, accelerator.num_processes)
    check_sharing(f"recipe {recipe.name!r}", recipe.global_batch_size, accelerator.num_processes)
    use_all_cores(accelerator)
    return accelerator


def _tell_counts(recipe: VqaRecipe, data: VqaData) -> None:
    counts = data.counts
    text = (
        f"{recipe.name}: {counts['training_questions']} training questions about {counts['training_images']} images, "
        f"{counts['answers']} answers; {counts['validation_questions']} validation questions about "
        f"{counts['validation_images']} images"
    )
    told = {
        "left_out_answer_unknown": "training questions left out, their answer is not in the vocabulary",
        "cut_question_texts": "question texts cut, longer than the text tower takes",
        "validation_answers_unknown": "validation questions count as wrong, their answer is not in the vocabulary",
    }
    parts = [f"{counts[name]} {words}" for name, words in told.items() if counts[name]]
    sys.stderr.write("; ".join([text, *parts]) + ".\n")


def remove_cache(run: VqaRun) -> None:
    """Deletes what a finished run has prepared; a resume prepares it again."""
    shutil.rmtree(run.cache)
