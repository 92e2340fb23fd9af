"""RegionMedClipConfig: its defaults, what it refuses, and that it survives saving."""

import json

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_model

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel


def test_the_defaults_are_a_real_vit_b16_and_a_bert_base():
    config = RegionMedClipConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (768, 12, 16, 224)
    assert (text.model_type, text.hidden_size, text.num_hidden_layers) == ("bert", 768, 12)
    assert (config.projection_dim, config.grid_size, config.text_pooling) == (512, 14, "cls")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roi_mode": "crop"}, "roi_mode is 'crop'; it must be one of prompter"),
        ({"text_pooling": "max"}, "text_pooling is 'max'"),
        ({"roi_num_layers": 0}, "roi_num_layers is 0; it must be a whole number of at least 1"),
        ({"roi_num_frequencies": 21}, "roi_num_frequencies is 21; .* 20 octaves apart"),
        ({"roi_num_heads": 3}, "roi_num_heads is 3; it must divide vision_config.hidden_size = 32"),
        ({"proposal_threshold": 1.5}, r"proposal_threshold is 1.5; it must be a finite number in \[0, 1\]"),
        ({"proposal_threshold": None}, "proposal_threshold is None"),
        ({"logit_scale_max": 0}, "logit_scale_max is 0; it must be a finite number above 0"),
        ({"logit_scale_init_value": float("nan")}, "logit_scale_init_value is nan; it must be a finite number"),
        ({"logit_bias_init_value": "ten"}, "logit_bias_init_value is 'ten'"),
        ({"answer_hidden_size": 0}, "answer_hidden_size is 0; it must be a whole number of at least 1"),
        ({"answer_hidden_size": "wide"}, "answer_hidden_size is 'wide'"),
        ({"answer_num_layers": 1.5}, "answer_num_layers is 1.5"),
        ({"answer_hidden_size": 30, "answer_num_heads": 4}, "it must divide answer_hidden_size = 30"),
        ({"answer_dropout": 1.0}, r"answer_dropout is 1.0; it must be a finite number in \[0, 1\)"),
        ({"vision_config": 3}, "vision_config is 3; give the tower's config"),
        ({"text_config": {"model_type": "nonesuch"}}, "model_type 'nonesuch'"),
        ({"vision_config": {"model_type": "clip_vision_model", "image_size": 50, "patch_size": 16}}, "must divide"),
        ({"vision_config": {"model_type": "bert"}}, "image_size None"),
        (
            {
                "text_config": {"model_type": "siglip_text_model", "projection_size": 24},
                "text_projection_type": "identity",
            },
            "its tower has width 24; it must equal projection_dim = 16",
        ),
    ],
)
def test_an_impossible_config_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("projection_dim", "given", "width", "num_heads"),
    [(16, None, 16, 1), (512, None, 512, 8), (1024, None, 768, 12), (200, None, 200, 2), (512, 256, 256, 4)],
)
def test_the_answer_head_is_as_wide_as_the_shared_space_up_to_768(projection_dim, given, width, num_heads):
    fusion = {"fusion_num_heads": 1}
    config = tiny_config(projection_dim=projection_dim, answer_hidden_size=given, **fusion)
    assert (config.answer_hidden_size, config.answer_num_heads) == (width, num_heads)


def test_config_json_of_an_encoder_says_of_the_answer_head_only_what_was_set(tmp_path):
    plain, wide = tiny_config(), tiny_config(answer_hidden_size=128)
    assert not [name for name in plain.to_diff_dict() if name.startswith("answer_")]
    assert {name: value for name, value in wide.to_diff_dict().items() if name.startswith("answer_")} == {
        "answer_hidden_size": 128
    }
    wide.save_pretrained(tmp_path)
    loaded = RegionMedClipConfig.from_pretrained(tmp_path)
    assert (loaded.answer_hidden_size, loaded.answer_num_heads) == (128, 2)


def test_the_configs_that_are_given_are_copied():
    given = RegionMedClipConfig().vision_config
    assert tiny_config(vision_config=given).vision_config is not given


VARIANTS = {
    "deep prompter": {"image_pooling": "mean", "roi_num_layers": 2, "roi_num_heads": 4, "roi_num_frequencies": 3},
    "roialign": {"roi_mode": "roialign", "proposal_threshold": 0},
    "maskpool": {"roi_mode": "maskpool", "text_pooling": "pooler"},
    "siglip's": {
        "projection_dim": 32, "visual_projection_type": "identity", "text_projection_type": "identity",
        "logit_scale_init_value": 2, "logit_bias_init_value": -10,
    },
    "clip's": {"embedding_norm": "clip", "visual_projection_type": "mlp", "text_projection_type": "mlp"},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_config_and_its_model_come_back_equal_from_a_folder_and_from_json(changes, tmp_path):
    config = tiny_config(**changes)
    config.save_pretrained(tmp_path)
    assert RegionMedClipConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert RegionMedClipConfig(**json.loads(config.to_json_string())).to_dict() == config.to_dict()
    model, batch = tiny_model(**changes), tiny_batch()
    model.save_pretrained(tmp_path)
    loaded, report = RegionMedClipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for name, value in changes.items():
        assert getattr(loaded.config, name) == value, name
    for name, value in model(**batch, return_loss=True).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded.eval()(**batch, return_loss=True)[name], value), name
