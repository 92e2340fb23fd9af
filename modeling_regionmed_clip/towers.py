"""The towers: any vision and text encoder of the library, read in one way.

Letters: B images, T texts, L tokens, P = h x w patches in row-major order, C width of the vision tower.
"""

import inspect

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower with random weights, without the pooling layer that nothing here would train."""
    tower_class = MODEL_MAPPING[type(config)]
    takes_pooling = "add_pooling_layer" in inspect.signature(tower_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooling else {}))


def grid_of(config: PreTrainedConfig, pixel_values: Tensor) -> tuple[int, int]:
    """(h, w) patches of pixel values (B, 3, H, W) under the vision tower's `config`."""
    return pixel_values.shape[-2] // config.patch_size, pixel_values.shape[-1] // config.patch_size


def read_patches(
    vision_model: PreTrainedModel, outputs: ModelOutput, grid: tuple[int, int], image_pooling: str
) -> tuple[Tensor, Tensor]:
    """Patches (B, P, C) after the tower's last norm, prefix tokens removed, and the pooled state (B, C).

    Args:
        outputs: what the tower gave.
        grid: (h, w) with h * w = P.
        image_pooling: see `RegionMedClipConfig`.
    """
    patches = outputs.last_hidden_state[:, -grid[0] * grid[1] :]  # prefix tokens (class, registers) come first
    if vision_model.config.model_type == "clip_vision_model":
        patches = vision_model.post_layernorm(patches)  # CLIP norms its class token only
    if image_pooling == "mean":
        return patches, patches.mean(dim=1)
    if outputs.get("pooler_output") is not None:
        return patches, outputs.pooler_output
    return patches, outputs.last_hidden_state[:, 0]


def pool_text(
    outputs: ModelOutput, input_ids: Tensor, attention_mask: Tensor, pooling: str, config: PreTrainedConfig
) -> Tensor:
    """(T, text width) pooled text state.

    Args:
        outputs: what the tower gave for input_ids (T, L) and attention_mask (T, L).
        pooling: `RegionMedClipConfig.text_pooling`.
        config: the text tower's.
    """
    states = outputs.last_hidden_state  # (T, L, text width)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        weights = attention_mask[..., None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
    if pooling == "eos" and config.eos_token_id is not None:
        first_eos = (input_ids == config.eos_token_id).int().argmax(dim=-1)
        return states[torch.arange(states.shape[0], device=states.device), first_eos]
    if outputs.get("pooler_output") is None:
        raise ValueError(
            f"text_pooling {pooling!r} needs the pooled output of the text tower, and {config.model_type} has none; "
            "choose 'cls' or 'mean' in RegionMedClipConfig."
        )
    return outputs.pooler_output
