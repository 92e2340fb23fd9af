"""Configuration of RegionMed-CLIP: two towers by their own configs, the ROI processor and the shared space."""

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .tower_configs import (
    IMAGE_POOLINGS,
    TEXT_POOLINGS,
    build_tower_config,
    pooled_image_width,
    pooled_text_width,
    settle_text_pooling,
    settle_vision_config,
)

ROI_MODES = ("prompter", "roialign", "maskpool")
PROJECTIONS = ("linear", "identity", "mlp")
EMBEDDING_NORMS = ("l2", "clip")
MAX_FREQUENCIES = 20
MAX_DEFAULT_ANSWER_WIDTH = 768
CHANNELS_PER_ANSWER_HEAD = 64
SIZES = ("projection_dim", "roi_num_layers", "roi_num_heads", "roi_num_frequencies", "fusion_num_heads")
SIZES += ("answer_hidden_size", "answer_num_layers", "answer_num_heads")

DEFAULT_VISION_CONFIG = {"model_type": "clip_vision_model", "patch_size": 16}  # ViT-B/16 at 224 pixels
DEFAULT_TEXT_CONFIG = {"model_type": "bert"}  # BERT-base


class RegionMedClipConfig(PreTrainedConfig):
    """Sizes and switches of a `RegionMedClipModel`; the defaults are a real ViT-B/16 with a BERT-base text tower.

    Args:
        vision_config: config of the vision tower, or its dict with a `model_type`; must state `image_size` and
            `patch_size`.
        text_config: config of the text tower, or its dict with a `model_type`.
        projection_dim: D, width of the space that images, regions and texts share.
        image_pooling: "tower" takes the vision tower's own pooled state (CLIP's, ViT's and DINO's class token, SigLIP's
            attention head); "mean" the mean of its patch tokens; "pooler" the dense layer with tanh that some
            VisionTextDualEncoder checkpoints have learnt on a ViT's class token.
        text_pooling: "eos" takes the state of the first end token, "last" SigLIP's head on the last position of texts
            padded to full length, "cls" the first token, "mean" all tokens, "pooler" BERT's dense layer with tanh on
            the first token; None chooses by the text tower's `model_type`.
        visual_projection_type, text_projection_type: how a pooled state reaches the shared space; "linear" has no bias,
            "identity" needs a tower of width D, "mlp" is Linear-GELU-Linear without biases (BiomedCLIP's text side).
        embedding_norm: how global embeddings get unit length; "clip" is CLIPModel's formula, which differs from "l2"
            in the last bit, so that a CLIP checkpoint's logits are met exactly.
        roi_mode: how a region becomes an embedding; "prompter" is box-prompted attention, "roialign" and "maskpool"
            are plain pooling rules, for comparison.
        roi_num_layers: cross-attention blocks of the prompter, at least 1.
        roi_num_heads: attention heads of the prompter; None gives one for every 64 channels of the vision tower.
        fusion_num_heads: attention heads of the fusion; None gives one for every 64 channels of the shared space.
        roi_num_frequencies: sine/cosine pairs per coordinate of the box and patch position encodings, at most 20.
        logit_scale_init_value: natural logarithm of the initial inverse temperature of every contrastive term.
        logit_scale_max: largest inverse temperature; the learnt one is clamped to it, and to 1 from below.
        logit_bias_init_value: what is added to the logits of every contrastive term at first (SigLIP), learnt by terms
            of kind "sigmoid"; None: there is no bias.
        proposal_threshold: least score in [0, 1] at which `propose_regions` proposes a region.
        answer_hidden_size: width of the answer head of RegionMedClipForVisualQuestionAnswering; None gives
            projection_dim, but no more than 768.
        answer_num_layers: its co-attention blocks, at least 1.
        answer_num_heads: its attention heads; None gives one for about every 64 channels.
        answer_dropout: its share of dropped channels in training, in [0, 1).
        initializer_range: kept for tools that read it; the projections use 1 / sqrt(fan in).

    Raises:
        ValueError: for an unknown tower type, pooling or ROI mode, a size that does not divide, a number out of range.
    """

    model_type = "regionmed_clip"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    image_pooling: str = "tower"
    text_pooling: str | None = None
    visual_projection_type: str = "linear"
    text_projection_type: str = "linear"
    embedding_norm: str = "l2"
    roi_mode: str = "prompter"
    roi_num_layers: int = 1
    roi_num_heads: int | None = None
    fusion_num_heads: int | None = None
    roi_num_frequencies: int = 6
    logit_scale_init_value: float = 2.6592
    logit_scale_max: float = 100.0
    logit_bias_init_value: float | None = None
    proposal_threshold: float = 0.4
    answer_hidden_size: int | None = None
    answer_num_layers: int = 2
    answer_num_heads: int | None = None
    answer_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = build_tower_config("vision_config", self.vision_config, DEFAULT_VISION_CONFIG)
        self.text_config = build_tower_config("text_config", self.text_config, DEFAULT_TEXT_CONFIG)
        settle_vision_config(self.vision_config, self.image_pooling)
        self.text_pooling = settle_text_pooling(self.text_config, self.text_pooling)
        if self.roi_num_heads is None:
            self.roi_num_heads = max(1, self.vision_config.hidden_size // 64)
        if self.fusion_num_heads is None:
            self.fusion_num_heads = max(1, self.projection_dim // 64)
        if self.answer_hidden_size is None:
            self.answer_hidden_size = self._default_answer_width()
        if self.answer_num_heads is None and isinstance(self.answer_hidden_size, int):
            self.answer_num_heads = _heads_of(self.answer_hidden_size)
        self._check_choices()
        self._check_sizes()
        self._check_numbers()
        super().__post_init__(**kwargs)

    def _check_choices(self) -> None:
        choices = {
            "image_pooling": IMAGE_POOLINGS,
            "text_pooling": TEXT_POOLINGS,
            "visual_projection_type": PROJECTIONS,
            "text_projection_type": PROJECTIONS,
            "embedding_norm": EMBEDDING_NORMS,
            "roi_mode": ROI_MODES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"RegionMedClipConfig.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )

    def _check_sizes(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"RegionMedClipConfig.{name} is {value!r}; it must be a whole number of at least 1.")
        if self.roi_num_frequencies > MAX_FREQUENCIES:
            raise ValueError(
                f"RegionMedClipConfig.roi_num_frequencies is {self.roi_num_frequencies}; float32 fractions of the "
                f"frame tell no more than {MAX_FREQUENCIES} octaves apart. Give {MAX_FREQUENCIES} or fewer."
            )
        for side, width in (("visual", self.pooled_image_width), ("text", self.pooled_text_width)):
            if getattr(self, f"{side}_projection_type") == "identity" and width != self.projection_dim:
                raise ValueError(
                    f"RegionMedClipConfig.{side}_projection_type is 'identity' and its tower has width "
                    f"{width}; it must equal projection_dim = {self.projection_dim}. Take 'linear'."
                )
        for name, width_name, width in (
            ("roi_num_heads", "vision_config.hidden_size", self.vision_config.hidden_size),
            ("fusion_num_heads", "projection_dim", self.projection_dim),
            ("answer_num_heads", "answer_hidden_size", self.answer_hidden_size),
        ):
            if width % getattr(self, name):
                raise ValueError(
                    f"RegionMedClipConfig.{name} is {getattr(self, name)}; it must divide {width_name} = {width}."
                )

    def _check_numbers(self) -> None:
        rules = {"logit_scale_init_value": "", "logit_scale_max": " above 0", "proposal_threshold": " in [0, 1]"}
        rules["answer_dropout"] = " in [0, 1)"
        if self.logit_bias_init_value is not None:
            rules["logit_bias_init_value"] = ""
        for name, rule in rules.items():
            value = getattr(self, name)
            is_met = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name == "logit_scale_max":
                is_met = is_met and value > 0
            elif name == "proposal_threshold":
                is_met = is_met and 0 <= value <= 1
            elif name == "answer_dropout":
                is_met = is_met and 0 <= value < 1
            if not is_met:
                raise ValueError(f"RegionMedClipConfig.{name} is {value!r}; it must be a finite number{rule}.")

    def _default_answer_width(self) -> int:
        return min(self.projection_dim, MAX_DEFAULT_ANSWER_WIDTH)

    def to_diff_dict(self) -> dict[str, Any]:
        """The dict that config.json holds; an encoder's has no field of the answer head that is as by default."""
        fields = super().to_diff_dict()
        if any("QuestionAnswering" in name for name in self.architectures or []):
            return fields
        defaults = {name: getattr(type(self), name) for name in ("answer_num_layers", "answer_dropout")}
        defaults["answer_hidden_size"] = self._default_answer_width()
        defaults["answer_num_heads"] = _heads_of(self.answer_hidden_size)
        return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image at the tower's native size."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def pooled_image_width(self) -> int:
        """Width of the pooled image state that the visual projection takes."""
        return pooled_image_width(self.vision_config, self.image_pooling)

    @property
    def pooled_text_width(self) -> int:
        """Width of the pooled text state that the text projection takes."""
        return pooled_text_width(self.text_config, self.text_pooling)


def _heads_of(width: int) -> int:
    """How many attention heads a width is split into by default: the most of `CHANNELS_PER_ANSWER_HEAD` that fit."""
    most = max(1, width // CHANNELS_PER_ANSWER_HEAD)
    return next(number for number in range(most, 0, -1) if width % number == 0)


__all__ = ["RegionMedClipConfig"]
