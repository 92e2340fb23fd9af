"""The towers: any vision and text encoder of the library, built, called and read in one way.

Letters: B images, T texts, L tokens, P = h x w patches in row-major order, C width of the vision tower.
"""

import inspect

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers.utils import ModelOutput

# modules of a vision tower that make its pooled state and that no patch passes through
POOLING_LAYERS = ("head", "pooler")
INTERPOLATE_IF_ASKED = (
    "chinese_clip_vision_model",
    "clip_vision_model",
    "deit",
    "ijepa",
    "siglip_vision_model",
    "vit",
    "vit_msn",
)
TAKE_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
NORM_CLASS_TOKEN_ONLY = ("chinese_clip_vision_model", "clip_vision_model", "mlcd_vision_model")
VISION_ARGUMENTS = ("interpolate_pos_encoding", "bool_masked_pos")
TEXT_ARGUMENTS = ("token_type_ids", "position_ids", "inputs_embeds")
LEGACY_CLIP_END_ID = 2  # what old CLIP configs state as eos_token_id, and the library knows to be wrong


def build_tower(config: PreTrainedConfig, pooling: str) -> PreTrainedModel:
    """A tower with random weights, holding only parameters that this model's losses can reach.

    Mask tokens of self-supervised towers become buffers under their names, so that checkpoints fit.

    Args:
        config: the tower's own.
        pooling: `image_pooling` or `text_pooling` of `RegionMedClipConfig`.

    Raises:
        ValueError: for pooling "pooler" where the tower has no such layer, "eos" where its config has no end token.
    """
    # AutoModel does not know SigLIP's text tower
    tower_class = SiglipTextModel if config.model_type == "siglip_text_model" else MODEL_MAPPING[type(config)]
    has_pooler = "add_pooling_layer" in inspect.signature(tower_class.__init__).parameters
    if pooling == "pooler" and not has_pooler:
        raise ValueError(
            f"the pooling 'pooler' needs the dense pooling layer of towers like bert and vit, and "
            f"{config.model_type!r} has none; take another image_pooling or text_pooling in RegionMedClipConfig."
        )
    if pooling == "eos" and not isinstance(config.eos_token_id, int):
        raise ValueError(
            f"text_pooling 'eos' needs one end token, and text_config ({config.model_type}) has eos_token_id "
            f"{config.eos_token_id!r}; set it to that of the tokenizer, or take text_pooling='mean'."
        )
    tower = tower_class._from_config(config, **({"add_pooling_layer": pooling == "pooler"} if has_pooler else {}))
    if config.model_type == "siglip_text_model" and pooling != "last":
        tower.head = nn.Identity()
    for module in list(tower.modules()):
        if isinstance(getattr(module, "mask_token", None), nn.Parameter):
            values = module.mask_token.detach()
            del module.mask_token
            module.register_buffer("mask_token", values)
    return tower


def max_text_length(text_model: PreTrainedModel) -> int | None:
    """Most tokens of a text that the tower has positions for; None: no limit.

    RoBERTa and its kin count positions from their padding id + 1 on: 514 positions take 512 tokens.
    """
    positions = getattr(getattr(text_model, "embeddings", None), "position_embeddings", None)
    if getattr(positions, "padding_idx", None) is not None:
        return positions.num_embeddings - positions.padding_idx - 1
    return getattr(text_model.config, "max_position_embeddings", None)


def run_vision_tower(vision_model: PreTrainedModel, pixel_values: Tensor, **kwargs) -> ModelOutput:
    """What the tower gives for pixel_values (B, 3, H, W); positions are interpolated where H, W are not its own size.

    Args:
        kwargs: for the tower; those that only text towers know are left out.

    Raises:
        ValueError: for a size that is no multiple of the patch, or that the tower has no positions for.
    """
    config = vision_model.config
    grid_of(config, pixel_values)
    kwargs = {name: value for name, value in kwargs.items() if name not in TEXT_ARGUMENTS}
    kwargs.pop("interpolate_pos_encoding", None)  # the size says it
    height, width = pixel_values.shape[-2:]
    if (height, width) != (config.image_size, config.image_size):
        if config.model_type in INTERPOLATE_IF_ASKED:
            kwargs["interpolate_pos_encoding"] = True
        elif config.model_type not in TAKE_ANY_SIZE:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels (height x width) and the vision tower "
                f"{config.model_type!r} takes {config.image_size} x {config.image_size} only; give the image processor "
                "that size."
            )
    return vision_model(pixel_values=pixel_values, **kwargs)


def run_text_tower(
    text_model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, pooling: str, **kwargs
) -> ModelOutput:
    """What the tower gives for input_ids (T, L).

    With `pooling` "last" (SigLIP) texts are padded on the right to all positions of the tower and padding is attended
    to, as in its training: the attention mask is not used, and a text's length in `input_ids` changes nothing.

    Args:
        kwargs: for the tower; those that only vision towers know are left out.

    Raises:
        ValueError: for texts longer than the tower.
    """
    limit = max_text_length(text_model)
    num_tokens = input_ids.shape[1]
    if limit is not None and num_tokens > limit:
        raise ValueError(
            f"input_ids has {num_tokens} tokens a text and the text tower {limit} positions; truncate the texts, in a "
            "pipeline with tokenizer_kwargs={'truncation': True}."
        )
    kwargs = {name: value for name, value in kwargs.items() if name not in VISION_ARGUMENTS}
    if pooling == "last":
        missing = (0, limit - num_tokens)
        input_ids = nn.functional.pad(input_ids, missing, value=text_model.config.pad_token_id)
        attention_mask = None
    return text_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def grid_of(config: PreTrainedConfig, pixel_values: Tensor) -> tuple[int, int]:
    """(h, w) patches of pixel values (B, 3, H, W) under the vision tower's `config`.

    Raises:
        ValueError: if H or W is no positive multiple of the patch's side; the rest would be cut off, boxes shifted.
    """
    height, width = pixel_values.shape[-2:]
    side = config.patch_size
    if height % side or width % side or not height or not width:
        raise ValueError(
            f"pixel_values are {height} x {width} pixels (height x width); both must be multiples of the vision "
            f"tower's patch_size {side}. Give the image processor such a size, for instance "
            f"{max(side, height // side * side)} x {max(side, width // side * side)}."
        )
    return height // side, width // side


def read_patches(
    vision_model: PreTrainedModel, outputs: ModelOutput, grid: tuple[int, int], image_pooling: str
) -> tuple[Tensor, Tensor]:
    """Patches (B, P, C) after the tower's last norm, prefix tokens removed, and the pooled state (B, C).

    The prefix (class token, registers) is what the tower gives beyond P tokens.

    Args:
        outputs: what the tower gave.
        grid: (h, w) with h * w = P.
        image_pooling: see `RegionMedClipConfig`.

    Raises:
        ValueError: if the tower does not give one token for every patch, or no pooled state that is asked for.
    """
    states = outputs.last_hidden_state
    num_patches = grid[0] * grid[1]
    model_type = vision_model.config.model_type
    if states.ndim != 3 or states.shape[1] < num_patches:
        raise ValueError(
            f"the vision tower {model_type!r} gives a state of shape {tuple(states.shape)} for {grid[0]} x {grid[1]} "
            "patches; it must give (images, prefix + patches, width), as clip_vision_model, vit or dinov2 do."
        )
    num_prefix = states.shape[1] - num_patches
    patches = states[:, num_prefix:]
    if model_type in NORM_CLASS_TOKEN_ONLY:
        patches = vision_model.post_layernorm(patches)
    if image_pooling == "mean":
        return patches, patches.mean(dim=1)
    if outputs.get("pooler_output") is not None:
        return patches, outputs.pooler_output
    if num_prefix == 0:
        raise ValueError(
            f"image_pooling is 'tower' and the vision tower {model_type!r} has neither a pooled output nor a class "
            "token; set image_pooling='mean' in RegionMedClipConfig."
        )
    return patches, states[:, 0]


def pool_text(
    outputs: ModelOutput, input_ids: Tensor, attention_mask: Tensor | None, pooling: str, config: PreTrainedConfig
) -> Tensor:
    """(T, pooled text width) text state, the same whatever padding follows the texts.

    Args:
        outputs: what the tower gave for input_ids (T, L) and attention_mask (T, L; None: no padding).
        pooling: `RegionMedClipConfig.text_pooling`.
        config: the text tower's.
    """
    states = outputs.last_hidden_state  # (T, L, text width)
    if pooling == "eos":
        rows = torch.arange(states.shape[0], device=states.device)
        return states[rows, _end_positions(input_ids, attention_mask, config)]
    if pooling == "mean":
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask[..., None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
    if pooling == "cls":
        return states[:, 0]
    return outputs.pooler_output  # "last": SigLIP's head on its last position; "pooler": the dense layer on the first


def _end_positions(input_ids: Tensor, attention_mask: Tensor | None, config: PreTrainedConfig) -> Tensor:
    """(T,) int64 place of each text's first end token by the library's rules for CLIP; without one, its last token.

    (The library would take the first position there, which under a causal mask is the same state for every text.)
    """
    ids = input_ids.int()  # ONNX runtimes know argmax of int32
    if config.model_type == "clip_text_model" and config.eos_token_id == LEGACY_CLIP_END_ID:
        return ids.argmax(dim=-1)  # the end token of these checkpoints has the largest id
    is_end = ids == config.eos_token_id
    places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32).expand_as(ids)
    last = (places if attention_mask is None else places * attention_mask.int()).argmax(dim=-1)
    return torch.where(is_end.any(dim=-1), is_end.int().argmax(dim=-1), last)
