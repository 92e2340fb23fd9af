"""The row of one step: gate mean, gradient norms, learning rates, times; each against a hand sum or torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from tiny_models import tiny_batch, tiny_model

from modeling_regionmed_clip.loss_terms import LossTerm
from regionmed_clip.train import step_rows
from regionmed_clip.train.gradient_norms import clip_gradients
from regionmed_clip.train.recipe_parts import Stage
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.step_rows import GateMeter, StepClock, learning_rates, peak_memory, read_scalars, step_scalars
from regionmed_clip.train.training_step import StepOutcome


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def embed_regions(model, batch) -> None:
    model(pixel_values=batch["pixel_values"], region_boxes=batch["region_boxes"], region_mask=batch["region_mask"])


def gates_by_hand(model, batch) -> list[float]:
    """The mean over channels of every real region's gate, each region embedded alone."""
    found = []
    kept = []
    handle = model.roi_processor.prompter.register_forward_hook(lambda module, inputs, output: kept.append(inputs))
    for image, region in batch["region_mask"].nonzero().tolist():
        box = batch["region_boxes"][image, region].view(1, 1, 4)
        model.get_region_features(batch["pixel_values"][image : image + 1], region_boxes=box)
        patches, boxes, local, grid = kept.pop()
        prompter = model.roi_processor.prompter
        context = local + prompter.box_encoding(boxes)
        keys = patches + prompter.patch_encoding(step_rows_patch_boxes(grid))[None]
        for block in prompter.blocks:
            context = block(context, keys, patches)
        weight, bias = prompter.gate.weight, prompter.gate.bias
        logits = torch.cat([local, context], dim=-1) @ weight.T + bias
        found.append((1 / (1 + torch.exp(-logits))).mean().item())
    handle.remove()
    return found


def step_rows_patch_boxes(grid):
    rows, columns = grid
    return torch.tensor(
        [[x / columns, y / rows, (x + 1) / columns, (y + 1) / rows] for y in range(rows) for x in range(columns)]
    )


def test_the_gate_mean_is_that_of_the_real_regions_over_all_passes_of_a_step(accelerator):
    model, batch, meter = tiny_model().train(), tiny_batch(), GateMeter()
    with torch.no_grad():
        gates = gates_by_hand(model, batch)
        assert len(gates) == 3  # two real regions in the first image, one in the second
        with meter.listening(model):
            for rows in (slice(0, 1), slice(1, 3)):  # two micro-batches
                embed_regions(model, {name: value[rows] for name, value in batch.items() if len(value) == 3})
            mean = meter.take(accelerator)
    assert mean.item() == pytest.approx(sum(gates) / 3, abs=1e-6)  # float32
    assert meter.take(accelerator) is None  # each step begins anew


def test_the_gate_is_heard_only_in_training_and_while_listening_and_the_model_is_left_as_it_was(accelerator):
    model, batch, meter = tiny_model().train(), tiny_batch(), GateMeter()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), meter.listening(model):
        model.eval()
        embed_regions(model, batch)
        model.train()
        model.get_dense_features(batch["pixel_values"])  # every patch a region of its own
        assert meter.take(accelerator) is None
    embed_regions(model, batch)
    assert meter.take(accelerator) is None
    assert not model.roi_processor._forward_pre_hooks
    assert not model.roi_processor.prompter.gate._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_listening_changes_no_gradient(accelerator):
    def gradients(is_listening):
        model, batch = tiny_model().train(), tiny_batch()
        meter = GateMeter()
        if is_listening:
            with meter.listening(model):
                model(**batch, return_loss=True).loss.backward()
        else:
            model(**batch, return_loss=True).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(one, two) for one, two in zip(gradients(True), gradients(False)))


def test_a_model_without_a_gate_has_no_gate_mean(accelerator):
    model, meter = tiny_model(roi_mode="maskpool").train(), GateMeter()
    with meter.listening(model):
        embed_regions(model, tiny_batch())
    assert meter.take(accelerator) is None


def test_clipping_is_that_of_torch_and_the_groups_add_up_to_the_total():
    model, other = tiny_model(), tiny_model()
    for each in (model, other):
        each(**tiny_batch(), return_loss=True).loss.backward()
    norms = clip_gradients(model.named_parameters(), max_norm=0.5)
    total = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    assert total > 0.5
    assert torch.equal(norms.total, total)
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.equal(one.grad, two.grad)
    assert set(norms.by_group) == {"vision", "text", "projections", "roi", "temperatures"}
    assert math.hypot(*map(float, norms.by_group.values())) == pytest.approx(total.item(), rel=1e-6)  # float32


def test_the_norm_of_a_group_is_that_of_its_gradients_before_clipping():
    model = tiny_model()
    model.visual_projection.weight.grad = torch.full_like(model.visual_projection.weight, 3.0)
    model.text_projection.weight.grad = torch.full_like(model.text_projection.weight, 4.0)
    model.region_fusion.alpha.grad = torch.tensor([-2.0])
    norms = clip_gradients(model.named_parameters(), max_norm=1.0)
    num_weights = model.visual_projection.weight.numel()  # as many as those of the text projection
    assert {group: norm.item() for group, norm in norms.by_group.items()} == pytest.approx(
        {"projections": 5 * num_weights**0.5, "roi": 2.0}
    )


def test_scalars_of_a_step_come_as_numbers_of_their_kind():
    model = tiny_model(logit_bias_init_value=-3.0)
    count = torch.tensor(2**24 + 1)  # more than float32 tells apart
    term = LossTerm(torch.tensor(0.5), torch.tensor(3), count, torch.tensor(0))
    outcome = StepOutcome(
        {"image_text": term, "proposals": term}, torch.tensor(1.5), torch.tensor(2.0), {"roi": torch.tensor(1.0)}
    )
    row = read_scalars(step_scalars(model, outcome, torch.tensor(float("nan"))))
    assert row["num_negatives_image_text"] == 2**24 + 1
    assert isinstance(row["num_masked_proposals"], int)
    assert row["gate_mean"] is None  # a step whose images all were without regions
    assert (row["loss"], row["grad_norm"], row["grad_norm_roi"], row["loss_proposals"]) == (1.5, 2.0, 1.0, 0.5)
    assert row["logit_bias_image_text"] == -3.0
    assert row["logit_scale_image_text"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert "logit_scale_proposals" not in row
    assert row["fusion_alpha"] == 0.0
    assert read_scalars({"loss": torch.tensor(1.0)}, is_needed=False) == {}


def plan(**changes) -> StagePlan:
    return StagePlan(0, Stage(steps=4, global_batch_size=2, **changes), 0, 0)


def optimizer_of(rates: dict[str, float]) -> torch.optim.Optimizer:
    groups = [
        {"name": name, "lr": rate, "params": [torch.nn.Parameter(torch.zeros(1))]} for name, rate in rates.items()
    ]
    return torch.optim.AdamW(groups)


def test_rates_of_groups_are_told_where_they_differ():
    same = optimizer_of({"vision": 0.5, "text": 0.5})
    assert learning_rates(same, plan()) == {"lr": 0.5}
    differing = optimizer_of({"vision": 0.1, "text": 0.5})
    told = {"lr": 0.5, "lr_vision": 0.1, "lr_text": 0.5}
    assert learning_rates(differing, plan(learning_rates={"vision": 0.1})) == told


def test_a_step_lasts_from_asking_for_its_batch_and_pauses_between_steps_do_not_count(monkeypatch):
    now = 0.0
    monkeypatch.setattr(step_rows.time, "monotonic", lambda: now)
    clock = StepClock()

    def batches():
        nonlocal now
        for name in ("a", "b"):
            now += 1.0  # a second to make each batch
            yield name

    read = []
    for _ in clock.timed(batches()):
        now += 3.0  # the step
        read.append(clock.read())
        now += 100.0  # a validation
    assert read == [(4.0, 0.25), (4.0, 0.25)]


def test_the_peak_of_memory_is_told_on_a_gpu_alone(monkeypatch):
    assert peak_memory(torch.device("cpu")) == {}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 19)
    assert peak_memory(torch.device("cuda")) == {"peak_memory_mib": 1.5}
