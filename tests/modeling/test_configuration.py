"""RegionMedClipConfig: its defaults, what it refuses, and that it survives saving."""

import pytest
from tiny_models import tiny_config

from modeling_regionmed_clip import RegionMedClipConfig


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
        ({"roi_num_heads": 3}, "roi_num_heads is 3; it must divide vision_config.hidden_size = 32"),
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


def test_the_configs_that_are_given_are_copied():
    given = RegionMedClipConfig().vision_config
    assert tiny_config(vision_config=given).vision_config is not given


def test_a_saved_config_comes_back_equal(tmp_path):
    config = tiny_config(image_pooling="mean", roi_num_layers=2)
    config.save_pretrained(tmp_path)
    assert RegionMedClipConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
