"""What a stage trains and how its learning rate runs."""

import dataclasses

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.train.adapters import begin_stage_adapters
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.recipe_parts import Optimizer, Stage, TowerModes
from regionmed_clip.train.stage_plan import StagePlan, plan_at, plan_stages
from regionmed_clip.train.stages import build_optimizer, learning_rate_at, set_learning_rates, set_trained_parameters

GLOBAL = Stage(steps=9, loss_weights={"image_text": 1.0}, modes=TowerModes(roi="frozen"))
REGION = Stage(steps=9, loss_weights={"region_text": 1.0}, modes=TowerModes(text="frozen"))
LABEL_FREE = Stage(steps=9, loss_weights={"region_distillation": 1.0})
PROPOSALS = Stage(steps=9, loss_weights={"proposals": 1.0})
JOINT = Stage(
    steps=9, loss_weights={"image_text": 1.0, "region_text": 1.0, "image_region_text": 1.0, "fused_image_text": 1.0}
)


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


def test_a_bias_is_trained_where_its_term_has_the_sigmoid_loss_which_alone_feels_it():
    terms = {"image_text": 1.0, "region_text": 1.0}
    stage = Stage(loss_weights=terms, loss_kinds={"image_text": "sigmoid"})
    names = {name for name, _ in set_trained_parameters(tiny_model(logit_bias_init_value=-10.0), stage)}
    trained = {name.partition(".")[2] for name in names if name.startswith("temperatures.")}
    assert trained == {"image_text", "image_text_bias", "region_text"}


def group_names(stage: Stage, model: RegionMedClipModel) -> dict[str, list[tuple[str, float]]]:
    """Of every trained parameter the (group, weight decay) pairs it is in."""
    optimizer = build_optimizer(set_trained_parameters(model, stage), stage, Optimizer())
    found: dict[str, list[tuple[str, float]]] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(names[id(parameter)], []).append((group["name"], group["weight_decay"]))
    return found


def test_every_trained_parameter_is_in_the_one_group_of_its_part():
    model = tiny_model()
    stage = dataclasses.replace(JOINT, modes=TowerModes(vision="lora", text="full"), weight_decay=0.5)
    begin_stage_adapters(model, StagePlan(0, stage, 0, 0), seed=0)
    found = group_names(stage, model)
    assert all(len(groups) == 1 for groups in found.values())
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    by_part = {name.partition(".")[0]: groups[0][0] for name, groups in found.items()}
    assert by_part == {
        "vision_model": "vision",
        "text_model": "text",
        "visual_projection": "projections",
        "text_projection": "projections",
        "roi_processor": "roi",
        "region_fusion": "roi",
        "temperatures": "temperatures",
    }


def test_no_parameter_is_decayed_that_should_not_be():
    model = tiny_model()
    found = group_names(dataclasses.replace(JOINT, weight_decay=0.5), model)
    plain = {name for name, ((_, decay),) in found.items() if not decay}
    assert {"region_fusion.alpha", "temperatures.image_text"} <= plain
    assert {"vision_model.embeddings.class_embedding", "text_model.embeddings.LayerNorm.weight"} <= plain
    assert all("weight" not in name or "norm" in name.lower() for name in plain)
    assert all(name.endswith(".weight") for name in set(found) - plain)


def test_tokens_of_a_shape_that_looks_like_a_matrix_take_no_decay_and_lora_matrices_take_it():
    widths = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    model = tiny_model(vision_config={"model_type": "vit", **widths, "image_size": 48, "patch_size": 12})
    stage = dataclasses.replace(JOINT, weight_decay=0.5)
    found = group_names(stage, model)
    assert found["vision_model.embeddings.cls_token"] == [("vision", 0.0)]  # (1, 1, C)
    assert found["vision_model.embeddings.position_embeddings"] == [("vision", 0.5)]  # (1, 17, C): a table
    stage = dataclasses.replace(stage, modes=TowerModes(vision="lora"))
    begin_stage_adapters(model, StagePlan(0, stage, 0, 0), seed=0)
    matrices = {groups[0] for name, groups in group_names(stage, model).items() if ".lora_" in name}
    assert matrices == {("vision", 0.5)}


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (8, 0.55), (13, 0.1)])
def test_the_rate_warms_up_then_falls_along_a_cosine_to_its_share(step, expected):
    stage = Stage(steps=14, warmup_steps=3, learning_rate=1.0, final_learning_rate_share=0.1)
    assert learning_rate_at(stage, step, "roi") == pytest.approx(expected, abs=1e-9)


def test_groups_have_their_own_rates_on_one_course():
    rates = {"roi": 4.0, "temperatures": 0.5}
    stage = dataclasses.replace(JOINT, steps=9, warmup_steps=1, learning_rate=1.0, learning_rates=rates)
    stage = dataclasses.replace(stage, weight_decay=0.1)
    optimizer = build_optimizer(set_trained_parameters(tiny_model(), stage), stage, Optimizer())
    for step in range(9):
        set_learning_rates(optimizer, stage, step)
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        course = found["vision"]  # its rate is 1
        expected = {"vision": 1.0, "text": 1.0, "projections": 1.0, **rates}
        assert found == pytest.approx({name: rate * course for name, rate in expected.items()}, rel=1e-12)
    assert optimizer.param_groups[0]["name"] == "vision"


def test_every_step_lies_in_its_stage_and_goes_on_where_its_data_were_left():
    settings = ["stages.region.global_batch_size=4", "stages.joint.data=phantom:num_train=32,num_test=8"]
    plans = plan_stages(load_recipe(RECIPES_FOLDER / "smoke.yaml", settings).settled())
    assert [plan_at(plans, step).index for step in (0, 7, 8, 15, 16, 23, 99)] == [0, 0, 1, 1, 2, 2, 2]
    assert [plan.first_step for plan in plans] == [0, 8, 16]
    assert [plan.first_position for plan in plans] == [0, 8 * 16, 0]  # the joint stage has data of its own
    assert plans[1].position(10) == 8 * 16 + 2 * 4
