"""RegionMedClipModel keeps the conventions that the library's own common model tests hold its models to."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_config, tiny_model
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from modeling_regionmed_clip import RegionMedClipModel, RegionMedClipOutput
from modeling_regionmed_clip.roi_processor import PrompterBlock

EXACT_PATH = {"atol": 1e-5, "rtol": 0}  # float32, the same maths in another order
BFLOAT16 = {"atol": 3e-2, "rtol": 0}
CLIP_TEXT = {
    "model_type": "clip_text_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "vocab_size": VOCAB_SIZE, "eos_token_id": 4, "bos_token_id": 3, "pad_token_id": 1,
}  # fmt: skip
DINOV2 = {
    "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48,
    "patch_size": 12,
}  # fmt: skip


def fused_model(**changes) -> RegionMedClipModel:
    """A tiny model whose fusion changes something."""
    model = tiny_model(**changes)
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    return model


def float_tensors(output: ModelOutput) -> dict[str, torch.Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def test_an_output_is_in_the_order_of_its_fields_the_loss_first():
    output = tiny_model()(**tiny_batch(), return_loss=True)
    order = [field.name for field in fields(RegionMedClipOutput)]
    assert list(output) == [name for name in order if output[name] is not None]
    assert output[0] is output.loss
    assert next(iter(output.text_model_output)) == "last_hidden_state"
    assert output.text_model_output[1] is output.text_model_output.pooler_output


@pytest.mark.parametrize("by_config", [False, True])
def test_return_dict_false_gives_the_same_values_as_a_tuple(by_config):
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch, return_loss=True).to_tuple()
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    model.config.return_dict = not by_config
    switch = {} if by_config else {"return_dict": False}
    found = model(**batch, return_loss=True, **switch)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    assert torch.equal(model.get_image_features(batch["pixel_values"], **switch)[1], features)
    assert isinstance(model.get_text_features(batch["input_ids"], **switch), tuple)


def test_hidden_states_and_attentions_of_both_towers_come_out():
    model, batch = tiny_model(), tiny_batch()
    model.set_attn_implementation("eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    vision, text = output.vision_model_output, output.text_model_output
    assert [tuple(states.shape) for states in vision.hidden_states] == [(3, 17, 32)] * 3
    assert [tuple(weights.shape) for weights in vision.attentions] == [(3, 2, 17, 17)] * 2
    assert [tuple(states.shape) for states in text.hidden_states] == [(2, 7, 32)] * 2
    assert [tuple(weights.shape) for weights in text.attentions] == [(2, 2, 7, 7)]
    assert model(**batch).vision_model_output.hidden_states is None


def test_the_tower_outputs_hold_the_projected_embedding_as_the_features_do():
    model, batch = tiny_model(), tiny_batch()
    output = model(**batch)
    image = model.get_image_features(batch["pixel_values"]).pooler_output
    assert torch.equal(output.vision_model_output.pooler_output, image)
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert torch.equal(output.text_model_output.pooler_output, text)


@pytest.mark.parametrize("changes", [{}, {"text_config": CLIP_TEXT}], ids=["bert", "clip text"])
def test_written_out_attention_equals_the_fused_kernel(changes):
    model, batch = fused_model(**changes), tiny_batch()
    model.set_attn_implementation("sdpa")
    by_kernel = float_tensors(model(**batch, return_loss=True))
    model.set_attn_implementation("eager")
    written_out = float_tensors(model(**batch, return_loss=True))
    assert by_kernel.keys() == written_out.keys()
    for name, value in by_kernel.items():
        torch.testing.assert_close(
            written_out[name], value, msg=lambda text, name=name: f"{name}: {text}", **EXACT_PATH
        )


def test_the_attention_of_the_roi_processor_follows_the_config(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = RegionMedClipModel.from_pretrained(tmp_path, attn_implementation="eager")
    config = model.roi_processor.prompter.blocks[0].attention.config
    assert config._attn_implementation == model.vision_model.config._attn_implementation == "eager"
    mixed = RegionMedClipModel.from_pretrained(tmp_path, attn_implementation={"vision_config": "eager"})
    assert mixed.vision_model.config._attn_implementation == "eager"
    assert mixed.text_model.config._attn_implementation == "sdpa"


def test_a_model_in_bfloat16_stays_near_float32():
    model, batch = fused_model(), tiny_batch()
    exact = model(**batch)
    rough = copy.deepcopy(model).bfloat16()(**{**batch, "pixel_values": batch["pixel_values"].bfloat16()})
    for name in ("image_embeds", "text_embeds", "region_embeds", "fused_image_embeds"):
        assert rough[name].dtype == torch.bfloat16
        torch.testing.assert_close(rough[name].float(), exact[name], **BFLOAT16)
    assert rough.proposal_boxes.dtype == torch.float32
    torch.testing.assert_close(rough.proposal_boxes, exact.proposal_boxes, **BFLOAT16)


def gradients(model: RegionMedClipModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**tiny_batch(), return_loss=True).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_and_gives_equal_gradients(use_reentrant):
    model, runs = fused_model().train(), []
    model.roi_processor.prompter.blocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    expected = gradients(model)
    assert len(runs) == 1
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert any(isinstance(layer, PrompterBlock) for layer in layers)
    assert all(layer.gradient_checkpointing for layer in layers)
    found = gradients(model)
    assert len(runs) == 3  # forward, and once more in the backward pass
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}", **EXACT_PATH)


@pytest.mark.parametrize("changes", [{}, {"text_config": CLIP_TEXT}], ids=["bert", "clip text"])
def test_the_vocabulary_grows_and_shrinks(changes, tmp_path):
    model, ids = tiny_model(**changes), torch.tensor([[3, 8, 9, 4]])
    before = model.get_text_features(ids).pooler_output
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert model.config.text_config.vocab_size == VOCAB_SIZE + 3
    assert torch.equal(model.get_text_features(ids).pooler_output, before)
    new_word = model.get_text_features(torch.tensor([[3, VOCAB_SIZE + 2, 9, 4]])).pooler_output
    model.save_pretrained(tmp_path)
    loaded = RegionMedClipModel.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.get_text_features(torch.tensor([[3, VOCAB_SIZE + 2, 9, 4]])).pooler_output, new_word)
    model.resize_token_embeddings(VOCAB_SIZE - 10)
    assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE - 10, 32)
    assert torch.equal(model.get_text_features(ids).pooler_output, before)


def test_config_and_seed_determine_every_weight():
    first, again, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.visual_projection.weight, other.visual_projection.weight)


@pytest.mark.parametrize("vision", [None, DINOV2], ids=["clip", "dinov2"])
def test_weights_missing_from_a_checkpoint_start_as_in_a_new_model(vision):
    changes = {} if vision is None else {"vision_config": vision}
    new = tiny_model(**changes)
    torch.manual_seed(0)
    loaded = RegionMedClipModel.from_pretrained(None, config=tiny_config(**changes), state_dict={})
    for (name, value), other in zip(new.state_dict().items(), loaded.state_dict().values(), strict=True):
        if value.numel() >= 64:  # drawn: the same spread
            assert other.float().std().item() == pytest.approx(value.float().std().item(), rel=0.5, abs=1e-3), name
    for model in (new, loaded):
        assert model.proposal_head.score.bias.item() == pytest.approx(-4.59512, abs=1e-4)  # ln(0.01 / 0.99)
        assert model.region_fusion.alpha.item() == 0.0
        assert all(scale.item() == pytest.approx(2.6592) for scale in model.temperatures.parameters())
        assert not model.propose_regions(tiny_batch()["pixel_values"]).region_mask.any()


def test_loaded_weights_survive_the_initialisation_of_missing_ones():
    source = tiny_model(seed=1)
    state = {
        name: torch.full_like(value, 0.125) for name, value in source.state_dict().items() if value.is_floating_point()
    }
    missing = {name for name in state if name.endswith(("score.bias", "alpha", "q_proj.weight", "image_text"))}
    kept = {name: value for name, value in state.items() if name not in missing}
    loaded = RegionMedClipModel.from_pretrained(None, config=tiny_config(), state_dict=kept)
    for name, value in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(value, kept[name]), name
        elif name in missing:
            assert not torch.equal(value, state[name]), name


def test_buffers_that_are_not_saved_are_right_after_loading(tmp_path):
    model = tiny_model(vision_config=DINOV2, text_config=CLIP_TEXT)
    model.save_pretrained(tmp_path)
    loaded = dict(RegionMedClipModel.from_pretrained(tmp_path).named_buffers())
    for name, value in model.named_buffers():
        assert torch.equal(loaded[name], value), name
    assert any(name.endswith("position_ids") for name in loaded)  # there are such buffers


def test_a_checkpoint_of_other_sizes_loads_only_when_asked_to(tmp_path):
    source = tiny_model(seed=5)
    source.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        RegionMedClipModel.from_pretrained(tmp_path, projection_dim=24)
    loaded = RegionMedClipModel.from_pretrained(tmp_path, projection_dim=24, ignore_mismatched_sizes=True)
    assert loaded.visual_projection.weight.shape == (24, 32)
    assert loaded.visual_projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.2)
    assert torch.equal(loaded.proposal_head.sides.weight, source.proposal_head.sides.weight)
    assert loaded(**tiny_batch()).logits_per_region.isfinite().all()


def test_no_parameter_is_a_scalar_and_none_is_tied():
    model = tiny_model(logit_bias_init_value=-10.0)
    assert all(parameter.ndim > 0 for parameter in model.parameters())
    assert model.all_tied_weights_keys == {}
    assert len({parameter.data_ptr() for parameter in model.parameters()}) == len(list(model.parameters()))


def test_layers_that_must_stay_on_one_device_are_named():
    assert {"PrompterBlock", "RegionFusion", "CLIPEncoderLayer", "BertLayer"} <= set(tiny_model()._no_split_modules)


@pytest.mark.filterwarnings("ignore")  # of torch, which imports its compiler here and says that it is not used
def test_flex_attention_sees_the_region_mask_as_written_out_attention_does():
    model, batch = fused_model(), tiny_batch()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        written_out = model(**batch)
        model.config._attn_implementation_internal = "flex_attention"  # of the ROI processor and the fusion alone
        with torch.compiler.set_stance("force_eager"):  # its compiled kernel for CPUs fails on two queries
            flexible = model(**batch)
    for name in ("region_embeds", "fused_image_embeds"):
        torch.testing.assert_close(flexible[name], written_out[name], **EXACT_PATH)


def test_a_model_saved_in_bfloat16_comes_back_in_it(tmp_path):
    model, pixels = tiny_model().bfloat16(), tiny_batch()["pixel_values"].bfloat16()
    model.save_pretrained(tmp_path)
    loaded = RegionMedClipModel.from_pretrained(tmp_path, device_map="auto").eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.get_image_features(pixels).pooler_output, model.get_image_features(pixels).pooler_output)


def test_the_main_input_is_the_first_argument_of_forward():
    assert next(name for name in inspect.signature(RegionMedClipModel.forward).parameters if name != "self") == (
        RegionMedClipModel.main_input_name
    )


@pytest.mark.parametrize("roi_mode", ["prompter", "maskpool"])
def test_a_training_batch_without_regions_leaves_no_parameter_without_a_gradient(roi_mode):
    batch = tiny_batch()
    images_and_texts = {name: batch[name] for name in ("pixel_values", "input_ids", "text_index", "text_keys")}
    model = fused_model(roi_mode=roi_mode)
    expected = model(**images_and_texts, return_loss=True)
    output = model.train()(**images_and_texts, return_loss=True)
    assert torch.equal(output.loss, expected.loss)
    assert list(output.loss_terms) == ["image_text"]
    assert output.region_embeds is None
    output.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    for part in (model.roi_processor, model.region_fusion, model.proposal_head):
        assert not any(parameter.grad.any() for parameter in part.parameters())
    assert model.visual_projection.weight.grad.any()
