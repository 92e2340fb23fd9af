"""How a checkpoint that one starts from wants its images and texts, as the parts of a RegionMedClipProcessor.

Formats: folders or Hub ids of transformers (CLIP, SigLIP and SigLIP2 of fixed resolution, dual encoders), and folders
in open_clip's format. Source of the latter's rules: open_clip's transform.py and tokenizer.py, and the centre crop of
torchvision, which they use: it rounds half a pixel to the even one, where transformers rounds down.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import CONFIG_NAME

from .image_processing_regionmed_clip import RegionMedClipImageProcessor
from .text_tower_check import POSITIONS_AFTER_PADDING

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_TOKENIZER = "openai/clip-vit-base-patch32"  # what open_clip's own text towers use
OPEN_CLIP_RESAMPLE = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
# Their pixels are repeated exactly; the library's others crop, pad or split in ways of their own.
REPEATABLE = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "DeiTImageProcessor")
REPEATABLE += ("BitImageProcessor", "RegionMedClipImageProcessor")
REPEATED_SETTINGS = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
IMAGE_TEXT_TYPES = ("clip", "siglip", "vision-text-dual-encoder")
SIZE_KEYS = ("height", "width", "shortest_edge", "longest_edge")


class _Source(NamedTuple):
    """What a checkpoint says: settings of the image processor, and of its towers the sides that matter here."""

    images: dict[str, Any]
    image_size: int
    tokenizer: Any
    text_type: str
    num_positions: int


def source_parts(path: str | Path, geometry: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments for RegionMedClipProcessor: `image_processor`, `tokenizer` and `text_pad_to_full_length`.

    Args:
        path: of the checkpoint, see the head of the file.
        geometry: "pad", or "source" for the very pixels of the checkpoint's own processor.
        settings: of the image processor, instead of the checkpoint's.

    Raises:
        ValueError: for a checkpoint of no grid of patches (NaFlex), without the files needed, or whose pixels cannot be
            repeated.
    """
    folder = Path(path)
    if (folder / OPEN_CLIP_CONFIG).is_file() and not _is_image_text_model(folder / CONFIG_NAME):
        source = _from_open_clip(folder, geometry)
    else:
        source = _from_transformers(str(path), geometry)
    source.tokenizer.model_max_length = min(source.tokenizer.model_max_length, source.num_positions)
    image_processor = RegionMedClipImageProcessor(**{"geometry": geometry, **source.images})
    if image_processor.frame_size != (source.image_size, source.image_size):
        raise ValueError(
            f"{path}: its image processor makes frames of {image_processor.frame_size} pixels (width, height) and its "
            f"vision tower takes {source.image_size} a side; correct the file that is wrong."
        )
    return {
        "image_processor": image_processor.with_overrides(**settings),
        "tokenizer": source.tokenizer,
        "text_pad_to_full_length": source.text_type == "siglip_text_model",
    }


def _is_image_text_model(config_path: Path) -> bool:
    """Whether a config.json is of a whole model of transformers; in open_clip's folders it may be of a text tower."""
    if not config_path.is_file():
        return False
    return json.loads(config_path.read_text(encoding="utf-8")).get("model_type") in IMAGE_TEXT_TYPES


def _from_transformers(path: str, geometry: str) -> _Source:
    """What a folder or Hub id of transformers says."""
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type", "")
    if model_type.startswith("siglip2"):
        raise ValueError(
            f"{path} is a NaFlex checkpoint of SigLIP2 (model_type {model_type!r}), without a fixed grid of patches; "
            "take one of fixed resolution, named for instance siglip2-base-patch16-224."
        )
    if model_type == "regionmed_clip":
        raise ValueError(f"{path} is a checkpoint of RegionMed-CLIP itself; load its processor with from_pretrained.")
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if vision is None or text is None:
        raise ValueError(
            f"{path} has model_type {config.model_type!r}, which is no image-text model; build "
            "RegionMedClipProcessor(image_processor, tokenizer) from the parts of your two encoders."
        )
    try:
        source = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path}: its image processor or tokenizer cannot be read: {reason} Both must lie beside the weights (a "
            "sentencepiece tokenizer also needs the package sentencepiece)."
        ) from error
    images = _image_settings(source, geometry, path)
    images |= {"patch_size": vision.patch_size}
    limit = text.max_position_embeddings
    if text.model_type in POSITIONS_AFTER_PADDING:
        limit -= text.pad_token_id + 1
    return _Source(images, vision.image_size, tokenizer, text.model_type, limit)


def _image_settings(source: Any, geometry: str, path: str) -> dict[str, Any]:
    """Settings of the image processor `source` for a RegionMedClipImageProcessor of `geometry`."""
    kind = type(source).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in REPEATABLE and geometry == "source":
        raise ValueError(
            f"{path}: geometry 'source' cannot repeat a {kind}; it can {', '.join(REPEATABLE)}. Take geometry='pad'."
        )
    sizes = {
        name: {key: value for key in SIZE_KEYS if (value := getattr(getattr(source, name), key, None)) is not None}
        for name in ("size", "crop_size")
        if getattr(source, name, None) is not None
    }
    crops = bool(getattr(source, "do_center_crop", False)) and "crop_size" in sizes
    settings = {name: getattr(source, name) for name in REPEATED_SETTINGS if getattr(source, name, None) is not None}
    if geometry == "source":
        return (
            settings
            | {"size": sizes["size"], "do_center_crop": crops}
            | ({"crop_size": sizes["crop_size"]} if crops else {})
        )
    settings["do_resize"] = True
    return settings | {"size": sizes["crop_size" if crops else "size"]}


def _from_open_clip(folder: Path, geometry: str) -> _Source:
    """What a folder in open_clip's format says."""
    path = folder / OPEN_CLIP_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        vision, text = content["model_cfg"]["vision_cfg"], content["model_cfg"]["text_cfg"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not open_clip's: it lacks model_cfg with vision_cfg and text_cfg.") from error
    shown = content.get("preprocess_cfg", {})
    side = vision.get("image_size", 224)
    mode, interpolation = shown.get("resize_mode", "shortest"), shown.get("interpolation", "bicubic")
    is_known = interpolation in OPEN_CLIP_RESAMPLE and mode in ("shortest", "squash", "longest")
    if not isinstance(side, int) or not is_known:
        raise ValueError(
            f"{path}: image_size {side}, interpolation {interpolation!r} and resize_mode {mode!r} cannot be repeated; "
            "known are a square, bicubic or bilinear, and shortest, squash or longest."
        )
    if geometry == "source" and mode == "longest":
        raise ValueError(f"{path}: resize_mode is 'longest', which pads; take geometry='pad', which does so too.")
    square = {"height": side, "width": side}
    images = {
        "size": square,
        "resample": OPEN_CLIP_RESAMPLE[interpolation],
        "image_mean": shown.get("mean") or OPENAI_CLIP_MEAN,
        "image_std": shown.get("std") or OPENAI_CLIP_STD,
        "patch_size": _open_clip_patch_size(path, vision),
    }
    if geometry == "source" and mode == "shortest":
        images |= {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        images |= {"crop_rounding": "half_even"}
    kind = "bert" if text.get("hf_model_name") else "clip_text_model"
    return _Source(images, side, _open_clip_tokenizer(folder, text), kind, text.get("context_length", 77))


def _open_clip_patch_size(path: Path, vision: dict[str, Any]) -> int:
    name = vision.get("timm_model_name")
    if name is None:
        return vision.get("patch_size", 16)
    match = re.search(r"_patch(\d+)_", name)
    if match is None:
        raise ValueError(f"{path}: timm_model_name {name!r} names no patch size; only Vision Transformers can be used.")
    return int(match.group(1))


def _open_clip_tokenizer(folder: Path, text: dict[str, Any]) -> Any:
    """The tokenizer in the folder, else the one that the configuration names, from this machine alone."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name") or OPEN_CLIP_TOKENIZER
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no tokenizer (one of {', '.join(TOKENIZER_FILES)}), and its {name!r} is not on this "
            "machine; download that tokenizer's files into the folder."
        ) from error
