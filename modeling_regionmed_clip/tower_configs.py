"""Which encoders of the library may be a tower, and what their configs say of pooling and widths."""

import copy

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
)

TEXT_POOLING_OF_MODEL_TYPE = {
    "clip_text_model": "eos",
    "siglip_text_model": "last",
    **dict.fromkeys(
        (
            "albert",
            "bert",
            "camembert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "megatron-bert",
            "modernbert",
            "roberta",
            "xlm-roberta",
        ),
        "cls",
    ),
}
OTHER_TEXT_POOLING = "mean"
TEXT_POOLINGS = ("eos", "last", "cls", "mean", "pooler")
IMAGE_POOLINGS = ("tower", "mean", "pooler")
CAUSAL_TEXT_TYPES = ("clip_text_model",)

NAFLEX = (
    "is a NaFlex tower, which takes flattened patches of images of any shape; use a fixed-resolution SigLIP2 "
    "checkpoint (for instance google/siglip2-base-patch16-224), whose towers are siglip_vision_model and "
    "siglip_text_model"
)
REFUSED_TYPES = {
    "siglip2": NAFLEX,
    "siglip2_vision_model": NAFLEX,
    "siglip2_text_model": NAFLEX,
    "pixtral": "packs all images of a batch into one sequence; use siglip_vision_model or vit",
    "vit_mae": "drops and shuffles patches at random; use vit, which takes the same encoder weights",
    "yolos": "puts detection tokens after the patches; use vit",
}


def build_tower_config(name: str, value: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    """A config object of our own for a tower, from what a user or a saved config.json gives.

    Args:
        name: "vision_config" or "text_config", for messages.
        default: taken for None; its `model_type` also for a dict without one.

    Raises:
        ValueError: for a type that the library does not know or that is no single encoder.
    """
    if not (value is None or isinstance(value, dict | PreTrainedConfig)):
        raise ValueError(
            f"RegionMedClipConfig.{name} is {value!r}; give the tower's config, or its dict with a model_type."
        )
    if isinstance(value, PreTrainedConfig):
        config = copy.deepcopy(value)
    else:
        fields = dict(value or default)
        model_type = fields.pop("model_type", default["model_type"])
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"RegionMedClipConfig.{name} has model_type {model_type!r}, which the installed transformers does not "
                "know; use the model_type of a vision or text tower, for instance clip_vision_model or bert."
            )
        _refuse_by_name(name, model_type)
        config = CONFIG_MAPPING[model_type](**fields)
    _refuse_by_name(name, config.model_type)
    if any(isinstance(getattr(config, part, None), PreTrainedConfig) for part in ("vision_config", "text_config")):
        raise ValueError(
            f"RegionMedClipConfig.{name} has model_type {config.model_type!r}, a model of several towers; give its "
            f"{name} instead, or start from the whole checkpoint by RegionMedClipModel.from_clip_pretrained."
        )
    return config


def _refuse_by_name(name: str, model_type: str) -> None:
    if model_type in REFUSED_TYPES:
        raise ValueError(f"RegionMedClipConfig.{name} has model_type {model_type!r}: it {REFUSED_TYPES[model_type]}.")


def settle_vision_config(vision: PreTrainedConfig, image_pooling: str) -> None:
    """Checks the vision tower's config, and takes away the pooling head (SigLIP) that `image_pooling` leaves unused.

    Raises:
        ValueError: for a tower without one width, image size and patch size, or without the head it would pool by.
    """
    for name in ("hidden_size", "image_size", "patch_size"):
        if not isinstance(getattr(vision, name, None), int):
            raise ValueError(
                f"RegionMedClipConfig.vision_config ({vision.model_type}) has {name} {getattr(vision, name, None)!r}; "
                "a patch-based tower with one whole number for it is needed, for instance clip_vision_model or vit."
            )
    if type(vision) not in MODEL_MAPPING:
        raise ValueError(
            f"RegionMedClipConfig.vision_config has model_type {vision.model_type!r}, for which the installed "
            "transformers has no plain encoder; use for instance clip_vision_model or vit."
        )
    if vision.image_size % vision.patch_size:
        raise ValueError(
            f"RegionMedClipConfig.vision_config has image_size {vision.image_size} and patch_size "
            f"{vision.patch_size}; the patch size must divide the image size."
        )
    if vision.model_type == "siglip_vision_model":
        if image_pooling == "mean":
            vision.vision_use_head = False  # in transformers 5.20 an attribute that only the model knows
        elif not getattr(vision, "vision_use_head", True):
            raise ValueError(
                f"RegionMedClipConfig.image_pooling is {image_pooling!r} and vision_config ({vision.model_type}) has "
                "vision_use_head False, so nothing pools; set image_pooling='mean', or vision_use_head to True."
            )


def settle_text_pooling(text: PreTrainedConfig, text_pooling: str | None) -> str:
    """The text pooling: the given one, or for None that of the tower's type.

    Raises:
        ValueError: for a tower that is no text encoder, or one that does not fit the pooling.
    """
    _check_text_config(text)
    pooling = text_pooling or TEXT_POOLING_OF_MODEL_TYPE.get(text.model_type, OTHER_TEXT_POOLING)
    if pooling in ("cls", "pooler") and text.model_type in CAUSAL_TEXT_TYPES:
        raise ValueError(
            f"RegionMedClipConfig.text_pooling is {pooling!r} and the text tower {text.model_type!r} is causal: its "
            "first position sees no other, so all texts would be equal. Use 'eos' or 'mean'."
        )
    if pooling == "last" and TEXT_POOLING_OF_MODEL_TYPE.get(text.model_type) != "last":
        raise ValueError(
            "RegionMedClipConfig.text_pooling is 'last', which is how siglip_text_model pools, and the text tower is "
            f"{text.model_type!r}; leave text_pooling out to get the one of its type."
        )
    if pooling == "last" and text.pad_token_id is None:
        raise ValueError(
            "RegionMedClipConfig.text_pooling is 'last', which needs texts padded to full length, and text_config has "
            "no pad_token_id; set it to that of the tokenizer."
        )
    return pooling


def _check_text_config(text: PreTrainedConfig) -> None:
    kind = type(text)
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if text.is_encoder_decoder or decodes or getattr(text, "is_decoder", False):
        raise ValueError(
            f"RegionMedClipConfig.text_config has model_type {text.model_type!r}, "
            f"{'an encoder-decoder' if text.is_encoder_decoder else 'a decoder'}; a text tower is an encoder, for "
            "instance bert, modernbert, clip_text_model or siglip_text_model."
        )
    has_encoder = kind in MODEL_MAPPING or text.model_type in TEXT_POOLING_OF_MODEL_TYPE
    if not has_encoder or not all(isinstance(getattr(text, n, None), int) for n in ("hidden_size", "vocab_size")):
        raise ValueError(
            f"RegionMedClipConfig.text_config has model_type {text.model_type!r}, hidden_size "
            f"{getattr(text, 'hidden_size', None)!r} and vocab_size {getattr(text, 'vocab_size', None)!r}; a text "
            "encoder with one whole number for each is needed, for instance bert or clip_text_model."
        )


def pooled_image_width(vision: PreTrainedConfig, image_pooling: str) -> int:
    """Width of the pooled image state that the projection takes."""
    return (
        getattr(vision, "pooler_output_size", vision.hidden_size) if image_pooling == "pooler" else vision.hidden_size
    )


def pooled_text_width(text: PreTrainedConfig, text_pooling: str) -> int:
    """Width of the pooled text state that the projection takes; SigLIP's head may widen it."""
    return text.projection_size if text_pooling == "last" else text.hidden_size
