"""What a run refuses before any work: keys the config would ignore, and a folder that belongs to another run."""

import pytest

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.model_building import build_config, build_model
from regionmed_clip.train.pretraining import describe_stage
from regionmed_clip.train.tokenizer import train_tokenizer

SMOKE = RECIPES_FOLDER / "smoke.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.projection_dimm=8", "model has the unknown key 'projection_dimm'"),
        ("model.to_dict=1", "model has the unknown key 'to_dict'"),
        (
            "model.vision_config.hiden_size=8",
            "model.vision_config has the unknown key 'hiden_size'; the known keys are",
        ),
        ("model.text_config.num_layer=8", "model.text_config has the unknown key 'num_layer'"),
    ],
)
def test_a_misspelt_key_of_the_model_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        build_config(load_recipe(SMOKE, [override]))


def test_the_models_config_takes_the_recipes_image_size():
    assert build_config(load_recipe(SMOKE, ["image_size=64"])).grid_size == 8


def test_a_tokenizer_that_does_not_fit_the_text_tower_is_refused_with_the_recipes_settings():
    tokenizer = train_tokenizer(["a small nodule"], vocab_size=300, max_length=64)
    processor = RegionMedClipProcessor(RegionMedClipImageProcessor(size=32, patch_size=8), tokenizer)
    build_model(load_recipe(SMOKE), processor)
    tokenizer.model_max_length = 4096
    with pytest.raises(ValueError, match=r"recipe 'smoke': texts may have 4096 tokens.*by tokenizer.source"):
        build_model(load_recipe(SMOKE), processor)


def test_a_stages_line_for_the_card_says_what_is_its_own():
    recipe = load_recipe(SMOKE, ["stages.joint.epochs=1.5", "stages.joint.steps=null", "stages.joint.image_size=64"])
    first, _, joint = (describe_stage(stage, recipe) for stage in recipe.settled().stages)
    assert first == "stage global: 8 steps, learning rate 0.001, losses image_text x 1"
    assert joint.startswith("stage joint: 1.5 epochs, learning rate 0.0005, losses image_text x 1, region_text x 1, ")
    assert joint.endswith(", image size 64")
