"""Tiny models and batches that the model tests share; built in a moment, random but seeded."""

from __future__ import annotations

import torch

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel

VOCAB_SIZE = 50


def tiny_config(**changes) -> RegionMedClipConfig:
    fields = {
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
        },
        "text_config": {
            "model_type": "bert",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": VOCAB_SIZE,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "projection_dim": 16,
    }
    return RegionMedClipConfig(**{**fields, **changes})


def tiny_model(seed: int = 0, **changes) -> RegionMedClipModel:
    torch.manual_seed(seed)
    return RegionMedClipModel(tiny_config(**changes)).eval()


def tiny_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three images with 2, 1 and 0 regions, two captions, three region texts."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.4], [0.3, 0.5, 0.95, 0.9]]).repeat(3, 1, 1)
    return {
        "pixel_values": torch.randn(3, 3, 48, 48, generator=generator),
        "input_ids": torch.randint(5, VOCAB_SIZE, (2, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "text_index": torch.tensor([0, 1, 1]),
        "text_keys": torch.tensor([11, 12]),
        "region_boxes": boxes,
        "region_mask": torch.tensor([[True, True], [True, False], [False, False]]),
        "region_input_ids": torch.randint(5, VOCAB_SIZE, (3, 5), generator=generator),
        "region_attention_mask": torch.ones(3, 5, dtype=torch.int64),
        "region_text_index": torch.tensor([[0, 1], [2, -1], [-1, -1]]),
        "region_text_keys": torch.tensor([21, 22, 23]),
    }
