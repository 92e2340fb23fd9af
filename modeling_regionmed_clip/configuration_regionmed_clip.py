"""Configuration of RegionMed-CLIP: two towers by their own configs, the ROI processor and the shared space."""

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

TEXT_POOLING_OF_MODEL_TYPE = {
    "clip_text_model": "eos",
    "siglip_text_model": "last",
    "bert": "cls",
    "roberta": "cls",
    "distilbert": "cls",
    "modernbert": "cls",
}
TEXT_POOLINGS = ("eos", "last", "cls", "mean")
IMAGE_POOLINGS = ("tower", "mean")
ROI_MODES = ("prompter", "roialign", "maskpool")
PROJECTIONS = ("linear", "identity", "mlp")
EMBEDDING_NORMS = ("l2", "clip")

DEFAULT_VISION_CONFIG = {"model_type": "clip_vision_model", "patch_size": 16}  # ViT-B/16 at 224 pixels
DEFAULT_TEXT_CONFIG = {"model_type": "bert"}  # BERT-base


class RegionMedClipConfig(PreTrainedConfig):
    """Sizes and switches of a `RegionMedClipModel`; the defaults are a real ViT-B/16 with a BERT-base text tower.

    Args:
        vision_config: config of the vision tower, or its dict with a `model_type`; must state `image_size` and
            `patch_size`.
        text_config: config of the text tower, or its dict with a `model_type`.
        projection_dim: D, width of the space that images, regions and texts share.
        image_pooling: "tower" takes the vision tower's own pooled token; "mean" takes the mean of its patch tokens.
        text_pooling: "eos", "last", "cls" or "mean"; None chooses by the text tower's `model_type`.
        visual_projection_type, text_projection_type: how a pooled state reaches the shared space; "linear" has no bias,
            "identity" needs a tower of width D, "mlp" is Linear-GELU-Linear without biases (BiomedCLIP's text side).
        embedding_norm: how global embeddings get unit length; "clip" is CLIPModel's formula, which differs from "l2"
            in the last bit, so that a CLIP checkpoint's logits are met exactly.
        roi_mode: how a region becomes an embedding; "prompter" is box-prompted attention, "roialign" and "maskpool"
            are plain pooling rules, for comparison.
        roi_num_layers: cross-attention blocks of the prompter, at least 1.
        roi_num_heads: attention heads of the prompter; None gives one for every 64 channels of the vision tower.
        fusion_num_heads: attention heads of the fusion; None gives one for every 64 channels of the shared space.
        roi_num_frequencies: sine/cosine pairs per coordinate of the box and patch position encodings.
        logit_scale_init_value: natural logarithm of the initial inverse temperature of every contrastive term.
        logit_scale_max: largest inverse temperature; the learnt one is clamped to it.
        logit_bias_init_value: what is added to the global logits at first (SigLIP); None: there is no bias.
        proposal_threshold: least score in [0, 1] at which `propose_regions` proposes a region.
        initializer_range: kept for tools that read it; the projections use 1 / sqrt(fan in).

    Raises:
        ValueError: for an unknown tower type, pooling or ROI mode, or a size that does not divide.
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
    proposal_threshold: float = 0.5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = _build_sub_config("vision_config", self.vision_config, DEFAULT_VISION_CONFIG)
        self.text_config = _build_sub_config("text_config", self.text_config, DEFAULT_TEXT_CONFIG)
        if self.text_pooling is None:
            self.text_pooling = TEXT_POOLING_OF_MODEL_TYPE.get(self.text_config.model_type, "mean")
        if self.roi_num_heads is None:
            self.roi_num_heads = max(1, self.vision_config.hidden_size // 64)
        if self.fusion_num_heads is None:
            self.fusion_num_heads = max(1, self.projection_dim // 64)
        self._check_choices()
        self._check_sizes()
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
        for name in ("projection_dim", "roi_num_layers", "roi_num_heads", "roi_num_frequencies", "fusion_num_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"RegionMedClipConfig.{name} is {value!r}; it must be a whole number of at least 1.")
        vision = self.vision_config
        for name in ("hidden_size", "image_size", "patch_size"):
            if not isinstance(getattr(vision, name, None), int):
                raise ValueError(
                    f"RegionMedClipConfig.vision_config ({vision.model_type}) has {name} "
                    f"{getattr(vision, name, None)!r}; a patch-based tower with one whole number for it is needed, for "
                    "instance clip_vision_model or vit."
                )
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"RegionMedClipConfig.vision_config has image_size {vision.image_size} and patch_size "
                f"{vision.patch_size}; the patch size must divide the image size."
            )
        if not 0 <= self.proposal_threshold <= 1:
            raise ValueError(
                f"RegionMedClipConfig.proposal_threshold is {self.proposal_threshold}; a score lies in [0, 1]."
            )
        for side, tower in (("visual", vision), ("text", self.text_config)):
            if getattr(self, f"{side}_projection_type") == "identity" and tower.hidden_size != self.projection_dim:
                raise ValueError(
                    f"RegionMedClipConfig.{side}_projection_type is 'identity' and its tower has width "
                    f"{tower.hidden_size}; it must equal projection_dim = {self.projection_dim}. Take 'linear'."
                )
        for name, width_name, width in (
            ("roi_num_heads", "vision_config.hidden_size", vision.hidden_size),
            ("fusion_num_heads", "projection_dim", self.projection_dim),
        ):
            if width % getattr(self, name):
                raise ValueError(
                    f"RegionMedClipConfig.{name} is {getattr(self, name)}; it must divide {width_name} = {width}."
                )

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image at the tower's native size."""
        return self.vision_config.image_size // self.vision_config.patch_size


def _build_sub_config(name: str, value: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    """A config object for a tower, from what a user or a saved config.json gives."""
    if value is not None and not isinstance(value, dict):
        return value
    fields = dict(value or default)
    model_type = fields.pop("model_type", default["model_type"])
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"RegionMedClipConfig.{name} has model_type {model_type!r}, which the installed transformers does not "
            "know; use the model_type of a vision or text tower, for instance clip_vision_model or bert."
        )
    return CONFIG_MAPPING[model_type](**fields)


__all__ = ["RegionMedClipConfig"]
