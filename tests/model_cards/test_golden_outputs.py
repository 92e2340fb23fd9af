"""Golden outputs: the same picture and the same answers, and no other model passes for this one."""

from __future__ import annotations

import copy

import pytest
import torch

from regionmed_clip.model_cards.golden_outputs import (
    SIZE,
    answer,
    compare_inputs,
    compare_outputs,
    draw_picture,
    process,
    read_golden,
    write_golden,
)


@pytest.fixture(scope="module")
def golden(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    write_golden(path, model, processor)
    return read_golden(path)


def test_the_picture_is_the_same_in_every_run_and_no_plain_ramp():
    assert draw_picture().tobytes() == draw_picture().tobytes()
    assert draw_picture().size == SIZE
    assert len(draw_picture().getcolors(1 << 16)) > 100
    assert draw_picture(1).tobytes() != draw_picture().tobytes()


def test_it_holds_the_picture_two_boxes_texts_and_every_embedding(golden):
    assert golden.image.shape == (SIZE[1], SIZE[0], 3)
    assert golden.boxes.shape == (2, 4)
    assert len(golden.texts) == 2
    assert golden.question is None
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.outputs.items()}
    assert shapes["region_embeds"] == (1, 2, 16)
    assert shapes["text_embeds"] == (2, 16)
    assert shapes["logits_per_region"] == (1, 2, 3)
    assert shapes["dense_features"] == (1, 16, 4, 4)


def test_the_same_model_gives_the_same_again(golden, model, processor):
    assert compare_inputs(process(processor, golden), golden) == 0
    assert compare_outputs(answer(model, golden.inputs), golden, torch.float32) == 0


def test_a_slightly_other_weight_is_told_by_name_and_distance(golden, model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.text_model.embeddings.word_embeddings.weight += 0.05 * torch.randn(
            other.text_model.embeddings.word_embeddings.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    with pytest.raises(ValueError, match=r"the model's \w+ is up to \d\.\d+ from what it was"):
        compare_outputs(answer(other, golden.inputs), golden, torch.float32)


def test_half_precision_has_room_for_its_rounding(golden, model):
    rounded = {name: tensor.bfloat16().float() for name, tensor in golden.outputs.items()}
    with pytest.raises(ValueError, match="rounding"):
        compare_outputs(rounded, golden, torch.float32)
    assert compare_outputs(rounded, golden, torch.bfloat16) > 0


def test_a_processor_that_reads_otherwise_is_told(golden, processor):
    found = process(processor, golden)
    with pytest.raises(ValueError, match=r"the processor's pixel_values is up to 0\.5 from"):
        compare_inputs({**found, "pixel_values": found["pixel_values"] + 0.5}, golden)
    with pytest.raises(ValueError, match=r"the processor's input_ids has the shape None; .* \(2, \d+\)"):
        compare_inputs({name: value for name, value in found.items() if name != "input_ids"}, golden)


def test_broken_weights_give_no_golden_file(model, processor, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.text_model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite; the weights are broken"):
        write_golden(tmp_path / "golden.safetensors", broken, processor)
    assert not (tmp_path / "golden.safetensors").exists()


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="of the format None"):
        read_golden(tmp_path / "a.safetensors")
