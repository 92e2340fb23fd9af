"""What a step refuses: a loss or gradients that are not finite, before any weight has moved."""

import pytest
import torch
from accelerate import Accelerator
from tiny_steps import share_of, take_step, tiny_stage


@pytest.fixture(scope="module")
def batches() -> list[dict]:
    return share_of(Accelerator(cpu=True), None)


def test_a_loss_that_is_not_finite_names_step_stage_term_and_samples(batches):
    spoilt = [{**batches[0], "pixel_values": batches[0]["pixel_values"].clone()}]
    spoilt[0]["pixel_values"][7] = torch.nan
    with pytest.raises(ValueError, match=r"step 4 of stage 'all': the loss term image_text is nan") as info:
        take_step(Accelerator(cpu=True), batches=spoilt)
    assert "Samples of the global batch: sample-0, sample-1, " in str(info.value)
    assert "sample-11. Lower the learning rate" in str(info.value)


def test_gradients_that_are_not_finite_move_no_weight(batches, monkeypatch):
    accelerator, moved = Accelerator(cpu=True), []
    monkeypatch.setattr(accelerator, "backward", lambda loss: (loss * torch.inf).backward())
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: moved.append(self))
    with pytest.raises(ValueError, match=r"step 4 of stage 'all': the gradient norm is (nan|inf); it must be finite"):
        take_step(accelerator, batches=batches)
    assert moved == []


def test_the_reported_norms_are_those_before_clipping(batches):
    free, _ = take_step(Accelerator(cpu=True), batches=batches)
    clipped, prepared = take_step(Accelerator(cpu=True), batches=batches, stage=tiny_stage(max_grad_norm=1.0))
    assert clipped.gradient_norm.item() == free.gradient_norm.item() > 10
    left = torch.cat([value.grad.flatten() for _, value in prepared.trained_parameters()]).norm().item()
    assert left == pytest.approx(1.0, rel=1e-4)  # float32
    sum_of_squares = sum(norm.item() ** 2 for norm in clipped.group_norms.values())
    assert sum_of_squares == pytest.approx(clipped.gradient_norm.item() ** 2, rel=1e-5)
