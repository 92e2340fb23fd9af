"""Recipes of fine-tuning and its command line: what they accept, fill in and refuse."""

from pathlib import Path

import pytest
import yaml

from regionmed_clip.train.arguments import RECIPES_FOLDER
from regionmed_clip.train.recipe_parts import TowerModes
from regionmed_clip.train.vqa_recipe import (
    QUESTION_ONLY,
    RANDOM_ENCODER,
    RegionShares,
    VqaRecipe,
    load_vqa_recipe,
    parse_vqa_command_line,
)

START = "start=runs/quickstart/final"


def smoke(*overrides: str) -> VqaRecipe:
    return load_vqa_recipe("vqa_smoke", [START, *overrides])


@pytest.mark.parametrize("path", sorted(RECIPES_FOLDER.glob("vqa_*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_opens_with_its_command(path: Path):
    given = [] if "data" in yaml.safe_load(path.read_text()) else ["data=jsonl:FOLDER"]
    recipe = load_vqa_recipe(path, [START, *given])
    assert recipe.name == path.stem
    assert path.read_text().startswith(f"# accelerate launch train/finetune_vqa.py --recipe {path.stem} ")


def test_the_command_line_names_a_recipe_by_its_name_and_the_quickstart_without_one():
    given = ["--recipe", "vqa_smoke", START, "seed=3", "regions.left_out=0"]
    command = parse_vqa_command_line(given)
    assert (command.recipe.seed, tuple(command.recipe.regions.by_mode())) == (3, ("given", "proposed"))
    assert (
        command.text == f"accelerate launch train/finetune_vqa.py --recipe vqa_smoke {START} seed=3 regions.left_out=0"
    )
    assert parse_vqa_command_line([START]).recipe.name == "vqa_quickstart"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("start=null", r"recipe 'vqa_smoke': start is missing; name the folder of the trained encoder"),
        ("data=null", "names no data; add data="),
        ("stpes=3", "unknown key 'stpes'; the known keys are name, start"),
        ("epochs=2", "has steps 12 and epochs 2.0; give exactly one of them"),
        ("regions.given=-1", "regions: given is -1.0; it must be at least 0"),
        ("regions={given: 0, proposed: 0, left_out: 0}", "the sum of the shares is 0.0; it must be above 0"),
        ("controls=[blank_image]", r"controls is \['blank_image'\]; it must be some of question_only, random_encoder"),
        ("encoder=other", "encoder is 'other'; it must be pretrained or random"),
        ("model={projection_dim: 64}", "model has 'projection_dim'; the encoder is taken as it is"),
        ("learning_rates={projections: 1}", "learning_rates has 'projections'; the groups are vision, text, roi, head"),
        ("evaluation.split=validation", "evaluation: split is 'validation'; it must be neither train nor validation"),
        ("answers.max_answers=1", "answers: max_answers is 1; it must be at least 2"),
        ("validation.patience=0", "validation: patience is 0; it must be at least 1"),
        ("modes={roi: lora}", "modes: roi is 'lora'; it must be full or frozen"),
        ("lora={text: {rank: 4}}", "has settings in lora, and no tower trains by it"),
        ("box_noise=0.6", "box_noise is 0.6; it must be from 0 to 0.5"),
        ("questions_per_image=0", "questions_per_image is 0; it must be at least 1"),
    ],
)
def test_a_mistake_names_key_value_and_rule(override, message):
    with pytest.raises(ValueError, match=message):
        smoke(override)


def test_epochs_become_steps_rounded_up():
    recipe = smoke("steps=null", "epochs=2.5", "global_batch_size=8").with_steps(num_images=10)
    assert (recipe.steps, recipe.epochs) == (4, None)  # 25 images are three batches of 8 and one image


def test_a_control_takes_the_same_steps_without_images_or_without_what_the_encoder_has_learnt():
    recipe = smoke("modes={vision: frozen}")
    blind, random = recipe.control(QUESTION_ONLY), recipe.control(RANDOM_ENCODER)
    assert (blind.has_images, blind.encoder, blind.modes) == (False, "pretrained", recipe.modes)
    assert (random.has_images, random.encoder, random.modes) == (True, "random", TowerModes())
    assert {(each.steps, each.seed, each.controls) for each in (blind, random)} == {(recipe.steps, recipe.seed, ())}
    assert len({str(each.decisive()) for each in (recipe, blind, random)}) == 3


def test_what_only_shares_out_the_work_is_not_decisive():
    changed = smoke("name=other", "checkpoint_every_steps=9", "trackers=[]", "preparation_workers=3")
    assert changed.decisive() == smoke().decisive()
    assert smoke("validation.every_steps=3").decisive() != smoke().decisive()  # it chooses the weights


def test_the_modes_are_those_with_a_share():
    assert RegionShares(given=0, proposed=1, left_out=2).by_mode() == {"proposed": 1, "off": 2}
