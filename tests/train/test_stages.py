"""What a stage trains and how its learning rate runs."""

import dataclasses

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.recipe_parts import Optimizer, Stage, TowerModes
from regionmed_clip.train.stage_plan import plan_at, plan_stages
from regionmed_clip.train.stages import build_optimizer, learning_rate_at, set_trained_parameters

GLOBAL = Stage(loss_weights={"image_text": 1.0}, modes=TowerModes(roi="frozen"))
REGION = Stage(loss_weights={"region_text": 1.0}, modes=TowerModes(text="frozen"))
LABEL_FREE = Stage(loss_weights={"region_distillation": 1.0})
PROPOSALS = Stage(loss_weights={"proposals": 1.0})
JOINT = Stage(loss_weights={"image_text": 1.0, "region_text": 1.0, "image_region_text": 1.0, "fused_image_text": 1.0})


def trained_parts(stage: Stage) -> set[str]:
    return {name.split(".")[0] for name, _ in set_trained_parameters(tiny_model(), stage)}


def test_each_stage_trains_exactly_the_parts_its_terms_reach():
    towers = {"vision_model", "visual_projection", "text_model", "text_projection", "temperatures"}
    assert trained_parts(GLOBAL) == towers
    assert trained_parts(REGION) == {"vision_model", "roi_processor", "temperatures"}
    assert trained_parts(LABEL_FREE) == {"vision_model", "roi_processor"}
    assert trained_parts(PROPOSALS) == {"vision_model", "proposal_head"}
    assert trained_parts(dataclasses.replace(PROPOSALS, modes=TowerModes(vision="frozen"))) == {"proposal_head"}
    frozen = dataclasses.replace(LABEL_FREE, modes=TowerModes(vision="frozen"))
    assert trained_parts(frozen) == {"roi_processor"}
    assert trained_parts(JOINT) == towers | {"roi_processor", "region_fusion"}


@pytest.mark.parametrize(
    ("tower", "image_pooling", "layer"), [("siglip_vision_model", "tower", "head"), ("vit", "pooler", "pooler")]
)
def test_a_layer_that_pools_the_image_rests_while_only_regions_are_trained(tower, image_pooling, layer):
    widths = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    vision = {"model_type": tower, **widths, "image_size": 48, "patch_size": 12}
    model = tiny_model(vision_config=vision, image_pooling=image_pooling)
    for stage, trained in ((REGION, False), (GLOBAL, True), (JOINT, True)):
        names = {name for name, _ in set_trained_parameters(model, stage)}
        assert any(name.startswith(f"vision_model.{layer}.") for name in names) is trained
        assert any(name.startswith("vision_model.embeddings.") for name in names)
    stage_trained = dict(set_trained_parameters(model, REGION))
    model(**tiny_batch(), return_loss=True).loss_terms["region_text"].backward()
    assert all(parameter.grad is not None for parameter in stage_trained.values())  # DDP stops at one without


def test_a_stage_starts_without_the_gradients_of_the_one_before():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_trained_parameters(model, LABEL_FREE)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_temperatures_of_the_terms_are_trained():
    trained = {name for name, _ in set_trained_parameters(tiny_model(), GLOBAL) if name.startswith("temperatures")}
    assert trained == {"temperatures.image_text"}


def test_no_parameter_is_decayed_that_should_not_be():
    model = tiny_model()
    optimizer = build_optimizer(set_trained_parameters(model, JOINT), JOINT, Optimizer(weight_decay=0.5))
    plain = {id(item) for group in optimizer.param_groups if not group["weight_decay"] for item in group["params"]}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in plain}
    assert "region_fusion.alpha" in named
    assert "temperatures.image_text" in named
    assert all("weight" not in name or "norm" in name.lower() for name in named)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (8, 0.55), (13, 0.1)])
def test_the_rate_warms_up_then_falls_along_a_cosine_to_its_share(step, expected):
    stage = Stage(steps=14, warmup_steps=3, learning_rate=1.0, final_learning_rate_share=0.1)
    assert learning_rate_at(stage, step) == pytest.approx(expected, abs=1e-9)


def test_every_step_lies_in_its_stage_and_goes_on_where_its_data_were_left():
    settings = ["stages.region.global_batch_size=4", "stages.joint.data=phantom:num_train=32,num_test=8"]
    plans = plan_stages(load_recipe(RECIPES_FOLDER / "smoke.yaml", settings).settled())
    assert [plan_at(plans, step).index for step in (0, 7, 8, 15, 16, 23, 99)] == [0, 0, 1, 1, 2, 2, 2]
    assert [plan.first_step for plan in plans] == [0, 8, 16]
    assert [plan.first_position for plan in plans] == [0, 8 * 16, 0]  # the joint stage has data of its own
    assert plans[1].position(10) == 8 * 16 + 2 * 4
