"""From a command line to trained models: output folder, prepared data, tokenizer, model, progressive run, baseline."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.corpus.data_spec import data_revision
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .adapter_files import merge_adapters, save_and_merge_adapters
from .adapters import check_targets
from .arguments import CommandLine, Recipe, plain_clip_recipe
from .best_model import BestModel, load_best
from .checkpoint import RunState, find_checkpoint, installed_versions
from .data_needs import refuse_missing_texts, refuse_odd_sizes, refuse_small_boxes
from .data_stores import SampleStore
from .interruption import RESUMABLE_EXIT_CODE, Interrupted, Interruption, resume_command
from .launch import agree_on_output_dir, check_processes, leave, start_accelerator, use_all_cores
from .metrics_log import read_metrics, seconds_of_steps
from .model_building import build_config, build_model, build_processor
from .precision import resolve_precision
from .recipe_parts import Stage
from .run_identity import run_identity
from .run_lock import RunLock
from .stage_data import build_image_processor, check_splits, open_training_data, prepare_training_data
from .stage_plan import plan_stages
from .starts import START, open_start
from .trackers import refuse_missing_trackers
from .trainer import Trainer
from .training_data import read_training_data, write_training_data
from .validation import Validator, refuse_bad_validation
from .whole_files import write_whole

BASELINE_FOLDER = "plain_clip"


@dataclass(frozen=True)
class TrainedRun:
    """What training gives to evaluation, report and card."""

    command_line: CommandLine
    output_dir: Path
    accelerator: Accelerator
    processor: RegionMedClipProcessor
    cache: Path
    store: SampleStore  # the training split
    model: RegionMedClipModel
    best: BestModel | None  # on the main process, where the recipe keeps one
    baseline: RegionMedClipModel | None
    lock: RunLock | None  # of the output folder, on the main process

    def shown(self) -> dict[str, Any]:
        """What a report shows of the training: the model, and the rows of metrics.jsonl and of validation.jsonl."""
        logs = {f"{name}_rows": read_metrics(self.output_dir / f"{name}.jsonl") for name in ("metrics", "validation")}
        return {"model": self.model, "processor": self.processor, **logs}

    def training_data(self) -> dict[str, Any]:
        """What training_data.json says of the images that the models were trained on."""
        return read_training_data(self.output_dir)

    def facts(self, hardware: str | None = None, best: BestModel | None = None) -> dict[str, Any]:
        """What the model card says of this run beside its numbers; of its best model, that it is this one.

        Args:
            hardware: one line on the machine that trained.
        """
        recipe = self.command_line.recipe
        stages = [describe_stage(stage, recipe) for stage in recipe.stages]
        settings = (
            f"global batch {recipe.global_batch_size} images, seed {recipe.seed}, mixed precision "
            f"{self.accelerator.mixed_precision}, {self.accelerator.num_processes} process(es)"
        )
        start = Path(recipe.model[START]).name if START in recipe.model else None
        started = [] if start is None else [f"started from the checkpoint {start}"]
        sizes = {stage.name: stage.global_batch_size or recipe.global_batch_size for stage in recipe.stages}
        chosen = [] if best is None else [f"the model after step {best.step}, the best by {best.reason}"]
        return {
            "base": "trained from scratch" if start is None else f"the checkpoint {start}",
            "data": data_revision(recipe.data),
            "training": [*started, *stages, settings, *chosen],
            "num_parameters": self.model.num_parameters(),
            "image_size": recipe.image_size,
            "recipe": recipe.name,
            "training_seconds": seconds_of_steps(read_metrics(self.output_dir / "metrics.jsonl"), sizes),
            "training_hardware": hardware,
        }


def describe_stage(stage: Stage, recipe: Recipe) -> str:
    """One line that says what a stage trains on what, for the model card."""
    length = f"{stage.epochs:g} epochs" if stage.steps is None else f"{stage.steps} steps"
    losses = ", ".join(f"{term} x {weight:g}" for term, weight in stage.loss_weights.items())
    parts = [f"stage {stage.name}: {length}", f"learning rate {stage.learning_rate:g}", f"losses {losses}"]
    parts += [f"LoRA of rank {getattr(stage.lora, tower).rank} on {tower}" for tower in stage.modes.lora_towers]
    for name in ("data", "image_size", "global_batch_size"):
        value = getattr(stage, name)
        if value not in (None, getattr(recipe, name)):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def pretrain(command_line: CommandLine, interruption: Interruption | None = None) -> TrainedRun:
    """Trains the recipe's model, and plain-clip where the recipe asks for it, on every process.

    Where `interruption` is asked for while the model trains, all processes leave with `RESUMABLE_EXIT_CODE`.
    """
    recipe = command_line.recipe.settled()
    refuse_missing_trackers(recipe)
    refuse_bad_validation(recipe)
    accelerator = _start_processes(recipe)
    start = open_start(recipe)
    config = build_config(recipe) if start is None else start.config
    image_processor = build_image_processor(recipe, config) if start is None else start.processor.image_processor
    refuse_odd_sizes(recipe, config)
    refuse_small_boxes(recipe, config)
    check_targets(config, recipe.stages)
    check_splits(recipe)
    output_dir = agree_on_output_dir(command_line, accelerator)
    cache = output_dir / "cache"
    lock = RunLock(output_dir) if accelerator.is_main_process else None
    revision = None if start is None else start.revision
    identity, plain_identity = (run_identity(each, revision) for each in (recipe, plain_clip_recipe(recipe)))
    found = find_checkpoint(output_dir / "checkpoints", identity)
    if accelerator.is_main_process:
        if command_line.resume:
            tell_how_it_resumes(output_dir, None if found is None else found[1])
        write_whole(output_dir / "recipe.yaml", yaml.safe_dump(command_line.recipe.to_dict(), sort_keys=False))
        prepare_training_data(recipe, cache, image_processor)
        write_training_data(recipe, cache, image_processor, output_dir)
    accelerator.wait_for_everyone()
    data = open_training_data(recipe, cache, image_processor)
    recipe = recipe.with_steps([len(data.stores[stage.name]) for stage in recipe.stages])
    for planned in (recipe, plain_clip_recipe(recipe)) if recipe.baseline else (recipe,):
        refuse_missing_texts(planned, data.stores)
    make = partial(build_processor, recipe, config, image_processor)
    processor = make(data.texts()) if start is None else start.processor
    has_validator = recipe.validation.every_steps > 0 and accelerator.is_main_process
    validator = Validator(recipe, processor, cache, accelerator.device) if has_validator else None

    def train(run_recipe: Recipe, identity: dict[str, Any], folder: Path) -> RegionMedClipModel:
        model = build_model(run_recipe, processor, start)
        trainer = Trainer(
            run_recipe, model, processor, data.stores, folder, accelerator, identity, interruption, validator
        )
        trainer.train(command_line.resume)
        if accelerator.is_main_process:
            save_and_merge_adapters(model, processor, folder, None if start is None else start.find_base)
        merge_adapters(model)  # of the other processes
        return model.eval()

    try:
        model, baseline = train(recipe, identity, output_dir), None
        if recipe.baseline:
            baseline = train(plain_clip_recipe(recipe), plain_identity, output_dir / BASELINE_FOLDER)
    except Interrupted as interrupted:
        if accelerator.is_main_process:
            tell_how_to_go_on(interrupted, output_dir)
        leave(accelerator, RESUMABLE_EXIT_CODE)
    build, is_main = partial(build_model, recipe, processor, start), accelerator.is_main_process
    best = load_best(output_dir, identity, plan_stages(recipe), build) if is_main else None
    return TrainedRun(command_line, output_dir, accelerator, processor, cache, data.store, model, best, baseline, lock)


def _start_processes(recipe: Recipe) -> Accelerator:
    accelerator = start_accelerator(resolve_precision(recipe.precision))
    check_processes(recipe, accelerator.num_processes)
    use_all_cores(accelerator)
    return accelerator


def tell_how_it_resumes(output_dir: Path, state: RunState | None) -> None:
    """Says after which step the run in `output_dir` goes on, and which libraries have changed since."""
    if state is None:
        sys.stderr.write(f"{output_dir} holds no checkpoint yet: --resume starts the run anew.\n")
        return
    sys.stderr.write(f"{output_dir}: going on after step {state.step}, in stage {state.stage!r}.\n")
    for library, now in installed_versions().items():
        before = state.versions.get(library)
        if before != now:
            sys.stderr.write(f"{library} was {before} and is {now}: the weights may differ in their last bits.\n")


def tell_how_to_go_on(interrupted: Interrupted, output_dir: Path) -> None:
    """Says that the run in `output_dir` has ended early, and the command that goes on with it."""
    command = resume_command(output_dir, interrupted.command)
    cause = interrupted.signal_name or "another process was asked to end"
    sys.stderr.write(
        f"{cause}: the run ends after step {interrupted.step}, which is saved, with exit code {RESUMABLE_EXIT_CODE}. "
        f"This goes on with it:\n{command}\n"
    )


def remove_cache(run: TrainedRun) -> None:
    """Deletes what a finished run has prepared; a resume prepares it again."""
    shutil.rmtree(run.cache)
