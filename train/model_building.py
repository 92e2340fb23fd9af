"""A recipe's model: its config with every key checked, its weights from the recipe's seed or from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from accelerate.utils import set_seed
from transformers import CONFIG_MAPPING

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from modeling_regionmed_clip.configuration_regionmed_clip import DEFAULT_VISION_CONFIG
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import Recipe
from .starts import Start
from .tokenizer import load_tokenizer, train_tokenizer


def build_processor(
    recipe: Recipe,
    config: RegionMedClipConfig,
    image_processor: RegionMedClipImageProcessor,
    texts: Iterable[str],
) -> RegionMedClipProcessor:
    """The processor of a model without a checkpoint's own; its tokenizer is trained on `texts` or read."""
    settings = recipe.tokenizer
    if settings.source == "train":
        tokenizer = train_tokenizer(texts, settings.vocab_size, settings.max_length)
    else:
        tokenizer = load_tokenizer(settings.source)
        tokenizer.model_max_length = min(tokenizer.model_max_length, settings.max_length)
    return RegionMedClipProcessor(image_processor, tokenizer, config.text_pooling == "last")


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


def build_model(recipe: Recipe, processor: RegionMedClipProcessor, start: Start | None = None) -> RegionMedClipModel:
    """The recipe's model, the same on every process: what no checkpoint gives is drawn from the recipe's seed.

    Args:
        start: what `open_start` gives for the recipe.
    """
    started = None if start is None else start.build_model()
    config = build_config(recipe, processor.tokenizer) if started is None else started.config
    try:
        processor.check_text_tower(config.to_dict())
    except ValueError as error:
        raise ValueError(
            f"recipe {recipe.name!r}: {error} A recipe sets these by tokenizer.source, tokenizer.max_length, "
            "model.text_config and model.text_pooling."
        ) from error
    if started is not None:
        return started
    set_seed(recipe.seed)
    return RegionMedClipModel(config)
