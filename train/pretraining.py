"""From a command line to trained models: output folder, prepared data, tokenizer, model, progressive run, baseline."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from transformers import CONFIG_MAPPING

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from modeling_regionmed_clip.configuration_regionmed_clip import DEFAULT_VISION_CONFIG
from regionmed_clip.processing.corpus.data_spec import data_revision, parse_data_spec, stream_examples
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import CommandLine, Recipe, plain_clip_recipe
from .checkpoint import refuse_other_run, write_whole
from .data_needs import refuse_missing_texts, refuse_small_boxes
from .data_stores import SampleStore, open_data, prepare_data
from .launch import agree_on_output_dir, check_processes, settle_network, use_all_cores
from .precision import resolve_precision
from .recipe_parts import Stage
from .starts import START, load_start, open_start
from .tokenizer import load_tokenizer, train_tokenizer
from .trainer import Trainer

TRAINING_SPLIT = "train"
BASELINE_FOLDER = "plain_clip"
MAIN_PROCESS_TIME = timedelta(hours=24)  # others wait while the main process prepares images or evaluates


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
    baseline: RegionMedClipModel | None

    def facts(self) -> dict[str, Any]:
        """What the model card says of this run beside its numbers."""
        recipe = self.command_line.recipe
        stages = [
            f"stage {stage.name}: {stage.steps} steps, learning rate {stage.learning_rate:g}, losses "
            + ", ".join(f"{term} x {weight:g}" for term, weight in stage.loss_weights.items())
            for stage in recipe.stages
        ]
        settings = (
            f"global batch {recipe.global_batch_size} images, seed {recipe.seed}, mixed precision "
            f"{self.accelerator.mixed_precision}, {self.accelerator.num_processes} process(es)"
        )
        started = [f"started from the checkpoint {Path(recipe.model[START]).name}"] if START in recipe.model else []
        return {
            "data": data_revision(recipe.data),
            "training": [*started, *stages, settings],
            "num_parameters": self.model.num_parameters(),
            "image_size": recipe.image_size,
            "recipe": recipe.name,
        }


def pretrain(command_line: CommandLine) -> TrainedRun:
    """Trains the recipe's model, and plain-clip where the recipe asks for it, on every process."""
    recipe = command_line.recipe.settled()
    settle_network()
    accelerator = Accelerator(
        mixed_precision=resolve_precision(recipe.precision),
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=MAIN_PROCESS_TIME)],
    )
    check_processes(recipe, accelerator.num_processes)
    use_all_cores(accelerator)
    start = open_start(recipe)
    config = build_config(recipe) if start is None else start.config
    image_processor = _build_image_processor(recipe, config) if start is None else start.processor.image_processor
    refuse_small_boxes(recipe, config)
    _check_splits(recipe)
    output_dir = agree_on_output_dir(command_line, accelerator)
    cache = output_dir / "cache"
    spec = parse_data_spec(recipe.data)
    identity = f"{recipe.fingerprint()}@{data_revision(recipe.data)}{f'@{start.revision}' if start else ''}"
    refuse_other_run(output_dir / "checkpoints", identity)
    if accelerator.is_main_process:
        write_whole(output_dir / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        for stage in recipe.stages:
            _prepare_stage(stage, cache, image_processor, recipe.preparation_workers)
    accelerator.wait_for_everyone()
    store = open_data(spec, TRAINING_SPLIT, cache, image_processor)
    stores = {stage.name: _open_stage(stage, cache, image_processor) for stage in recipe.stages}
    recipe = recipe.with_steps([len(stores[stage.name]) for stage in recipe.stages])
    for planned in (recipe, plain_clip_recipe(recipe)) if recipe.baseline else (recipe,):
        refuse_missing_texts(planned, store.text_keys())
    if start is None:
        full_length = config.text_pooling == "last"
        processor = RegionMedClipProcessor(image_processor, _build_tokenizer(recipe, store), full_length)
    else:
        processor = start.processor

    def train(run_recipe: Recipe, folder: Path) -> RegionMedClipModel:
        model = build_model(run_recipe, processor)
        run_identity = identity if run_recipe is recipe else f"{run_recipe.fingerprint()}@{identity}"
        Trainer(run_recipe, model, processor, stores, folder, accelerator, run_identity).train(command_line.resume)
        return model.eval()

    model = train(recipe, output_dir)
    baseline = train(plain_clip_recipe(recipe), output_dir / BASELINE_FOLDER) if recipe.baseline else None
    return TrainedRun(command_line, output_dir, accelerator, processor, cache, store, model, baseline)


def _prepare_stage(stage: Stage, cache: Path, image_processor: RegionMedClipImageProcessor, num_workers: int) -> None:
    sized = _at_size(image_processor, stage.image_size)
    prepare_data(parse_data_spec(stage.data), TRAINING_SPLIT, cache, sized, num_workers)


def _open_stage(stage: Stage, cache: Path, image_processor: RegionMedClipImageProcessor) -> SampleStore:
    return open_data(parse_data_spec(stage.data), TRAINING_SPLIT, cache, _at_size(image_processor, stage.image_size))


def _at_size(image_processor: RegionMedClipImageProcessor, image_size: int) -> RegionMedClipImageProcessor:
    """The image processor with square frames of that many pixels a side."""
    settings = {**image_processor.to_dict(), "size": {"height": image_size, "width": image_size}}
    return RegionMedClipImageProcessor.from_dict(settings)


def _build_image_processor(recipe: Recipe, config: RegionMedClipConfig) -> RegionMedClipImageProcessor:
    size = {"height": recipe.image_size, "width": recipe.image_size}
    return RegionMedClipImageProcessor(size=size, patch_size=config.vision_config.patch_size)


def _check_splits(recipe: Recipe) -> None:
    """Fails before any work if the data lacks the split that the evaluation needs."""
    spec = parse_data_spec(recipe.data)
    for split in (TRAINING_SPLIT, recipe.evaluation.split):
        try:
            stream_examples(spec, split)
        except ValueError as error:
            raise ValueError(
                f"recipe {recipe.name!r}: {error} A recipe trains on {TRAINING_SPLIT!r} and evaluates on "
                f"{recipe.evaluation.split!r}; evaluate on another split by evaluation.split=NAME."
            ) from error


def _build_tokenizer(recipe: Recipe, store: SampleStore):
    settings = recipe.tokenizer
    if settings.source == "train":
        return train_tokenizer(store.texts(), settings.vocab_size, settings.max_length)
    tokenizer = load_tokenizer(settings.source)
    tokenizer.model_max_length = min(tokenizer.model_max_length, settings.max_length)
    return tokenizer


def build_config(recipe: Recipe, tokenizer=None) -> RegionMedClipConfig:
    """The model's config from the recipe's `model`, with image size and special tokens filled in."""
    fields = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.model.items()}
    _refuse_unknown_keys(recipe.name, fields)
    vision = fields.get("vision_config", DEFAULT_VISION_CONFIG)
    config = RegionMedClipConfig(**{**fields, "vision_config": {**vision, "image_size": recipe.image_size}})
    if tokenizer is not None:
        text = config.text_config
        text.vocab_size = len(tokenizer)
        text.pad_token_id = tokenizer.pad_token_id
        text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    return config


def _refuse_unknown_keys(recipe_name: str, fields: dict[str, Any]) -> None:
    """Raises a ValueError for a key of `model`, or of a tower's config in it, that the config would silently ignore."""
    known = {"model": {item.name for item in dataclasses.fields(RegionMedClipConfig)}}
    for tower in ("vision_config", "text_config"):
        model_type = fields.get(tower, {}).get("model_type")
        if model_type in CONFIG_MAPPING:
            known[f"model.{tower}"] = {*CONFIG_MAPPING[model_type]().to_dict(), "model_type"}
    for where, names in known.items():
        given = fields if where == "model" else fields[where.partition(".")[2]]
        for key in given:
            if key not in names:
                raise ValueError(
                    f"recipe {recipe_name!r}: {where} has the unknown key {key!r}; the known keys are "
                    f"{', '.join(sorted(names))}."
                )


def build_model(recipe: Recipe, processor: RegionMedClipProcessor) -> RegionMedClipModel:
    """The recipe's model, the same on every process: what no checkpoint gives is drawn from the recipe's seed."""
    set_seed(recipe.seed)
    started = load_start(recipe) if START in recipe.model else None
    config = build_config(recipe, processor.tokenizer) if started is None else started.config
    try:
        processor.check_text_tower(config.to_dict())
    except ValueError as error:
        raise ValueError(
            f"recipe {recipe.name!r}: {error} A recipe sets these by tokenizer.source, tokenizer.max_length, "
            "model.text_config and model.text_pooling."
        ) from error
    return RegionMedClipModel(config) if started is None else started


def remove_cache(run: TrainedRun) -> None:
    """Deletes what a finished run has prepared; a resume prepares it again."""
    shutil.rmtree(run.cache)
