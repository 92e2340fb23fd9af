"""Golden outputs: the same picture and the same answers, and no other model passes for this one."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regionmed_clip.model_cards.golden_outputs import (
    SIZE,
    answer,
    compare_inputs,
    compare_outputs,
    compare_settings,
    draw_picture,
    process,
    read_golden,
    settings_of,
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
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="of the format None"):
        read_golden(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:20])
    with pytest.raises(
        ValueError, match=r"b\.safetensors cannot be read as safetensors .*; take it from the run again"
    ):
        read_golden(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("name", "told"), [("patients", {}), ("hf_abc", {}), ("inputs.pixel_values", {"by": "Dr. Jane Doe"})]
)
def test_what_no_golden_file_has_is_refused_and_not_repeated(name, told, model, processor, tmp_path):
    path = tmp_path / "golden.safetensors"
    write_golden(path, model, processor)
    with safe_open(path, framework="pt") as file:
        told = {**file.metadata(), **told}
    save_file({**load_file(path), name: torch.tensor(list(b"Patient name: Jane Doe"), dtype=torch.uint8)}, path, told)
    with pytest.raises(ValueError, match="holds 1 tensors or texts that no golden file has") as error:
        read_golden(path)
    assert name not in str(error.value)


def test_a_golden_file_that_lacks_its_picture_is_refused(model, processor, tmp_path):
    path = tmp_path / "golden.safetensors"
    write_golden(path, model, processor)
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "image"}, path, told)
    with pytest.raises(ValueError, match=r"lacks what every golden file has \(KeyError\('image'\)\)"):
        read_golden(path)


def test_another_window_is_told_though_the_picture_has_none(golden, processor):
    compare_settings(settings_of(processor), golden)
    windowed = copy.deepcopy(processor)
    windowed.image_processor.window = "lung"
    with pytest.raises(ValueError, match=r"the window of this model: 'lung'; where the golden outputs were made: None"):
        compare_settings(settings_of(windowed), golden)
