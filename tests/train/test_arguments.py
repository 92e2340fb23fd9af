"""Recipes and the command line: what they accept, fill in and refuse."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.train.arguments import (
    RECIPES_FOLDER,
    load_recipe,
    parse_command_line,
    plain_clip_recipe,
)

SMOKE = RECIPES_FOLDER / "smoke.yaml"
REAL_SMALL = RECIPES_FOLDER / "real_small.yaml"


PRETRAINING_RECIPES = sorted(set(RECIPES_FOLDER.glob("*.yaml")) - set(RECIPES_FOLDER.glob("vqa_*.yaml")))


@pytest.mark.parametrize("path", PRETRAINING_RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_opens_with_its_command(path: Path):
    values = yaml.safe_load(path.read_text())
    given = [] if "data" in values else ["data=phantom"]
    given += ["model.start=CHECKPOINT"] if values["tokenizer"].get("source") == "start" else []
    recipe = load_recipe(path, given)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# accelerate launch train/pretrain.py")


def test_with_no_argument_the_quickstart_runs_on_phantoms():
    command = parse_command_line([])
    assert command.recipe.name == "quickstart"
    assert command.recipe.data.startswith("phantom")
    assert not command.resume


def test_overrides_reach_inner_keys_and_stages_by_name():
    recipe = load_recipe(SMOKE, ["seed=7", "optimizer.weight_decay=1e-2", "stages.joint.steps=3", "baseline=true"])
    assert (recipe.seed, recipe.optimizer.weight_decay, recipe.baseline) == (7, 0.01, True)
    assert [stage.steps for stage in recipe.stages] == [8, 8, 3]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=1", "unknown key 'sede'; the known keys are name, data, seed"),
        ("optimizer.lr=1", "unknown key 'lr'; the known keys are weight_decay"),
        ("stages.last.steps=1", r"no stage 'last'; the recipe's stages are \['global', 'region', 'joint'\]"),
        ("seed", "'seed' on the command line is not key=value"),
        ("seed=one", "seed is 'one'; it must be a whole number"),
        ("baseline=1", "baseline is 1; it must be true or false"),
        ("precision=fp8", "precision is 'fp8'; it must be one of auto, fp32, bf16, fp16"),
        ("global_batch_size=0", "global_batch_size is 0; it must be at least 1"),
        ("stages.joint.learning_rate=-1", "stage 'joint': learning_rate is -1.0; it must be above 0"),
        ("stages.joint.warmup_steps=8", "warmup_steps is 8; it must be from 0 to steps - 1"),
        ("stages.joint.loss_weights={box: 1}", "loss_weights has 'box'; the known terms are image_text"),
        ("stages.joint.loss_weights={}", "loss_weights is empty"),
        ("stages.joint.modes={text: none}", "modes: text is 'none'; it must be one of full, frozen, lora"),
        ("stages.joint.modes={roi: lora}", "modes: roi is 'lora'; it must be full or frozen"),
        ("stages.joint.epochs=2", "stage 'joint' has steps 8 and epochs 2.0; give exactly one of them"),
        ("stages.joint.steps=null", "stage 'joint' has steps None and epochs None; give exactly one of them"),
        ("stages.joint.learning_rates={tower: 1e-4}", "learning_rates has 'tower'; the groups are vision, text"),
        ("stages.joint.learning_rates={vision: 0}", "learning_rates.vision is 0.0; it must be above 0"),
        ("stages.joint.loss_kinds={proposals: sigmoid}", "loss_kinds has 'proposals'; a kind belongs to a contrastive"),
        ("stages.joint.loss_kinds={image_text: hinge}", "loss_kinds.image_text is 'hinge'; it must be one of infonce"),
        ("stages.joint.loss_kinds={image_text: sigmoid}", "has a sigmoid loss, and the model no bias to it; set model"),
        ("stages.joint.loss_weights={hard_negatives: 1}", "has the term hard_negatives and num_negatives 0; set num"),
        ("stages.joint.adapters=fold", "adapters is 'fold'; it must be one of keep, merge, drop"),
        ("stages.region.modes={vision: lora}", "trains the vision tower in full, and an earlier stage left adapters"),
        (
            (
                "stages=[{name: a, steps: 1, modes: {vision: lora}},"
                "{name: b, steps: 1, modes: {vision: lora}, lora: {vision: {rank: 4}}}]"
            ),
            "stage 'b' has lora.vision .*rank=4.* which has .*rank=16.*; give the same settings there, or set adapters",
        ),
        ("stages.region.lora={vision: {rank: 0}}", "lora.vision: rank is 0; it must be at least 1"),
        ("stages.region.lora={vision: {rank: 4}}", "'region' has settings in lora, and no tower trains by it; set mod"),
        ("stages.joint.max_grad_norm=0", "stage 'joint': max_grad_norm is 0.0; it must be above 0"),
        ("seed=4294967296", "seed is 4294967296; it must be from 0 to 4294967295"),
        ("stages.joint.augmentation={flip_x: 2}", "augmentation: flip_x is 2.0; it must be from 0 to 1"),
        ("ema_decay=1", "ema_decay is 1.0; it must be between 0 and 1"),
        ("similarity_filter=2", "similarity_filter is 2.0; it must be a cosine above 0 and at most 1"),
        ("num_negatives=-1", "num_negatives is -1; it must be at least 0"),
        ("batch_size_per_device=0", "batch_size_per_device is 0; it must be at least 1"),
        ("validation={keep_best: macro_auroc}", "keep_best is 'macro_auroc' and every_steps 0"),
        ("stages.global.modes={vision: frozen, text: frozen}", "would train nothing.*by none of its terms image_text"),
        ("data=", "names no data; add data=phantom"),
        ("evaluation.tasks=[vqa]", "evaluation: tasks is .'vqa',.; it must be at least one of retrieval"),
        ("optimizer.max_grad_norm=0", "max_grad_norm is 0.0; it must be above 0"),
        ("stages.joint.learning_rate=.inf", "learning_rate is inf; it must be above 0"),
        ("name=../../x", "name is '../../x'; it must be letters"),
        ("tokenizer={vocab", "'tokenizer={vocab' is not YAML"),
        ("distillation.regions=0", "distillation: regions is 0; it must be at least 1"),
        ("distillation.min_side=0.7", "min_side is 0.7; it must be above 0 and at most max_side"),
        ("distillation.max_side=1.5", "max_side is 1.5; it must be above 0 and at most 1"),
        ("tokenizer.vocab_size=10", "vocab_size is 10; it must be at least 260"),
    ],
)
def test_a_bad_override_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(SMOKE, [override])


def test_an_override_of_a_stage_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match=r"there is no stage 'global'; the recipe's stages are \[\]"):
        load_recipe(SMOKE, ["stages=[global]", "stages.global.steps=3"])


def test_a_recipe_without_data_says_how_to_give_it():
    with pytest.raises(ValueError, match="'real_small' names no data; add data=phantom, data=jsonl:FOLDER or"):
        load_recipe(REAL_SMALL)


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"nonesuch.yaml' is not a file.*quickstart.yaml"):
        load_recipe("nonesuch.yaml")


def test_plain_clip_has_the_same_steps_and_no_region_term():
    recipe = load_recipe(SMOKE)
    plain = plain_clip_recipe(recipe)
    assert plain.num_steps == recipe.num_steps
    assert [stage.learning_rate for stage in plain.stages] == [stage.learning_rate for stage in recipe.stages]
    assert all(stage.loss_weights == {"image_text": 1.0} for stage in plain.stages)


def test_the_fingerprint_follows_what_decides_the_weights_and_nothing_else():
    same = load_recipe(SMOKE, ["baseline=true", "checkpoint_every_steps=2", "evaluation.batch_size=8"])
    other = load_recipe(SMOKE, ["stages.joint.learning_rate=1e-4"])
    shared_out = load_recipe(
        SMOKE, ["num_processes=2", "batch_size_per_device=4", "stages.joint.batch_size_per_device=2"]
    )
    assert shared_out.fingerprint() == same.fingerprint()
    assert same.fingerprint() == load_recipe(SMOKE).fingerprint() != other.fingerprint()


def test_a_label_free_stage_that_would_move_nothing_is_refused():
    idle = "{name: s, steps: 3, loss_weights: {region_distillation: 1.0}, modes: {vision: frozen, roi: frozen}}"
    with pytest.raises(ValueError, match=r"would train nothing.*used by none of its terms region_distillation"):
        load_recipe(SMOKE, [f"stages=[{idle}]"])


def test_the_drawn_boxes_enter_the_fingerprint_of_a_label_free_recipe_alone():
    wider = "distillation.max_side=0.9"
    assert load_recipe(SMOKE, [wider]).fingerprint() == load_recipe(SMOKE).fingerprint()
    stage = "stages=[{name: s, steps: 3, loss_weights: {region_distillation: 1.0}}]"
    assert load_recipe(SMOKE, [stage, wider]).fingerprint() != load_recipe(SMOKE, [stage]).fingerprint()


@given(st.integers(0, 10**6), st.floats(1e-6, 1.0), st.booleans())
def test_a_resolved_recipe_reads_back_equal(tmp_path_factory, seed, decay, baseline):
    overrides = [f"seed={seed}", f"optimizer.weight_decay={decay!r}", f"baseline={str(baseline).lower()}"]
    recipe = load_recipe(SMOKE, overrides)
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(path) == recipe
