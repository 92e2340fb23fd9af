"""Existing checkpoints as starts: CLIP, SigLIP, dual encoders and single towers of transformers, open_clip folders."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers.utils import CONFIG_NAME, logging

from .open_clip_checkpoints import is_open_clip, read_open_clip
from .source_checkpoint import PROJECTIONS, REGION_PARTS, SourceCheckpoint, build_model, start_region_path
from .tower_configs import REFUSED_TYPES

WHOLE_CHECKPOINTS = ("clip", "siglip", "vision-text-dual-encoder")
# How a dual encoder's towers pool: those with a dense layer on the first token, and those that pool as here anyway.
DENSE_POOLERS = ("vit", "deit", "bert", "roberta", "xlm-roberta", "camembert")
OWN_POOLING = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit")
OWN_POOLING += ("clip_text_model",)  # SiglipTextModel is unknown to AutoModel, so no dual encoder has it
POOLING_LAYERS = ("pooler.", "head.")

logger = logging.get_logger(__name__)


class CheckpointStarts:
    """The classmethods by which RegionMedClipModel starts from checkpoints of others."""

    @classmethod
    def from_clip_pretrained(cls, path: str | Path, **overrides: Any) -> PreTrainedModel:
        """A float32 model, in evaluation mode, whose global logits equal those of a CLIP-like checkpoint bit for bit.

        (At the checkpoint's image size, in float32, with the same attention implementation, on the input_ids that its
        own tokenizer gives: SigLIP texts at full length, without an attention mask. open_clip's to rounding.)
        The region path has new weights that follow torch's random state, and begins near the checkpoint's dense
        features; see `start_region_path`. Tensors that are not used are named in the log.

        Args:
            path: folder or Hub id of a CLIPModel, SiglipModel (SigLIP2 of fixed resolution too) or
                VisionTextDualEncoderModel; or a folder in open_clip's format, see `open_clip_checkpoints.py`.
            overrides: fields of RegionMedClipConfig that the checkpoint does not decide, for instance `roi_num_layers`;
                and `attn_implementation`.

        Raises:
            ValueError: for another kind of checkpoint (NaFlex SigLIP2 by name), an override that contradicts it, and a
                tensor that is missing or of another shape; in open_clip's format also for one without a known place.
        """
        with torch.random.fork_rng(devices=[]):  # what loading draws at random is not kept
            source = read_whole_checkpoint(path)
        model = build_model(cls, source, overrides)
        start_region_path(model)
        return model

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | Path | PreTrainedModel, text: str | Path | PreTrainedModel, **overrides: Any
    ) -> PreTrainedModel:
        """A float32 model, in evaluation mode, with the weights of two towers; all else is new, by torch's random seed.

        Args:
            vision: vision encoder of transformers, as a folder, Hub id or loaded model; of a whole checkpoint (as
                `from_clip_pretrained` reads) its vision tower is taken.
            text: text encoder, likewise.
            overrides: fields of RegionMedClipConfig, for instance `projection_dim`; and `attn_implementation`.

        Raises:
            ValueError: for a tower that cannot be read (see RegionMedClipConfig) or whose weights are not whole.
        """
        towers = {"vision": vision, "text": text}
        names = [str(tower) if isinstance(tower, (str, Path)) else type(tower).__name__ for tower in towers.values()]
        parts = {"fields": {}, "weights": {}, "ignored": {}, "fresh": (*REGION_PARTS, *PROJECTIONS)}
        with torch.random.fork_rng(devices=[]):
            for side, tower in towers.items():
                parts[f"{side}_config"], weights, left_over = read_tower(tower, side)
                parts["weights"] |= {f"{side}_model.{name}": tensor for name, tensor in weights.items()}
                parts["ignored"] |= dict.fromkeys(left_over, f"it is no part of the {side} encoder")
        return build_model(cls, SourceCheckpoint(" + ".join(names), **parts), overrides)


def read_whole_checkpoint(path: str | Path) -> SourceCheckpoint:
    """The checkpoint of an image-text model; see `CheckpointStarts.from_clip_pretrained`."""
    folder = Path(path)
    if is_open_clip(folder) and not (folder / CONFIG_NAME).is_file():
        return read_open_clip(folder)
    model_type = _model_type(path)
    if model_type not in WHOLE_CHECKPOINTS:
        if is_open_clip(folder):
            return read_open_clip(folder)
        raise ValueError(f"{path} has model_type {model_type!r}; {_way_out(model_type)}")
    model, weights, left_over = _load(str(path), model_type)
    readers = {"clip": _read_clip, "siglip": _read_siglip, "vision-text-dual-encoder": _read_dual_encoder}
    source = SourceCheckpoint(str(path), model.config.vision_config, model.config.text_config, {}, weights)
    source.ignored = dict.fromkeys(left_over, f"{type(model).__name__} has no such tensor")
    readers[model_type](source, model)
    source.set_temperature(weights.pop("logit_scale"), weights.pop("logit_bias", None))
    return source


def _model_type(path: str | Path) -> str:
    """What config.json of a folder or Hub repository says; it need not be a type that the library knows."""
    return PreTrainedConfig.get_config_dict(str(path))[0].get("model_type", "")


def _way_out(model_type: str) -> str:
    if model_type in REFUSED_TYPES:
        return f"it {REFUSED_TYPES[model_type]}."
    if model_type == "regionmed_clip":
        return "that is a checkpoint of this model; load it with from_pretrained."
    return (
        f"it must be one of {', '.join(WHOLE_CHECKPOINTS)}. Of two separate encoders use from_vision_text_pretrained."
    )


def _load(path: str, model_type: str) -> tuple[PreTrainedModel, dict[str, Tensor], list[str]]:
    """A model of transformers in float32, its weights as far as they were read, and the names of tensors left over.

    Raises:
        ValueError: if weights other than those of a pooling layer were not read, or do not fit.
    """
    auto_class = SiglipTextModel if model_type == "siglip_text_model" else AutoModel  # which does not know that one
    settings = {"dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = auto_class.from_pretrained(path, trust_remote_code=False, **settings)
    except RuntimeError as error:  # the library's answer to shapes that do not fit
        raise ValueError(f"{path}: the weights do not fit config.json: {error}") from error
    missing = sorted(info["missing_keys"])
    needed = [name for name in missing if not name.startswith(POOLING_LAYERS)]
    if needed:
        raise ValueError(
            f"{path} lacks the weights of {', '.join(needed[:3])}{' and others' if len(needed) > 3 else ''}; they "
            "would be random. Look whether the files are complete and fit config.json."
        )
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in missing}
    return model, weights, sorted(info["unexpected_keys"])


def _read_clip(source: SourceCheckpoint, model: PreTrainedModel) -> None:
    source.fields |= {"projection_dim": model.config.projection_dim, "image_pooling": "tower", "text_pooling": "eos"}
    source.fields |= {"visual_projection_type": "linear", "text_projection_type": "linear", "embedding_norm": "clip"}
    source.fields |= {"logit_bias_init_value": None}


def _read_siglip(source: SourceCheckpoint, model: PreTrainedModel) -> None:
    width, text_width = source.vision_config.hidden_size, source.text_config.projection_size
    has_head = getattr(source.vision_config, "vision_use_head", True)  # transformers 5.20 has no such field
    if not has_head or width != text_width:
        raise ValueError(
            f"{source.name}: vision_use_head is {has_head}, its image embedding has width {width} and its text "
            f"embedding {text_width}; SiglipModel itself gives no logits for such a checkpoint. Use "
            "from_vision_text_pretrained, which adds projections."
        )
    source.fields |= {"projection_dim": width, "image_pooling": "tower", "text_pooling": "last"}
    source.fields |= {"visual_projection_type": "identity", "text_projection_type": "identity", "embedding_norm": "l2"}
    source.text_config = _with_ids_of_tokenizer(source.text_config, source.name)


def _with_ids_of_tokenizer(config: PreTrainedConfig, path: str) -> PreTrainedConfig:
    """The text config with the special tokens of the folder's tokenizer; those of SigLIP configs are often defaults."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0][:200]
        logger.warning(f"{path}: no tokenizer can be read ({reason}); the special tokens of its config are kept.")
        return config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    return config


def _read_dual_encoder(source: SourceCheckpoint, model: PreTrainedModel) -> None:
    source.fields |= {"projection_dim": model.config.projection_dim, "embedding_norm": "l2"}
    source.fields |= {"visual_projection_type": "linear", "text_projection_type": "linear"}
    source.fields |= {"logit_bias_init_value": None}
    for side, pooling, own in (("vision", "image_pooling", "tower"), ("text", "text_pooling", None)):
        model_type = getattr(source, f"{side}_config").model_type
        if model_type not in (*DENSE_POOLERS, *OWN_POOLING):
            raise ValueError(
                f"{source.name}: how the {side} tower {model_type!r} of a dual encoder pools is not known here; known "
                f"are {', '.join((*DENSE_POOLERS, *OWN_POOLING))}. Use from_vision_text_pretrained instead."
            )
        source.fields[pooling] = "pooler" if model_type in DENSE_POOLERS else own


def read_tower(tower: str | Path | PreTrainedModel, side: str) -> tuple[PreTrainedConfig, dict[str, Tensor], list[str]]:
    """Of the "vision" or "text" encoder that is given, or lies in the checkpoint given.

    Returns:
        its config, its weights in float32, and the names of tensors beside it that belong to no whole checkpoint.
    """
    prefix, left_over = f"{side}_model.", []
    if isinstance(tower, PreTrainedModel):
        model = getattr(tower, f"{side}_model", tower).base_model
        return model.config, {name: tensor.float() for name, tensor in model.state_dict().items()}, left_over
    if is_open_clip(Path(tower)) and not (Path(tower) / CONFIG_NAME).is_file():
        source = read_open_clip(Path(tower))
        config, weights = getattr(source, f"{side}_config"), source.weights
    else:
        model_type = _model_type(tower)
        if model_type in REFUSED_TYPES or model_type == "regionmed_clip":
            raise ValueError(f"{tower} has model_type {model_type!r}; {_way_out(model_type)}")
        model, weights, left_over = _load(str(tower), model_type)
        if not hasattr(model, f"{side}_model"):
            return model.config, weights, left_over
        config = getattr(model, f"{side}_model").config
        if config.model_type == "siglip_text_model":
            config = _with_ids_of_tokenizer(config, str(tower))
    weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return config, weights, left_over
