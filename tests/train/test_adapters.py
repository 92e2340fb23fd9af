"""LoRA adapters of stages: which layers carry them, which parameters move, and what becomes of them between stages."""

import copy
import dataclasses
import re

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_batch, tiny_config, tiny_model
from tiny_towers import TEXT_TOWERS, VISION_TOWERS, tower_config

from modeling_regionmed_clip import RegionMedClipModel
from modeling_regionmed_clip.towers import build_tower
from regionmed_clip.train.adapters import (
    adapted_layers,
    add_adapter,
    begin_stage_adapters,
    check_targets,
    detach_adapters,
    merge_layers,
    settle_adapters,
    target_layers,
)
from regionmed_clip.train.recipe_parts import Lora, LoraOfTowers, Optimizer, Stage, TowerModes
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.stages import build_optimizer, set_trained_parameters

TERMS = {"image_text": 1.0, "region_text": 1.0, "image_region_text": 0.5, "fused_image_text": 0.5}
PAIRS = {  # name -> (vision, text)
    "CLIP ViT and BERT": ("clip", "bert"),
    "SigLIP and SigLIP": ("siglip", "siglip"),
    "ViT and CLIP text": ("vit", "clip"),
}
BOTH = TowerModes(vision="lora", text="lora")
CLIP_LAYERS = [f"encoder.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in ("k", "v", "q", "out")]
BERT_PRODUCTS = ("self.query", "self.key", "self.value", "output.dense")
BERT_LAYERS = [f"encoder.layer.{i}.attention.{name}" for i in (0, 1) for name in BERT_PRODUCTS]
VIT_LAYERS = [f"layers.{i}.attention.{name}_proj" for i in (0, 1) for name in ("q", "k", "v", "o")]


def stage(modes: TowerModes, **settings) -> Stage:
    fields = {"name": "s", "steps": 3, "loss_weights": TERMS, "weight_decay": 0.0, "modes": modes, **settings}
    return Stage(**fields)


def plans_of(*stages: Stage) -> list[StagePlan]:
    """Three steps a stage."""
    return [StagePlan(i, dataclasses.replace(item, name=f"s{i}"), 3 * i, 0) for i, item in enumerate(stages)]


def model_of(pair: str) -> RegionMedClipModel:
    vision, text = PAIRS[pair]
    texts = {**TEXT_TOWERS[text][0], "vocab_size": VOCAB_SIZE}
    return tiny_model(vision_config=VISION_TOWERS[vision][0], text_config=texts)


def embeddings(model: RegionMedClipModel) -> torch.Tensor:
    """All that the model computes of a batch, in one row."""
    with torch.no_grad():
        output = model.eval()(**tiny_batch())
    parts = (output.image_embeds, output.text_embeds, output.region_embeds, output.region_text_embeds)
    return torch.cat([part.flatten() for part in parts])


def train_steps(model: RegionMedClipModel, trained: Stage, num_steps: int = 2) -> None:
    optimizer = build_optimizer(set_trained_parameters(model, trained), trained, Optimizer())
    for _ in range(num_steps):
        optimizer.zero_grad()
        model.train()(**tiny_batch(), return_loss=True).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("towers", "name", "expected"),
    [
        (VISION_TOWERS, "clip", CLIP_LAYERS),
        (VISION_TOWERS, "siglip", CLIP_LAYERS),  # not the linear layer inside its head's attention
        (VISION_TOWERS, "vit", VIT_LAYERS),
        (VISION_TOWERS, "dinov2", [f"encoder.layer.{name.removeprefix('layers.')}" for name in VIT_LAYERS]),
        (TEXT_TOWERS, "clip", CLIP_LAYERS),
        (TEXT_TOWERS, "siglip", CLIP_LAYERS),
        (TEXT_TOWERS, "bert", BERT_LAYERS),
        (TEXT_TOWERS, "xlm-roberta", BERT_LAYERS),
    ],
)
def test_by_default_an_adapter_lies_on_the_four_products_of_every_attention(towers, name, expected):
    tower = build_tower(tower_config(towers[name][0]), "last" if towers is TEXT_TOWERS else "tower")
    assert sorted(target_layers(tower, Lora(), "lora")) == sorted(expected)


def test_on_a_tower_of_unknown_type_an_adapter_lies_on_every_linear_layer():
    tower = build_tower(tower_config(TEXT_TOWERS["modernbert"][0]), "cls")
    linear = [name for name, module in tower.named_modules() if isinstance(module, torch.nn.Linear)]
    assert target_layers(tower, Lora(), "lora") == linear


def test_no_expression_reaches_the_layer_that_multi_head_attention_reads_past():
    tower = build_tower(tower_config(VISION_TOWERS["siglip"][0]), "tower")
    found = target_layers(tower, Lora(target_modules=".*"), "lora")
    assert "head.attention.out_proj" not in found
    assert "head.mlp.fc1" in found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("q_proj", r"'q_proj'; it must match the whole name .*its layers? are .*encoder.layers.N.self_attn.k_proj"),
        (r".*\.(q_proj", "is no regular expression"),
    ],
)
def test_an_expression_that_matches_no_layer_is_refused_before_any_work(pattern, message):
    lora = LoraOfTowers(vision=Lora(target_modules=pattern))
    with pytest.raises(ValueError, match=r"(?i)stage 's': lora.vision.target_modules is .*" + message):
        check_targets(tiny_config(), [stage(TowerModes(vision="lora"), lora=lora)])


def test_settings_that_fit_pass_the_check():
    check_targets(tiny_config(), [stage(BOTH, lora=LoraOfTowers(vision=Lora(target_modules=r".*\.fc[12]")))])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    ("vision", "text"), [("frozen", "lora"), ("lora", "full"), ("full", "frozen"), ("lora", "lora")]
)
def test_a_mode_moves_its_weights_and_no_others(pair, vision, text):
    model = model_of(pair)
    trained = stage(TowerModes(vision=vision, text=text))
    begin_stage_adapters(model, plans_of(trained)[0], seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_steps(model, trained)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for tower, mode in (("vision_model", vision), ("text_model", text)):
        own = {name for name in before if name.startswith(f"{tower}.")}
        matrices = {name for name in own if ".lora_" in name}
        assert bool(matrices) is (mode == "lora")
        if mode == "full":
            assert {name for name in own if name.endswith("weight")} <= moved
        else:
            assert moved & own == matrices  # each A and each B, and not one bit of a base weight
    beside = {name for name in before if not name.startswith(("vision_model.", "text_model.", "proposal_head."))}
    still = {"visual_projection": vision == "frozen", "text_projection": text == "frozen"}
    assert {name for name in beside if not still.get(name.partition(".")[0]) and name.endswith("weight")} <= moved
    assert not {name for name in moved if still.get(name.partition(".")[0])}


@pytest.mark.parametrize(
    ("towers", "name"), [(towers, name) for towers in (VISION_TOWERS, TEXT_TOWERS) for name in towers]
)
def test_a_new_adapter_changes_no_bit_and_every_matrix_learns_after_the_first_step(towers, name):
    torch.manual_seed(0)
    is_text = towers is TEXT_TOWERS
    fields, pooling = towers[name]
    tower = build_tower(tower_config(fields), pooling if is_text else "tower").eval()
    inputs = {"input_ids": torch.randint(3, 39, (2, 12))} if is_text else {"pixel_values": torch.randn(2, 3, 48, 48)}
    before = tower(**inputs).last_hidden_state
    add_adapter(tower, Lora(rank=2), "lora")
    after = tower(**inputs).last_hidden_state
    assert torch.equal(after, before)
    weights = torch.randn_like(after)
    (after * weights).sum().backward()
    matrices = {name: value for name, value in tower.named_parameters() if ".lora_" in name}
    learning = {name for name, value in matrices.items() if value.grad.any()}
    assert learning == {name for name in matrices if ".lora_B." in name}  # B is zero, and so is the gradient of A
    with torch.no_grad():
        for name in learning:
            matrices[name].sub_(matrices[name].grad.sign(), alpha=1e-3)
    tower.zero_grad()
    (tower(**inputs).last_hidden_state * weights).sum().backward()
    assert all(value.grad.any() for value in matrices.values())


def test_the_new_matrices_follow_from_seed_and_stage_alone():
    def drawn(seed: int, index: int) -> torch.Tensor:
        model = tiny_model()
        torch.manual_seed(seed + 100)  # whatever it is, it stays as it is
        state = torch.get_rng_state()
        begin_stage_adapters(model, StagePlan(index, stage(BOTH), 0, 0), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.flatten() for name, value in model.named_parameters() if ".lora_A." in name])

    first = drawn(0, 0)
    assert torch.equal(drawn(0, 0), first)
    assert not torch.equal(drawn(1, 0), first)
    assert not torch.equal(drawn(0, 1), first)


def trained_with_adapters() -> RegionMedClipModel:
    model = tiny_model()
    begin_stage_adapters(model, plans_of(stage(BOTH))[0], seed=0)
    train_steps(model, stage(BOTH, learning_rate=0.05))
    return model


def test_merging_keeps_what_the_model_computes_and_dropping_brings_back_the_base():
    base = embeddings(tiny_model())
    trained = trained_with_adapters()
    expected = embeddings(trained)
    assert (expected - base).abs().max() > 1e-3
    merged = copy.deepcopy(trained)
    merge_layers(detach_adapters(merged))
    torch.testing.assert_close(embeddings(merged), expected, atol=1e-5, rtol=0)  # float32
    assert list(merged.state_dict()) == list(tiny_model().state_dict())
    detach_adapters(trained)
    found = trained.state_dict()
    for name, value in tiny_model().state_dict().items():
        assert torch.equal(found[name], value) or not name.startswith(("vision_model", "text_model")), name


@pytest.mark.parametrize(
    ("action", "modes", "towers_with_adapters"),
    [
        ("keep", TowerModes("frozen", "frozen"), {"vision", "text"}),
        ("keep", BOTH, {"vision", "text"}),
        ("merge", TowerModes("full", "full"), set()),
        ("merge", TowerModes("frozen", "lora"), {"text"}),
        ("drop", TowerModes("lora", "full"), {"vision"}),
    ],
)
def test_the_next_stage_keeps_merges_or_drops_what_the_last_one_left(action, modes, towers_with_adapters):
    model = trained_with_adapters()
    before = embeddings(model)
    old = {name: value.clone() for name, value in model.state_dict().items() if ".lora_" in name}
    begin_stage_adapters(model, plans_of(stage(BOTH), stage(modes, adapters=action))[1], seed=0)
    found = {name.partition("_")[0] for name in adapted_layers(model)}
    assert found == towers_with_adapters
    change = (embeddings(model) - before).abs().max().item()
    assert change > 1e-3 if action == "drop" else change <= 1e-5  # float32
    kept = {name: value for name, value in model.state_dict().items() if name in old}
    if action == "keep":
        assert all(torch.equal(value, old[name]) for name, value in kept.items())
    else:  # new ones begin without effect
        assert all(not value.any() for name, value in kept.items() if ".lora_B." in name)


def test_adapters_of_a_frozen_tower_rest():
    model = trained_with_adapters()
    names = {name for name, _ in set_trained_parameters(model, stage(TowerModes("frozen", "lora")))}
    assert not any(name.startswith("vision_model") for name in names)
    assert {name for name, _ in model.text_model.named_parameters(prefix="text_model") if ".lora_" in name} <= names


def test_the_structure_at_any_step_is_that_of_the_stage_that_took_it():
    first = stage(BOTH, lora=LoraOfTowers(vision=Lora(rank=2), text=Lora(rank=3)))
    second = stage(TowerModes("lora", "frozen"), adapters="keep", lora=first.lora)
    third = stage(TowerModes("frozen", "lora"), adapters="merge")
    plans = plans_of(stage(TowerModes()), first, second, third, stage(TowerModes(), adapters="drop"))
    running = tiny_model()
    for step in range(15):
        settled = tiny_model()
        settle_adapters(settled, plans, step)
        shapes = {name: value.shape for name, value in settled.state_dict().items()}
        assert shapes == {name: value.shape for name, value in running.state_dict().items()}, step
        plan = plans[step // 3]
        if step == plan.first_step:
            begin_stage_adapters(running, plan, seed=0)


def test_lora_never_lies_on_the_region_path():
    model = tiny_model()
    everything = LoraOfTowers(vision=Lora(target_modules=".*"), text=Lora(target_modules=".*"))
    begin_stage_adapters(model, plans_of(stage(BOTH, lora=everything))[0], seed=0)
    assert {name.partition(".")[0] for name in adapted_layers(model)} == {"vision_model", "text_model"}
    assert any(re.search(r"fc1", name) for name in adapted_layers(model))
