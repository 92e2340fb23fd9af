"""Tiny configs of every supported tower, and random checkpoints of them as users have on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel, SiglipTextModel

from modeling_regionmed_clip import RegionMedClipModel

IMAGE_SIZE, PATCH_SIZE = 48, 12
SIDE = IMAGE_SIZE // PATCH_SIZE
VOCAB_SIZE = 40
PAD, BOS, END = 1, 0, VOCAB_SIZE - 1
MAX_LENGTH = 12

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = {**WIDTHS, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
TEXT = {**WIDTHS, "vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": END}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**TEXT, **QUIET, "max_position_embeddings": MAX_LENGTH}
ROBERTA = {**BERT, "max_position_embeddings": MAX_LENGTH + PAD + 1}
CLIP = {**TEXT, "max_position_embeddings": MAX_LENGTH}

# name -> (config, prefix tokens as the papers describe them: class token and registers)
VISION_TOWERS: dict[str, tuple[dict, int]] = {
    "clip": ({"model_type": "clip_vision_model", **VISION}, 1),
    "siglip": ({"model_type": "siglip_vision_model", **VISION}, 0),
    "vit": ({"model_type": "vit", **VISION}, 1),
    "dinov2": ({"model_type": "dinov2", **VISION}, 1),
    "dinov2 with registers": ({"model_type": "dinov2_with_registers", **VISION, "num_register_tokens": 4}, 5),
    "dinov3": ({"model_type": "dinov3_vit", **VISION, "num_register_tokens": 4, "pos_embed_rescale": None}, 5),
}

# name -> (config, pooling by default)
TEXT_TOWERS: dict[str, tuple[dict, str]] = {
    "clip": ({"model_type": "clip_text_model", **CLIP}, "eos"),
    "clip with the old end id": ({"model_type": "clip_text_model", **CLIP, "eos_token_id": 2}, "eos"),
    "siglip": ({"model_type": "siglip_text_model", **CLIP, "projection_size": 24}, "last"),
    "bert": ({"model_type": "bert", **BERT}, "cls"),
    "roberta": ({"model_type": "roberta", **ROBERTA}, "cls"),
    "camembert": ({"model_type": "camembert", **ROBERTA}, "cls"),
    "xlm-roberta": ({"model_type": "xlm-roberta", **ROBERTA}, "cls"),
    "distilbert": (
        {
            "model_type": "distilbert",
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 2,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "vocab_size": VOCAB_SIZE,
            "pad_token_id": PAD,
            "max_position_embeddings": MAX_LENGTH,
        },
        "cls",
    ),
    "electra": ({"model_type": "electra", **BERT, "embedding_size": 16}, "cls"),
    "albert": ({"model_type": "albert", **BERT, "embedding_size": 16}, "cls"),
    "ernie": ({"model_type": "ernie", **BERT}, "cls"),
    "megatron-bert": ({"model_type": "megatron-bert", **BERT}, "cls"),
    "deberta": (
        {"model_type": "deberta", **BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "cls",
    ),
    "deberta-v2": (
        {
            "model_type": "deberta-v2",
            **BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 4,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
        "cls",
    ),
    "modernbert": (
        {"model_type": "modernbert", **TEXT, "max_position_embeddings": MAX_LENGTH, "local_attention": 8},
        "cls",
    ),
    "another encoder": ({"model_type": "nomic_bert", **TEXT, "max_position_embeddings": MAX_LENGTH}, "mean"),
}


def tower_config(fields: dict, **changes) -> PreTrainedConfig:
    fields = {**fields, **changes}
    return CONFIG_MAPPING[fields.pop("model_type")](**fields)


def saved_tower(fields: dict, folder: Path, seed: int = 0) -> PreTrainedModel:
    """A random checkpoint written by the library and read back by it, every parameter away from its initial value."""
    config = tower_config(fields)
    tower_class = SiglipTextModel if config.model_type == "siglip_text_model" else MODEL_MAPPING[type(config)]
    torch.manual_seed(seed)
    tower = tower_class(config)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tower.save_pretrained(folder)
    return tower_class.from_pretrained(folder).eval()


def model_with(vision: PreTrainedModel | None, text: PreTrainedModel | None, **fields) -> RegionMedClipModel:
    """A model whose towers have the configs and weights of these checkpoints; what has no place in it is left."""
    torch.manual_seed(0)
    vision_config = tower_config(VISION_TOWERS["clip"][0]) if vision is None else vision.config
    text_config = tower_config(TEXT_TOWERS["bert"][0]) if text is None else text.config
    fields = {"projection_dim": 16, **fields}
    config = RegionMedClipModel.config_class(vision_config=vision_config, text_config=text_config, **fields)
    model = RegionMedClipModel(config).eval()
    for ours, theirs in ((model.vision_model, vision), (model.text_model, text)):
        if theirs is not None:
            missing = ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys
            assert not missing, missing
    return model
