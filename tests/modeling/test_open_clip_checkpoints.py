"""Starting from open_clip-format folders: BiomedCLIP's layout and open_clip's own, against passes written here."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import (
    BIOMEDCLIP_CONFIG,
    LENGTH,
    NATIVE_CONFIG,
    biomedclip_tensors,
    native_tensors,
    save_open_clip,
    tiny_inputs,
)
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from modeling_regionmed_clip import RegionMedClipModel, source_checkpoint

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # float32; logits reach 50


def norm(states, tensors, name, epsilon):
    return F.layer_norm(states, states.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], epsilon)


def linear(states, tensors, name):
    return F.linear(states, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def attention(states, weight, bias, num_heads, mask=0.0):
    """Multi-head self-attention with query, key and value in one matrix, before the output map."""
    query, key, value = F.linear(states, weight, bias).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def timm_image_embedding(tensors, pixel_values):
    trunk = {name.removeprefix("visual.trunk."): tensor for name, tensor in tensors.items()}
    patches = F.conv2d(pixel_values, trunk["patch_embed.proj.weight"], trunk["patch_embed.proj.bias"], stride=16)
    states = torch.cat([trunk["cls_token"].expand(len(pixel_values), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    states = states + trunk["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}"
        normed = norm(states, trunk, f"{block}.norm1", 1e-6)
        mixed = attention(normed, trunk[f"{block}.attn.qkv.weight"], trunk[f"{block}.attn.qkv.bias"], num_heads=12)
        states = states + linear(mixed, trunk, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(states, trunk, f"{block}.norm2", 1e-6), trunk, f"{block}.mlp.fc1"))
        states = states + linear(hidden, trunk, f"{block}.mlp.fc2")
    return norm(states, trunk, "norm", 1e-6)[:, 0] @ tensors["visual.head.proj.weight"].t()


def bert_text_embedding(tensors, input_ids):
    config = BertConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
                        vocab_size=60, max_position_embeddings=LENGTH)  # fmt: skip
    bert = BertModel(config, add_pooling_layer=False).eval()
    prefix = "text.transformer."
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    assert bert.load_state_dict(found, strict=False).missing_keys == []
    states = bert(input_ids=input_ids, attention_mask=(input_ids != 0).long()).last_hidden_state
    return F.gelu(states[:, 0] @ tensors["text.proj.0.weight"].t()) @ tensors["text.proj.2.weight"].t()


def resblocks(states, tensors, prefix, num_heads, activation, mask=0.0):
    for i in range(2):
        block = f"{prefix}transformer.resblocks.{i}"
        weight, bias = tensors[f"{block}.attn.in_proj_weight"], tensors[f"{block}.attn.in_proj_bias"]
        mixed = attention(norm(states, tensors, f"{block}.ln_1", 1e-5), weight, bias, num_heads, mask)
        states = states + linear(mixed, tensors, f"{block}.attn.out_proj")
        hidden = activation(linear(norm(states, tensors, f"{block}.ln_2", 1e-5), tensors, f"{block}.mlp.c_fc"))
        states = states + linear(hidden, tensors, f"{block}.mlp.c_proj")
    return states


def native_embeddings(tensors, pixel_values, input_ids, text, activation):
    patches = F.conv2d(pixel_values, tensors["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    states = torch.cat([tensors["visual.class_embedding"].expand(len(pixel_values), 1, -1), patches], 1)
    states = norm(states + tensors["visual.positional_embedding"], tensors, "visual.ln_pre", 1e-5)
    states = resblocks(states, tensors, "visual.", 2, activation)
    image = norm(states[:, 0], tensors, "visual.ln_post", 1e-5) @ tensors["visual.proj"]
    states = tensors[f"{text}token_embedding.weight"][input_ids] + tensors[f"{text}positional_embedding"]
    states = resblocks(states, tensors, text, 3, activation, mask=tensors[f"{text}attn_mask"])
    states = norm(states, tensors, f"{text}ln_final", 1e-5)
    ends = states[torch.arange(len(input_ids)), input_ids.argmax(-1)]
    return image, ends @ tensors[f"{text}text_projection"]


def logits(image, text, tensors):
    return tensors["logit_scale"].exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_biomedclips_layout_gives_the_logits_of_a_forward_pass_written_from_its_tensors(tmp_path, implementation):
    tensors, inputs = biomedclip_tensors(), tiny_inputs()
    inputs["input_ids"][1, 7:] = 0  # BERT's padding
    expected = logits(
        timm_image_embedding(tensors, inputs["pixel_values"]),
        bert_text_embedding(tensors, inputs["input_ids"]),
        tensors,
    )
    folder = save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, tensors)
    model = RegionMedClipModel.from_clip_pretrained(folder, attn_implementation=implementation)
    found = model(**inputs, attention_mask=(inputs["input_ids"] != 0).long()).logits_per_image
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert expected.std() > 1  # the logits tell images and texts apart, so equality says something


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("text_prefix", ["", "text."])
@torch.no_grad()
def test_open_clips_own_layout_gives_the_logits_of_a_forward_pass_written_here(tmp_path, text_prefix, quick_gelu):
    tensors, inputs = native_tensors(text_prefix), tiny_inputs()
    activation = (lambda states: states * torch.sigmoid(1.702 * states)) if quick_gelu else F.gelu
    expected = logits(*native_embeddings(tensors, **inputs, text=text_prefix, activation=activation), tensors)
    config = copy.deepcopy(NATIVE_CONFIG)
    config["model_cfg"]["quick_gelu"] = quick_gelu
    model = RegionMedClipModel.from_clip_pretrained(save_open_clip(tmp_path, config, tensors))
    torch.testing.assert_close(model(**inputs).logits_per_image, expected, **TOLERANCE)
    assert expected.std() > 1


@torch.no_grad()
def test_a_converted_biomedclip_comes_back_bit_equal_from_its_own_folder(tmp_path):
    model = RegionMedClipModel.from_clip_pretrained(
        save_open_clip(tmp_path / "source", BIOMEDCLIP_CONFIG, biomedclip_tensors())
    )
    model.save_pretrained(tmp_path / "ours")
    loaded = RegionMedClipModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(loaded(**tiny_inputs()).logits_per_image, model(**tiny_inputs()).logits_per_image)


def test_safetensors_are_taken_before_the_bin_file_and_a_bias_before_none(tmp_path):
    tensors = biomedclip_tensors() | {"logit_bias": torch.tensor(-5.0)}
    folder = save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, tensors)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"unread")
    save_file(tensors, folder / "open_clip_model.safetensors")
    model = RegionMedClipModel.from_clip_pretrained(folder)
    assert model.temperatures.image_text_bias.item() == -5.0
    assert torch.equal(model.visual_projection.weight, tensors["visual.head.proj.weight"])


def test_tensors_that_are_not_used_are_named_with_the_reason(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(source_checkpoint.logger, "warning", told.append)
    tensors = biomedclip_tensors() | {"text.transformer.pooler.dense.weight": torch.zeros(64, 64)}
    RegionMedClipModel.from_clip_pretrained(save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, tensors))
    assert len(told) == 2
    assert any("embeddings.position_ids" in text and "counts positions" in text for text in told)
    assert any("pooler.dense.weight" in text and "pools otherwise" in text for text in told)


@torch.no_grad()
def test_a_bert_pooled_by_its_dense_layer_keeps_that_layer(tmp_path):
    config, generator = copy.deepcopy(BIOMEDCLIP_CONFIG), torch.Generator().manual_seed(0)
    config["model_cfg"]["text_cfg"] |= {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}
    tensors = {name: tensor for name, tensor in biomedclip_tensors().items() if not name.startswith("text.proj")}
    tensors["text.proj.weight"] = torch.randn(16, 64, generator=generator)
    tensors["text.transformer.pooler.dense.weight"] = torch.randn(64, 64, generator=generator)
    tensors["text.transformer.pooler.dense.bias"] = torch.randn(64, generator=generator)
    model = RegionMedClipModel.from_clip_pretrained(save_open_clip(tmp_path, config, tensors))
    assert torch.equal(model.text_model.pooler.dense.bias, tensors["text.transformer.pooler.dense.bias"])
    assert torch.equal(model.text_projection.weight, tensors["text.proj.weight"])


def without(tensors, name):
    return {other: tensor for other, tensor in tensors.items() if other != name}


def changed(part, **options):
    config = copy.deepcopy(BIOMEDCLIP_CONFIG)
    config["model_cfg"][part] |= options
    return config


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (BIOMEDCLIP_CONFIG, without(biomedclip_tensors(), "visual.trunk.norm.bias"), "lacks .*layernorm.bias"),
        (
            BIOMEDCLIP_CONFIG,
            without(biomedclip_tensors(), "visual.trunk.pos_embed"),
            "no tensor visual.trunk.pos_embed",
        ),
        (BIOMEDCLIP_CONFIG, without(biomedclip_tensors(), "logit_scale"), "no tensor logit_scale"),
        (
            BIOMEDCLIP_CONFIG,
            biomedclip_tensors() | {"visual.trunk.norm_pre.bias": torch.zeros(48)},
            "norm_pre.* no place",
        ),
        (BIOMEDCLIP_CONFIG, biomedclip_tensors(dim=12), r"shape \(12, 48\).* asks for \(16, 48\)"),
        (changed("vision_cfg", image_size=224), biomedclip_tensors(), "image_size is 224 .* for 32 pixels"),
        (changed("vision_cfg", timm_pool="avg"), biomedclip_tensors(), "timm_pool is 'avg'"),
        (changed("vision_cfg", timm_proj="mlp"), biomedclip_tensors(), "timm_proj is 'mlp'"),
        (changed("vision_cfg", timm_model_name="vit_base_patch16_siglip_224"), biomedclip_tensors(), "plain vit_"),
        (changed("vision_cfg", eva_model_name="eva02"), biomedclip_tensors(), "eva_model_name='eva02' is not known"),
        (changed("text_cfg", hf_model_name="xlm-roberta-base"), biomedclip_tensors(), "only BERT itself"),
        (changed("text_cfg", hf_pooler_type="max_pooler"), biomedclip_tensors(), "hf_pooler_type is 'max_pooler'"),
        ({"model_cfg": {"embed_dim": 16}}, biomedclip_tensors(), "not open_clip's.*vision_cfg"),
        (NATIVE_CONFIG, without(native_tensors(), "visual.conv1.weight"), "ResNets cannot"),
        (NATIVE_CONFIG, biomedclip_tensors() | native_tensors(), "no place"),
    ],
)
def test_what_would_not_be_the_checkpoint_is_refused(tmp_path, config, tensors, message):
    with pytest.raises(ValueError, match=message):
        RegionMedClipModel.from_clip_pretrained(save_open_clip(tmp_path, config, tensors))


class Mischief:
    """What a pickle may do when it is opened: here, print."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Mischief()), "cannot be read as tensors alone"),
        (b"", "cannot be read as tensors alone"),
        (None, "has neither open_clip_model.safetensors nor open_clip_pytorch_model.bin"),
    ],
)
def test_a_weights_file_that_is_no_dict_of_tensors_is_refused_unopened(tmp_path, capsys, content, message):
    path = save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, {}) / "open_clip_pytorch_model.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RegionMedClipModel.from_clip_pretrained(tmp_path)
    assert "unpickled" not in capsys.readouterr().out


def test_a_training_checkpoint_is_refused_with_the_way_out(tmp_path):
    save_open_clip(tmp_path, BIOMEDCLIP_CONFIG, {"epoch": 3, "state_dict": biomedclip_tensors()})
    with pytest.raises(ValueError, match="its entry 'state_dict'"):
        RegionMedClipModel.from_clip_pretrained(tmp_path)
