"""Gradient caching: micro-batches give the loss and the gradients of one batch, with every term, under dropout too."""

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_steps import ALL_TERMS, counts_and_losses, gradients_of, relative_difference, share_of, take_step, tiny_stage
from torch import nn

from regionmed_clip.train.gradient_cache import LossInputs, MicroBatchCollator, cached_backward

MEMORY_WORKER = Path(__file__).with_name("memory_worker.py")
RELATIVE = 1e-6  # float32, of the norm of all gradients


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def expect_equal_steps(one_pass, cached) -> None:
    (expected, expected_stage), (found, found_stage) = one_pass, cached
    for term, (loss, *counts) in counts_and_losses(expected).items():
        assert counts_and_losses(found)[term] == [pytest.approx(loss, rel=RELATIVE), *counts]
    assert relative_difference(gradients_of(found_stage), gradients_of(expected_stage)) < RELATIVE
    for name, gradient in gradients_of(expected_stage).items():
        if name.startswith("temperatures."):
            torch.testing.assert_close(gradients_of(found_stage)[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 6])
def test_micro_batches_give_the_gradients_of_one_pass_with_every_term(accelerator, micro_batch_size):
    assert len(share_of(accelerator, micro_batch_size)) == -(-12 // micro_batch_size)
    one_pass = take_step(accelerator)
    assert set(counts_and_losses(one_pass[0])) == set(ALL_TERMS)
    assert all(loss > 0 for loss, *_ in counts_and_losses(one_pass[0]).values())
    expect_equal_steps(one_pass, take_step(accelerator, micro_batch_size))


def test_micro_batches_give_the_gradients_of_one_pass_with_sigmoid_losses_and_a_similarity_filter(accelerator):
    kinds = {"image_text": "sigmoid", "region_text": "sigmoid"}
    stage = tiny_stage(loss_kinds=kinds, similarity_filter=0.9)
    one_pass, cached = take_step(accelerator, stage=stage), take_step(accelerator, 5, stage=stage)
    assert "temperatures.image_text_bias" in gradients_of(one_pass[1])
    expect_equal_steps(one_pass, cached)


def test_a_batch_without_texts_is_cached_too(accelerator):
    stage = tiny_stage(loss_weights={"region_distillation": 1.0, "proposals": 1.0})
    one_pass, cached = take_step(accelerator, stage=stage), take_step(accelerator, 5, stage=stage)
    assert set(counts_and_losses(cached[0])) == {"region_distillation", "proposals"}
    expect_equal_steps(one_pass, cached)


def test_both_passes_draw_the_same_dropout_and_every_micro_batch_its_own(accelerator):
    drawn = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: drawn.append(output) if isinstance(module, nn.Dropout) else None
    )
    try:
        take_step(accelerator, 4, dropout=0.5, batches=[*share_of(accelerator, 4)[:1] * 3])
    finally:
        handle.remove()
    is_zero = [(output == 0).flatten() for output in drawn]
    half = len(is_zero) // 2
    assert all(torch.equal(first, second) for first, second in zip(is_zero[:half], is_zero[half:], strict=True))
    one, two, three = (torch.cat(is_zero[i : i + half // 3]) for i in range(0, half, half // 3))
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)


def test_with_random_numbers_the_cached_gradients_are_those_of_one_graph():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    scale = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def compute(place: int) -> LossInputs:
        torch.manual_seed(place)
        embedded = nn.functional.dropout(rows[2 * place : 2 * place + 2] @ weight, 0.5)
        return LossInputs({"image": embedded}, {"scale": scale.exp()})

    def objective(parts):
        image = torch.cat([part.rows["image"] for part in parts])  # (5, 3)
        loss = (parts[0].shared["scale"] * (image @ image.t())).logsumexp(dim=1).mean()
        return loss, "found"

    micro_batches = [partial(compute, place) for place in range(3)]
    objective([part() for part in micro_batches])[0].backward()
    expected, expected_scale = weight.grad.clone(), scale.grad.clone()
    weight.grad = scale.grad = None
    assert cached_backward(micro_batches, objective, torch.Tensor.backward, nullcontext) == "found"
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=0)  # float64
    torch.testing.assert_close(scale.grad, expected_scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("size", "expected"), [(None, [5]), (8, [5]), (5, [5]), (2, [2, 2, 1])])
def test_a_share_is_cut_into_micro_batches_of_which_the_last_may_be_smaller(size, expected):
    batches = MicroBatchCollator(list, size)(range(5))
    assert [len(batch) for batch in batches] == expected
    assert [sample for batch in batches for sample in batch] == [0, 1, 2, 3, 4]


def test_eight_micro_batches_of_64_take_a_third_of_the_memory_of_512_at_once_and_take_the_same_step():
    def step(micro_batch_size: int) -> list[float]:
        command = [sys.executable, str(MEMORY_WORKER), str(micro_batch_size), "1"]
        return [float(word) for word in subprocess.check_output(command, text=True).split()]

    (whole_mib, *expected), (cached_mib, *found) = step(512), step(64)
    assert cached_mib < whole_mib / 3
    assert found == pytest.approx(expected, rel=1e-5)  # float32, printed with six decimals
