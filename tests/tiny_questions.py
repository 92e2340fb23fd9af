"""A tiny model that answers questions, and a batch of them, for the tests of the answer head and of what uses it."""

from __future__ import annotations

import torch
from tiny_models import VOCAB_SIZE, tiny_config

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering

ANSWERS = ("yes", "no", "a nodule", "left")


def tiny_question_model(seed: int = 0, **changes) -> RegionMedClipForVisualQuestionAnswering:
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: i for i, answer in enumerate(ANSWERS)}}
    return RegionMedClipForVisualQuestionAnswering(tiny_config(**{**names, **changes})).eval()


def tiny_questions(seed: int = 0) -> dict[str, torch.Tensor]:
    """Five questions about three images: with 2, 1, 0, 2 and 0 regions."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(5, 2, 2, generator=generator) * 0.5
    attention_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 5 + [0], [1] * 3 + [0] * 3])
    return {
        "input_ids": torch.randint(5, VOCAB_SIZE, (5, 6), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(3, 3, 48, 48, generator=generator),
        "region_boxes": torch.cat([corners, corners + 0.3], dim=-1),
        "region_mask": torch.tensor([[True, True], [True, False], [False, False], [True, True], [False, False]]),
        "image_index": torch.tensor([0, 0, 1, 2, 1]),
    }
