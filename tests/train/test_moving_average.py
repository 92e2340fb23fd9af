"""The moving average of the trained weights: its sums, its warm-up, and coming back bit-equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.train.moving_average import MovingAverage, decay_at, load_average_into


class TwoParts(torch.nn.Module):
    """A trained weight, a frozen one and a buffer that moves."""

    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.frozen = torch.nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.register_buffer("running", torch.tensor([0.0]))
        self.register_buffer("positions", torch.arange(3))
        self.register_buffer("scratch", torch.tensor([7.0]), persistent=False)


def test_the_average_begins_at_the_weights_and_follows_by_hand_worked_shares():
    model = TwoParts()
    average = MovingAverage(model, decay=0.15)
    assert torch.equal(average.state()["trained"], torch.tensor([1.0, -2.0]))
    with torch.no_grad():
        model.trained.copy_(torch.tensor([2.0, 0.0]))
    average.update()  # d = min(0.15, 1 / 10) = 0.1: 1 + 0.9 * (2 - 1), -2 + 0.9 * (0 + 2)
    torch.testing.assert_close(average.state()["trained"], torch.tensor([1.9, -0.2]), atol=1e-6, rtol=0)  # float32
    with torch.no_grad():
        model.trained.copy_(torch.tensor([3.0, 1.0]))
    average.update()  # d = min(0.15, 2 / 11) = 0.15: 1.9 + 0.85 * 1.1, -0.2 + 0.85 * 1.2
    torch.testing.assert_close(average.state()["trained"], torch.tensor([2.835, 0.82]), atol=1e-6, rtol=0)


def test_what_moves_is_averaged_and_nothing_else():
    assert set(MovingAverage(TwoParts(), 0.9).state()) == {"trained", "running"}


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), decay=st.floats(0.01, 0.999))
def test_the_average_is_the_weighted_sum_of_all_weights_so_far(values, decay):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 4.0)
    average = MovingAverage(model, decay)
    shares = [1.0]  # of the first weights and of each later one, in float64
    for n, value in enumerate(values):
        torch.nn.init.constant_(model.weight, value)
        average.update()
        kept = min(decay, (1 + n) / (10 + n))
        shares = [share * kept for share in shares] + [1 - kept]
    expected = sum(share * value for share, value in zip(shares, [4.0, *values]))
    assert average.state()["weight"].item() == pytest.approx(expected, abs=1e-4)  # float32 over 30 updates of up to 10


def test_the_warm_up_ends_at_the_decay_of_the_recipe():
    shares = [decay_at(0.99, n) for n in range(2000)]
    assert shares[0] == 0.1
    assert shares == sorted(shares)
    assert shares.index(0.99) == 890  # (1 + n) / (10 + n) = 0.99 at n = 890


def test_it_stays_in_float32_over_weights_of_bfloat16():
    model = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, decay=0.5)
    torch.nn.init.constant_(model.weight, 1.0078125)  # the next number of bfloat16
    average.update()
    assert average.state()["weight"].dtype == torch.float32
    torch.testing.assert_close(average.state()["weight"], torch.full((1, 2), 1.00703125), atol=1e-7, rtol=0)


def test_the_model_has_the_average_inside_the_block_and_its_own_bits_after_it():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    average = MovingAverage(model, decay=0.9)
    torch.nn.init.normal_(model.weight)
    average.update()
    own = model.weight.detach().clone()
    with average.applied():
        assert torch.equal(model.weight, average.state()["weight"])
        assert not torch.equal(model.weight, own)
    assert torch.equal(model.weight, own)
    with pytest.raises(RuntimeError, match="in the block"), average.applied():
        raise RuntimeError("in the block")
    assert torch.equal(model.weight, own)


def test_an_average_that_was_saved_goes_on_bit_equal():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    undisturbed = MovingAverage(model, decay=0.9)
    weights = [torch.randn(3, 3) for _ in range(8)]
    for number, weight in enumerate(weights):
        if number == 5:
            resumed = MovingAverage(model, decay=0.9)
            resumed.load({name: tensor.clone() for name, tensor in undisturbed.state().items()}, num_updates=5)
        with torch.no_grad():
            model.weight.copy_(weight)
        undisturbed.update()
        if number >= 5:
            resumed.update()
    assert torch.equal(resumed.state()["weight"], undisturbed.state()["weight"])
    assert resumed.num_updates == undisturbed.num_updates == 8


def test_an_average_of_other_tensors_is_refused():
    average = MovingAverage(torch.nn.Linear(2, 2), decay=0.9)
    with pytest.raises(ValueError, match="of other tensors than the stage trains, for instance bias, lora_A"):
        average.load({"weight": torch.zeros(2, 2), "lora_A": torch.zeros(1, 2)}, num_updates=1)


def test_an_average_can_be_given_to_a_model_that_trains_nothing():
    model = TwoParts().requires_grad_(False)
    load_average_into(model, {"trained": torch.tensor([3.0, 4.0]), "running": torch.tensor([1.0])})
    assert torch.equal(model.trained, torch.tensor([3.0, 4.0]))
    assert torch.equal(model.running, torch.tensor([1.0]))
    assert torch.equal(model.frozen, torch.tensor([5.0]))
