"""The trainer's hold on the model: mixed precision in every stage, and the model given back as it was."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny_models import tiny_batch, tiny_model

from regionmed_clip.train.stage_model import StageModel, eager_attention_on_cpu


@pytest.fixture
def bf16_accelerator(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    states = (AcceleratorState, PartialState, GradientState)
    for state in states:
        state._reset_state()
    yield Accelerator(mixed_precision="bf16", cpu=True)
    for state in states:
        state._reset_state()


def inputs() -> dict[str, torch.Tensor]:
    names = ("pixel_values", "input_ids", "attention_mask", "region_boxes", "region_mask")
    return {name: tensor for name, tensor in tiny_batch().items() if name in names}


def test_every_stage_computes_in_bf16_and_gives_float32(bf16_accelerator):
    model, seen = tiny_model(), []
    model.visual_projection.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    for _ in range(3):  # three stages, each preparing the model anew
        output = bf16_accelerator.prepare_model(StageModel(model))(**inputs())
        bf16_accelerator.free_memory()
        assert output.image_embeds.dtype == torch.float32
    assert seen == [torch.bfloat16] * 3


def test_after_training_the_model_computes_as_if_it_never_was_prepared(bf16_accelerator):
    model = tiny_model()
    before = model(**inputs()).region_embeds
    with eager_attention_on_cpu(model):
        assert model.config.vision_config._attn_implementation == "eager"
        bf16_accelerator.prepare_model(StageModel(model))(**inputs())
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert torch.equal(model(**inputs()).region_embeds, before)
