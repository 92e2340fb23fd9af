"""The arms of the study of orders: equal steps for any recipe, and stages that say what their names do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.eval.studies.orders import ARMS, list_arms, num_steps
from regionmed_clip.eval.studies.recipes import override_stages, refuse_stages
from regionmed_clip.eval.studies.training_orders import RECIPE
from regionmed_clip.train.arguments import load_recipe, plain_clip_recipe

GLOBAL = {"name": "global", "steps": 10, "warmup_steps": 4, "loss_weights": {"image_text": 1.0}}
GLOBAL |= {"modes": {"roi": "frozen"}, "learning_rate": 1e-3}
REGION = {"name": "region", "steps": 30, "loss_weights": {"image_text": 0.3, "region_text": 1.0}}
JOINT = {"name": "joint", "steps": 61, "warmup_steps": 1, "learning_rate": 5e-4, "num_negatives": 2}
JOINT |= {"loss_weights": {"image_text": 1.0, "region_text": 1.0, "image_region_text": 0.5}}
STAGES = [GLOBAL, REGION, JOINT]


@st.composite
def recipes_of_any_size(draw):
    """At least three stages of any steps, each with a warm-up that fits and with or without region texts."""
    stages = []
    for place in range(draw(st.integers(3, 5))):
        steps = draw(st.integers(1, 300))
        weights = {"image_text": 1.0} | ({"image_region_text": 0.5} if draw(st.booleans()) else {})
        stage = {"name": f"stage{place}", "steps": steps, "loss_weights": weights}
        stages.append(stage | {"warmup_steps": draw(st.integers(0, steps - 1))})
    return stages


@given(recipes_of_any_size())
def test_all_arms_of_any_recipe_take_equally_many_steps_and_run(tmp_path_factory, stages):
    total = sum(stage["steps"] for stage in stages)
    arms, same = list_arms(stages)
    assert {*arms, *same} == set(ARMS)
    for made in arms.values():
        assert num_steps(made) == total
        for stage in made:
            assert 0 <= stage.get("warmup_steps", 0) < stage["steps"]
    for name, twin in same.items():
        unnamed = [[{**stage, "name": ""} for stage in ARMS[one](stages)] for one in (name, twin)]
        assert unnamed[0] == unnamed[1]


def test_the_steps_of_a_left_out_stage_are_shared_out_in_proportion():
    arms, same = list_arms(STAGES)
    steps = {name: [stage["steps"] for stage in made] for name, made in arms.items()}
    assert steps["three_stages"] == steps["global_only"] == steps["joint"] == [10, 30, 61]
    assert steps["region_then_joint"] == [33, 68]  # 10 more for 30 and 61: 3.30 and 6.70
    assert steps["without_region"] == [14, 87]  # 30 more for 10 and 61: 4.23 and 25.77
    assert steps["without_joint"] == [25, 76]  # 61 more for 10 and 30: 15.25 and 45.75
    assert same == {"joint_then_hard_negatives": "joint", "without_global": "region_then_joint"}


def test_an_arm_that_begins_later_warms_up_as_long_as_the_recipe_does():
    arms, _ = list_arms(STAGES)
    assert arms["region_then_joint"][0]["warmup_steps"] == 4
    assert [stage.get("warmup_steps", 0) for stage in arms["without_region"]] == [4, 1]


def test_an_arm_without_the_last_stage_comes_down_to_its_learning_rate_all_the_same():
    warm, cool = {"final_learning_rate_share": 0.7}, {"final_learning_rate_share": 0.03}
    arms, _ = list_arms([GLOBAL, REGION | warm, JOINT | cool])
    assert {name: made[-1].get("final_learning_rate_share") for name, made in arms.items()} == dict.fromkeys(arms, 0.03)
    assert arms["three_stages"][1]["final_learning_rate_share"] == 0.7
    by_default, _ = list_arms([GLOBAL, REGION | warm, JOINT])
    assert "final_learning_rate_share" not in by_default["without_joint"][-1]  # the recipe's own default


def test_joint_has_the_terms_of_the_last_stage_and_the_schedule_of_every_stage():
    first, second, last = list_arms(STAGES)[0]["joint"]
    assert first == {"name": "global", "steps": 10, "warmup_steps": 4, "learning_rate": 1e-3} | {
        "loss_weights": JOINT["loss_weights"],
        "num_negatives": 2,
    }
    assert second["loss_weights"] == JOINT["loss_weights"]
    assert last == JOINT


def test_hard_negatives_wait_for_the_last_stage_and_every_other_term_does_not():
    both = {"image_text": 1.0, "region_text": 1.0, "hard_negatives": 0.2}
    stages = [GLOBAL, REGION, {**JOINT, "loss_weights": both}]
    arms, _ = list_arms(stages)
    weights = [stage["loss_weights"] for stage in arms["joint_then_hard_negatives"]]
    assert weights == [{"image_text": 1.0, "region_text": 1.0}] * 2 + [both]
    assert [stage["steps"] for stage in arms["joint_then_hard_negatives"]] == [10, 30, 61]


def test_region_texts_are_left_out_everywhere_and_arms_without_them_coincide():
    arms, _ = list_arms(STAGES)
    for name in ("three_stages_without_region_texts", "joint_without_region_texts"):
        assert all("image_region_text" not in stage["loss_weights"] for stage in arms[name])
    bare = [GLOBAL, REGION, {**JOINT, "loss_weights": {"region_text": 1.0}}]
    assert list_arms(bare)[1] == {
        "joint_then_hard_negatives": "joint",
        "without_global": "region_then_joint",
        "three_stages_without_region_texts": "three_stages",
        "joint_without_region_texts": "joint",
    }
    with_kind = [GLOBAL, REGION, {**JOINT, "loss_kinds": {"image_region_text": "sigmoid"}}]
    assert list_arms(with_kind)[0]["three_stages_without_region_texts"][-1]["loss_kinds"] == {}


def test_an_arm_keeps_its_own_name_where_it_is_asked_for_alone():
    arms, same = list_arms(STAGES, ["without_global"])
    assert list(arms) == ["without_global"]
    assert same == {}


def test_every_arm_of_the_shipped_recipe_is_a_sound_recipe_and_global_only_is_plain_clip():
    default = load_recipe(RECIPE)
    stages = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]
    arms, _ = list_arms(stages)
    loaded = {name: load_recipe(RECIPE, [override_stages(made)]) for name, made in arms.items()}
    assert loaded["three_stages"] == default
    assert loaded["global_only"].stages == plain_clip_recipe(default).stages
    assert {recipe.num_steps for recipe in loaded.values()} == {default.num_steps}
    assert all(replace(recipe, stages=default.stages) == default for recipe in loaded.values())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([GLOBAL, JOINT], "has 2 stage.*needs at least three"),
        ([GLOBAL, {**REGION, "steps": None, "epochs": 2}, JOINT], "stage 'region' has steps None; arms of equal steps"),
        ([GLOBAL, {**REGION, "loss_weights": {"image_region_text": 1.0}}, JOINT], "'region' has no term but"),
    ],
)
def test_a_recipe_that_gives_no_arms_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        list_arms(stages)


def test_overridden_stages_are_refused_and_shared_values_are_written_out():
    with pytest.raises(ValueError, match=r"'stages\.joint\.steps=3': the study makes its arms"):
        refuse_stages(["seed=1", "stages.joint.steps=3"])
    refuse_stages(["seed=1", "model.projection_dim=4"])
    text = override_stages(list_arms(STAGES)[0]["joint"])
    assert "&" not in text
    assert "\n" not in text
    assert yaml.safe_load(text.removeprefix("stages=")) == list_arms(STAGES)[0]["joint"]
