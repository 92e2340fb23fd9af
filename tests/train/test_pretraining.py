"""What a run refuses before any work, what it says of itself, and the recipe with which it goes on."""

import json

import pytest
import yaml

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train import pretraining
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe, parse_command_line
from regionmed_clip.train.metrics_log import read_metrics
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


def test_a_run_in_epochs_goes_on_from_its_own_recipe_file_in_smaller_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(pretraining, "use_all_cores", lambda accelerator: None)  # this process is to keep its threads
    monkeypatch.setattr(pretraining, "RunLock", lambda folder: None)  # only a process that ends gives it back
    stages = [
        {"name": name, "epochs": epochs, "loss_weights": {"image_text": 1.0}} for name, epochs in [("a", 0.1), ("b", 1)]
    ]
    given = [f"stages={json.dumps(stages)}", "data=phantom:num_train=12,num_test=2", "image_size=24", "trackers=[]"]
    output = ["--output_dir", str(tmp_path)]
    first = ["--recipe", str(SMOKE), *output, *given, "global_batch_size=8", "baseline=true"]
    pretraining.pretrain(parse_command_line(first))
    steps = [(row["step"], row["stage"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [(1, "a"), (2, "b"), (3, "b")]  # 0.1 * 12 / 8 and 12 / 8, rounded up
    again = ["--recipe", str(tmp_path / "recipe.yaml"), *output, "--resume"]
    resumed = pretraining.pretrain(parse_command_line([*again, "batch_size_per_device=3"]))
    assert [stage.batch_size_per_device for stage in resumed.command_line.recipe.settled().stages] == [3, 3]
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["batch_size_per_device"] == 3
    with pytest.raises(ValueError, match="\n  global_batch_size: 8 in the checkpoint, 4 now\n"):
        pretraining.pretrain(parse_command_line([*again, "global_batch_size=4"]))
