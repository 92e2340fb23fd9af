"""Starting a run from a checkpoint: the recipe's `model.start` names its folder, whose tokenizer and frames it keeps.

    model: {start: FOLDER}        # a CLIP, SigLIP, dual-encoder or open_clip folder, or one this model was saved in
                                  # (OUTPUT_DIR/final), or OUTPUT_DIR/adapter, merged into its base
    tokenizer: {source: start}
    image_size: 224               # the checkpoint's

Other keys of `model` are fields of RegionMedClipConfig that the checkpoint does not decide, as `from_clip_pretrained`
takes them. Images are always shown whole (geometry "pad"). A recipe need not name the folder: the command line does it
by model.start=FOLDER tokenizer.source=start.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from transformers import AutoConfig

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .adapter_files import TOWER_PARTS, base_of_adapter, is_adapter, load_with_adapter
from .arguments import Recipe

START = "start"
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")
DIGEST_CHUNK_BYTES = 1 << 24


@dataclass
class Start:
    """What a run takes from a checkpoint; `revision` hashes the checkpoint's files."""

    recipe: Recipe
    processor: RegionMedClipProcessor
    revision: str
    config: RegionMedClipConfig
    _read: RegionMedClipModel | None  # the first run's, read by `open_start`: the weights decide a part of the config

    def build_model(self) -> RegionMedClipModel:
        """A model of the checkpoint's weights, each time a fresh one; new parts by the recipe's seed."""
        model, self._read = self._read, None
        return load_start(self.recipe) if model is None else model

    def find_base(self, model: RegionMedClipModel) -> Path | None:
        """The start's folder if this model was saved there with the very tower weights that `model` has, else None."""
        folder = start_folder(self.recipe)
        if not _is_own(folder):
            return None
        towers = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(TOWER_PARTS)}
        started = load_start(self.recipe).state_dict()
        return folder if all(torch.equal(started[name], tensor.cpu()) for name, tensor in towers.items()) else None


def open_start(recipe: Recipe) -> Start | None:
    """The checkpoint that the recipe starts from; None if it names none.

    Raises:
        ValueError: if it cannot be read, or if the recipe's tokenizer, image size or loss is not the checkpoint's.
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
    folder = start_folder(recipe)
    try:
        processor = load_processor(folder)
        model = load_start(recipe)
    except (ValueError, OSError) as error:
        raise ValueError(f"recipe {recipe.name!r}: model.start cannot be used: {error}") from error
    images = processor.image_processor
    if images.geometry != "pad" or images.frame_size != (recipe.image_size, recipe.image_size):
        raise ValueError(
            f"recipe {recipe.name!r}: image_size is {recipe.image_size} and {folder} makes frames of "
            f"{images.frame_size} pixels with geometry {images.geometry!r}; training needs the checkpoint's size and "
            f"'pad', so set image_size={images.frame_size[0]}, or save its processor anew with geometry='pad'."
        )
    sigmoid = [stage.name for stage in recipe.stages if "sigmoid" in stage.loss_kinds.values()]
    if sigmoid and model.config.logit_bias_init_value is None:
        way_out = " ".join(f"stages.{name}.loss_kinds={{}}" for name in sigmoid)
        raise ValueError(
            f"recipe {recipe.name!r}: the stages {', '.join(sigmoid)} have a sigmoid loss, and {folder} no bias to "
            f"it, as checkpoints like CLIP's; train with InfoNCE by {way_out}."
        )
    tokenizer = processor.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, recipe.tokenizer.max_length)
    parts = [folder, base_of_adapter(folder)] if is_adapter(folder) else [folder]
    return Start(recipe, processor, "-".join(digest(part) for part in parts), model.config, model)


def load_processor(folder: Path) -> RegionMedClipProcessor:
    """The processor of a folder that a run can start from."""
    AutoConfig.register(RegionMedClipConfig.model_type, RegionMedClipConfig, exist_ok=True)  # the tokenizer asks for it
    if is_adapter(folder):
        folder = base_of_adapter(folder)
    own = _is_own(folder)
    return (RegionMedClipProcessor.from_pretrained if own else RegionMedClipProcessor.from_clip_pretrained)(folder)


def load_start(recipe: Recipe) -> RegionMedClipModel:
    """The model that the recipe starts from, new parts by its seed."""
    set_seed(recipe.seed)
    folder = start_folder(recipe)
    overrides = {key: value for key, value in recipe.model.items() if key != START}
    if not _is_own(folder) and not is_adapter(folder):
        return RegionMedClipModel.from_clip_pretrained(folder, **overrides)
    if overrides:
        raise ValueError(
            f"recipe {recipe.name!r}: {folder} was saved by this model and is taken as it is; leave "
            f"{sorted(overrides)} out of `model`."
        )
    if is_adapter(folder):
        return load_with_adapter(folder)
    return RegionMedClipModel.from_pretrained(folder, dtype=torch.float32)


def start_folder(recipe: Recipe) -> Path:
    """The folder that `model.start` names; a ValueError where there is none."""
    given = recipe.model[START]
    folder = Path(str(given))
    if not isinstance(given, str) or not folder.is_dir():
        raise ValueError(
            f"recipe {recipe.name!r}: model.start={given!r} is not a folder; download the checkpoint first, for "
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
