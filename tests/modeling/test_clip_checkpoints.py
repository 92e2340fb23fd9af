"""Starting from checkpoints of transformers: the same logits to the last bit, a region path that begins sensibly."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import (
    BIOMEDCLIP_CONFIG,
    END,
    LENGTH,
    TEXT,
    VISION,
    WHOLE_MODELS,
    biomedclip_tensors,
    roughened,
    save_open_clip,
    tiny_clip,
    tiny_inputs,
    tiny_siglip,
    tiny_tokenizer,
)
from tiny_models import tiny_model
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    Siglip2Config,
    Siglip2Model,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from modeling_regionmed_clip import RegionMedClipModel, source_checkpoint

FRESH = ("roi_processor.", "region_fusion.", "proposal_head.")


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def equal_states(first, second, where=""):
    states = [{n: t for n, t in m.state_dict().items() if n.startswith(where)} for m in (first, second)]
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][n]) for n, t in states[0].items())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", WHOLE_MODELS)
@torch.no_grad()
def test_the_global_logits_are_the_sources_to_the_last_bit(tmp_path, kind, implementation):
    folder, inputs = saved(WHOLE_MODELS[kind](), tmp_path), tiny_inputs()
    source = AutoModel.from_pretrained(folder, attn_implementation=implementation).eval()
    model = RegionMedClipModel.from_clip_pretrained(folder, attn_implementation=implementation)
    expected, found = source(**inputs), model(**inputs)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(found[name], expected[name]), name
    assert expected.logits_per_image.std() > 0.1
    if kind != "siglip":  # which is trained and used without one
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, 7:] = 0
        expected, found = source(**inputs, attention_mask=mask), model(**inputs, attention_mask=mask)
        assert torch.equal(found.logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize("kind", WHOLE_MODELS)
@torch.no_grad()
def test_a_converted_model_comes_back_bit_equal(tmp_path, kind):
    model = RegionMedClipModel.from_clip_pretrained(saved(WHOLE_MODELS[kind](), tmp_path / "source"))
    loaded = RegionMedClipModel.from_pretrained(saved(model, tmp_path / "ours"))
    assert equal_states(loaded, model)
    assert torch.equal(loaded(**tiny_inputs()).logits_per_image, model(**tiny_inputs()).logits_per_image)


@torch.no_grad()
def test_a_checkpoint_in_half_precision_becomes_a_float32_model_of_the_same_values(tmp_path):
    source = tiny_clip().to(torch.bfloat16)
    model = RegionMedClipModel.from_clip_pretrained(saved(source, tmp_path / "source"))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual_projection.weight, source.visual_projection.weight.float())
    half = RegionMedClipModel.from_pretrained(saved(model, tmp_path / "ours"), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}


def test_an_inverse_temperature_above_the_usual_maximum_is_kept_and_the_maximum_raised(tmp_path):
    folder = saved(tiny_siglip(), tmp_path)  # exp(4.72) = 112.2
    model = RegionMedClipModel.from_clip_pretrained(folder)
    assert model.config.logit_scale_max == 200.0
    model.temperatures.clamp_()
    assert model.temperatures.image_text.item() == pytest.approx(4.72)
    with pytest.raises(ValueError, match=r"inverse temperature is 112\.\d+ and logit_scale_max 110"):
        RegionMedClipModel.from_clip_pretrained(folder, logit_scale_max=110.0)


def test_an_inverse_temperature_trained_up_to_100_leaves_the_maximum_at_100(tmp_path):
    source = tiny_clip()
    source.logit_scale.data.fill_(math.log(100))  # in float32 a little above the logarithm
    model = RegionMedClipModel.from_clip_pretrained(saved(source, tmp_path))
    assert model.config.logit_scale_max == 100.0
    model.temperatures.clamp_()
    assert model.temperatures.image_text.item() == source.logit_scale.item()
    assert model.temperatures.region_text.item() == pytest.approx(model.config.logit_scale_init_value)


def test_siglips_special_tokens_come_from_its_tokenizer(tmp_path):
    source = tiny_siglip()
    source.config.text_config.pad_token_id = 5
    folder = saved(source, tmp_path)
    tiny_tokenizer().save_pretrained(folder)
    text = RegionMedClipModel.from_clip_pretrained(folder).config.text_config
    assert (text.pad_token_id, text.eos_token_id) == (1, 1)


# ---- the region path at its start


def test_the_new_parts_follow_torchs_seed_and_nothing_else(tmp_path):
    folder = saved(tiny_clip(), tmp_path)
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(RegionMedClipModel.from_clip_pretrained(folder))
    assert equal_states(models[0], models[1])
    assert equal_states(models[0], models[2], "vision_model.")
    assert not equal_states(models[0], models[2], "proposal_head.")
    assert not any(model.training for model in models)


def region_means(model, pixel_values):
    """The four quarters of every image as boxes (B, 4, 4), and the mean patch state of each (B, 4, C)."""
    quarters = [[x, y, x + 0.5, y + 0.5] for y in (0.0, 0.5) for x in (0.0, 0.5)]
    patches, _, _ = model.encode_patches(pixel_values)  # (B, 16, C)
    halves = patches.unflatten(1, (2, 2, 2, 2))  # row half, row, column half, column
    return torch.tensor([quarters] * len(pixel_values)), halves.mean(dim=(2, 4)).flatten(1, 2)


@torch.no_grad()
def test_where_one_matrix_leads_to_the_shared_space_regions_begin_with_it_and_rank_texts_as_dense_features(tmp_path):
    model, inputs = RegionMedClipModel.from_clip_pretrained(saved(tiny_clip(), tmp_path)), tiny_inputs()
    assert torch.equal(model.roi_processor.projection.weight, model.visual_projection.weight)
    boxes, means = region_means(model, inputs["pixel_values"])
    regions = model.get_region_features(inputs["pixel_values"], boxes).pooler_output
    dense = model.visual_projection(means)
    texts = model.get_text_features(inputs["input_ids"]).pooler_output
    assert cosine_similarity(regions, dense, dim=-1).min() > 0.98
    found, expected = (cosine_similarity(one[:, :, None], texts, dim=-1) for one in (regions, dense))  # (B, 4, T)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(("kind", "least"), [("siglip", 0.8), ("vit and bert", 0.9)])
@torch.no_grad()
def test_where_a_pooling_layer_comes_before_regions_begin_near_what_it_gives_for_their_mean_alone(
    tmp_path, kind, least
):
    folder, pixel_values = saved(WHOLE_MODELS[kind](), tmp_path), tiny_inputs()["pixel_values"]
    model = RegionMedClipModel.from_clip_pretrained(folder)
    layer = model.vision_model.head if kind == "siglip" else model.vision_model.pooler
    boxes, means = region_means(model, pixel_values)
    regions = model.get_region_features(pixel_values, boxes).pooler_output.flatten(0, 1)
    alone = model.visual_projection(layer(means.flatten(0, 1)[:, None]))
    assert cosine_similarity(regions, alone, dim=-1).mean() > least
    torch.manual_seed(9)
    projection = RegionMedClipModel.from_clip_pretrained(folder).roi_processor.projection
    assert torch.equal(projection.weight, model.roi_processor.projection.weight)  # a function of the checkpoint alone


def test_every_part_of_the_region_path_still_learns(tmp_path):
    model = RegionMedClipModel.from_clip_pretrained(saved(tiny_siglip(), tmp_path)).train()
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0]]] * 3)
    model.get_region_features(tiny_inputs()["pixel_values"], boxes).pooler_output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.roi_processor.parameters())


# ---- what is refused


def test_a_naflex_checkpoint_is_refused_by_name(tmp_path):
    vision = {**{k: v for k, v in VISION.items() if k != "image_size"}, "num_patches": 16}
    folder = saved(Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT)), tmp_path)
    for start in (
        lambda: RegionMedClipModel.from_clip_pretrained(folder),
        lambda: RegionMedClipModel.from_vision_text_pretrained(folder, folder),
    ):
        with pytest.raises(ValueError, match=r"NaFlex.*siglip2-base-patch16-224"):
            start()


def test_checkpoints_of_other_kinds_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="load it with from_pretrained"):
        RegionMedClipModel.from_clip_pretrained(saved(tiny_model(), tmp_path / "own"))
    with pytest.raises(ValueError, match=r"'vit'.*from_vision_text_pretrained"):
        RegionMedClipModel.from_clip_pretrained(saved(ViTModel(ViTConfig(**VISION)), tmp_path / "vit"))
    text = DistilBertModel(DistilBertConfig(dim=24, hidden_dim=48, n_layers=1, n_heads=2, vocab_size=60))
    dual = VisionTextDualEncoderModel(vision_model=ViTModel(ViTConfig(**VISION)), text_model=text)
    with pytest.raises(ValueError, match="text tower 'distilbert' of a dual encoder"):
        RegionMedClipModel.from_clip_pretrained(saved(dual, tmp_path / "dual"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"projection_dim": 8}, "projection_dim=8 cannot be given, the checkpoint decides it"),
        ({"vision_config": {}}, "vision_config={} cannot be given"),
        ({"roi_layers": 2}, "no such field; fields that can are .*roi_num_layers"),
    ],
)
def test_an_override_that_would_make_another_model_is_refused(tmp_path, override, message):
    folder = saved(tiny_clip(), tmp_path)
    with pytest.raises(ValueError, match=message):
        RegionMedClipModel.from_clip_pretrained(folder, **override)
    assert len(RegionMedClipModel.from_clip_pretrained(folder, roi_num_layers=2).roi_processor.prompter.blocks) == 2


def rewritten(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_missing_tensor_and_one_of_another_shape_are_errors(tmp_path):
    folder = saved(tiny_clip(), tmp_path)
    rewritten(folder, lambda tensors: tensors.pop("text_projection.weight"))
    with pytest.raises(ValueError, match=r"lacks the weights of text_projection.weight"):
        RegionMedClipModel.from_clip_pretrained(folder)
    rewritten(folder, lambda tensors: tensors.update({"text_projection.weight": torch.zeros(15, 24)}))
    with pytest.raises(ValueError, match=r"do not fit config.json"):
        RegionMedClipModel.from_clip_pretrained(folder)


# ---- two separate encoders


def test_two_encoders_keep_their_weights_and_the_projections_follow_the_seed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(source_checkpoint.logger, "warning", told.append)
    vision = roughened(ViTForImageClassification(ViTConfig(**VISION)))
    text = roughened(BertForMaskedLM(BertConfig(**TEXT)))
    folders = saved(vision, tmp_path / "vision"), saved(text, tmp_path / "text")
    models = []
    for towers in (folders, folders, (vision, text)):
        torch.manual_seed(5)
        models.append(RegionMedClipModel.from_vision_text_pretrained(*towers, projection_dim=8))
    assert equal_states(models[0], models[1])
    assert equal_states(models[0], models[2])
    assert equal_states(models[0].vision_model, vision.vit)
    found = models[0].text_model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in text.bert.state_dict().items())
    assert any("'classifier.weight' is not used: it is no part of the vision encoder" in text for text in told)
    assert models[0].visual_projection.weight.shape == (8, 32)
    assert models[0](**tiny_inputs()).logits_per_image.shape == (3, 4)


def test_of_a_whole_checkpoint_the_towers_are_taken(tmp_path):
    clip, siglip = tiny_clip(), tiny_siglip()
    model = RegionMedClipModel.from_vision_text_pretrained(saved(clip, tmp_path / "a"), saved(siglip, tmp_path / "b"))
    assert equal_states(model.vision_model, clip.vision_model)
    assert equal_states(model.text_model, siglip.text_model)
    folder = save_open_clip(tmp_path / "c", BIOMEDCLIP_CONFIG, biomedclip_tensors())
    model = RegionMedClipModel.from_vision_text_pretrained(folder, clip)
    norm = biomedclip_tensors()["visual.trunk.norm.weight"]
    assert torch.equal(model.vision_model.layernorm.weight, norm)
    assert model.config.text_config.eos_token_id == END


def test_a_pooling_that_passes_a_tower_s_head_leaves_the_head_behind(tmp_path):
    siglip, folder = tiny_siglip(), saved(tiny_siglip(), tmp_path)
    model = RegionMedClipModel.from_vision_text_pretrained(folder, folder, image_pooling="mean", text_pooling="mean")
    assert not [name for name in model.state_dict() if ".head." in name]
    assert equal_states(model.vision_model.encoder, siglip.vision_model.encoder)


def test_a_siglip_text_encoder_saved_alone_is_read(tmp_path):
    text = tiny_siglip().text_model
    model = RegionMedClipModel.from_vision_text_pretrained(tiny_clip(), saved(text, tmp_path))
    assert equal_states(model.text_model, text)


def test_a_dino_tower_keeps_its_mask_token(tmp_path):
    vision = roughened(Dinov2Model(Dinov2Config(**VISION)))
    model = RegionMedClipModel.from_vision_text_pretrained(saved(vision, tmp_path), tiny_clip())
    assert equal_states(model.vision_model, vision)


def test_an_encoder_with_weights_missing_is_refused(tmp_path):
    folder = saved(ViTModel(ViTConfig(**VISION)), tmp_path)
    rewritten(folder, lambda tensors: tensors.pop("pooler.dense.weight"))
    RegionMedClipModel.from_vision_text_pretrained(folder, tiny_clip())  # the dense layer is not used
    with pytest.raises(ValueError, match=r"lacks the weights of vision_model.pooler.dense.weight"):
        RegionMedClipModel.from_vision_text_pretrained(folder, tiny_clip(), image_pooling="pooler")
    rewritten(folder, lambda tensors: tensors.pop("layernorm.weight"))
    with pytest.raises(ValueError, match=r"lacks the weights of layernorm.weight"):
        RegionMedClipModel.from_vision_text_pretrained(folder, tiny_clip())


def test_the_source_itself_is_left_as_it_was(tmp_path):
    source = tiny_clip()
    before = copy.deepcopy(source.state_dict())
    model = RegionMedClipModel.from_vision_text_pretrained(source, source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert isinstance(source, CLIPModel)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert model.config.text_config.max_position_embeddings == LENGTH
