"""Starting a run from a checkpoint: the recipe's `model.start` names its folder, whose tokenizer and frames it keeps.

    model: {start: FOLDER}        # a CLIP, SigLIP, dual-encoder or open_clip folder, or one this model was saved in
    tokenizer: {source: start}
    image_size: 224               # the checkpoint's

Other keys of `model` are fields of RegionMedClipConfig that the checkpoint does not decide, as `from_clip_pretrained`
takes them. Images are always shown whole (geometry "pad").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import Recipe

START = "start"
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")
DIGEST_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Start:
    """What a run takes from the checkpoint before its model is built; `revision` hashes the checkpoint's files."""

    config: RegionMedClipConfig
    processor: RegionMedClipProcessor
    revision: str


def open_start(recipe: Recipe) -> Start | None:
    """The checkpoint that the recipe starts from; None if it names none.

    Raises:
        ValueError: if it cannot be read, or if the recipe's tokenizer or image size is not the checkpoint's.
    """
    has_start, takes_tokenizer = START in recipe.model, recipe.tokenizer.source == START
    if has_start != takes_tokenizer:
        raise ValueError(
            f"recipe {recipe.name!r}: model.start is {recipe.model.get(START)!r} and tokenizer.source "
            f"{recipe.tokenizer.source!r}; a text tower that has learnt a tokenizer's ids keeps that tokenizer, so set "
            "both (tokenizer.source=start) or neither."
        )
    if not has_start:
        return None
    folder = _folder(recipe)
    try:
        processor = (
            RegionMedClipProcessor.from_pretrained(folder)
            if _is_own(folder)
            else RegionMedClipProcessor.from_clip_pretrained(folder)
        )
        config = load_start(recipe).config
    except (ValueError, OSError) as error:
        raise ValueError(f"recipe {recipe.name!r}: model.start cannot be used: {error}") from error
    images = processor.image_processor
    if images.geometry != "pad" or images.frame_size != (recipe.image_size, recipe.image_size):
        raise ValueError(
            f"recipe {recipe.name!r}: image_size is {recipe.image_size} and {folder} makes frames of "
            f"{images.frame_size} pixels with geometry {images.geometry!r}; training needs the checkpoint's size and "
            f"'pad', so set image_size={images.frame_size[0]}, or save its processor anew with geometry='pad'."
        )
    tokenizer = processor.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, recipe.tokenizer.max_length)
    return Start(config, processor, digest(folder))


def load_start(recipe: Recipe) -> RegionMedClipModel:
    """The model that the recipe starts from; new parts by torch's random state."""
    folder = _folder(recipe)
    overrides = {key: value for key, value in recipe.model.items() if key != START}
    if not _is_own(folder):
        return RegionMedClipModel.from_clip_pretrained(folder, **overrides)
    if overrides:
        raise ValueError(
            f"recipe {recipe.name!r}: {folder} was saved by this model and is taken as it is; leave "
            f"{sorted(overrides)} out of `model`."
        )
    return RegionMedClipModel.from_pretrained(folder, dtype=torch.float32)


def _folder(recipe: Recipe) -> Path:
    folder = Path(recipe.model[START])
    if not folder.is_dir():
        raise ValueError(
            f"recipe {recipe.name!r}: model.start={str(folder)!r} is not a folder; download the checkpoint first, for "
            "instance by `hf download ORG/NAME --local-dir FOLDER`."
        )
    return folder


def _is_own(folder: Path) -> bool:
    """Whether the folder holds a saved RegionMedClipModel."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == "regionmed_clip"


def digest(folder: Path) -> str:
    """16 hexadecimal digits over names and contents of the checkpoint's files, wherever the folder lies."""
    state = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DIGESTED_SUFFIXES):
        state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(DIGEST_CHUNK_BYTES):
                state.update(chunk)
    return state.hexdigest()[:16]
