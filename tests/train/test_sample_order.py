"""The order of samples is a pure function of seed, epoch and position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.train.sample_order import (
    BLOCKS_OF_WINDOW,
    ROUND_SIZE,
    BlockOrder,
    MixtureOrder,
    SampleOrder,
    choose_regions,
    largest_remainders,
    rank_positions,
    step_seed,
)


@given(st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_shows_every_sample_once(num_samples, seed):
    order = SampleOrder(num_samples, seed)
    first = order.indices(0, num_samples)
    second = order.indices(num_samples, 2 * num_samples)
    assert sorted(first) == sorted(second) == list(range(num_samples))


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 50))
def test_any_window_equals_the_same_window_of_one_long_read(num_samples, start, length):
    whole = SampleOrder(num_samples, 3).indices(0, start + length)
    assert np.array_equal(SampleOrder(num_samples, 3).indices(start, start + length), whole[start:])


@given(st.integers(0, 20), st.sampled_from([1, 2, 4]))
def test_the_ranks_together_read_the_global_batch_in_order(step, num_processes):
    parts = [rank_positions(8 * step, 8, rank, num_processes) for rank in range(num_processes)]
    assert [position for part in parts for position in part] == list(range(8 * step, 8 * step + 8))


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 10**6))
def test_chosen_regions_are_distinct_sorted_and_as_many_as_allowed(num_regions, max_regions, position):
    chosen = choose_regions(num_regions, max_regions, 0, position)
    assert len(chosen) == min(num_regions, max_regions)
    assert list(chosen) == sorted(set(chosen))
    assert np.array_equal(chosen, choose_regions(num_regions, max_regions, 0, position))


def test_another_position_draws_other_regions():
    assert any(not np.array_equal(choose_regions(50, 5, 0, 0), choose_regions(50, 5, 0, p)) for p in range(1, 5))


def test_every_step_and_rank_draws_random_numbers_of_its_own():
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)} | {step_seed(1, 0, 0)}
    assert len(seeds) == 201


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="has 0 samples; it must have at least one"):
        SampleOrder(0, 0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_of_a_built_corpus_shows_every_sample_once_the_first_in_the_order_of_the_files(sizes, seed, epoch):
    number = sum(sizes)
    found = BlockOrder(sizes, seed).indices(epoch * number, (epoch + 1) * number)
    assert sorted(found) == list(range(number))
    if epoch == 0:
        assert list(found) == list(range(number))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(0, 300), st.integers(0, 60))
def test_any_window_of_a_built_corpus_equals_the_same_window_of_one_long_read(sizes, start, length):
    whole = BlockOrder(sizes, 3).indices(0, start + length)
    assert np.array_equal(BlockOrder(sizes, 3).indices(start, start + length), whole[start:])


def test_later_epochs_of_a_built_corpus_touch_few_blocks_at_a_time_in_orders_of_their_own():
    sizes = [10] * 40
    order = BlockOrder(sizes, seed=1)
    epochs = [order.indices(400 * epoch, 400 * (epoch + 1)) for epoch in (1, 2)]
    assert not np.array_equal(*epochs)
    for found in epochs:
        windows = found.reshape(-1, 10 * BLOCKS_OF_WINDOW) // 10  # the block of each sample
        assert all(len(set(window)) == BLOCKS_OF_WINDOW for window in windows)
        assert len(set(windows[0][:10])) > 1  # samples of several blocks side by side


SETS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4)  # (samples, weight)


@given(SETS, st.integers(0, 2 * ROUND_SIZE), st.integers(0, 300))
def test_any_window_of_a_mixture_equals_the_same_window_of_one_long_read(sets, start, length):
    def order():
        return MixtureOrder([SampleOrder(number, 3) for number, _ in sets], [weight for _, weight in sets], 3)

    whole = order().indices(0, start + length)
    assert np.array_equal(order().indices(start, start + length), whole[start:])


@given(SETS, st.integers(0, 3))
def test_a_mixture_shows_each_part_by_its_weight_and_in_the_order_of_its_own_epochs(sets, seed):
    orders = [SampleOrder(number, seed) for number, _ in sets]
    weights = [weight for _, weight in sets]
    found = MixtureOrder(orders, weights, seed).indices(0, 2 * ROUND_SIZE)
    first = 0
    for (number, weight), order in zip(sets, orders):
        own = found[(found >= first) & (found < first + number)] - first
        assert abs(len(own) / 2 - ROUND_SIZE * weight / sum(weights)) < 1
        assert np.array_equal(own, order.indices(0, len(own)))
        first += number


def test_the_parts_of_a_mixture_are_mixed_anew_in_every_round():
    order = MixtureOrder([SampleOrder(5, 0), SampleOrder(7, 0)], [3, 1], seed=0)
    rounds = [order.indices(ROUND_SIZE * number, ROUND_SIZE * (number + 1)) < 5 for number in range(2)]
    assert [int(is_first.sum()) for is_first in rounds] == [750, 750]
    assert not np.array_equal(*rounds)
    assert 12 <= int(rounds[0][:32].sum()) <= 31  # a batch holds both


def test_a_part_that_would_never_be_shown_is_refused():
    with pytest.raises(ValueError, match=r"part 1 of the mixture has weight 0.0001 of 1.0001, less than one sample"):
        MixtureOrder([SampleOrder(5, 0), SampleOrder(7, 0)], [1, 0.0001], seed=0)


def test_shares_are_rounded_by_largest_remainder():
    assert largest_remainders([1, 1, 1], 1000) == [334, 333, 333]
    assert largest_remainders([2, 1], 1000) == [667, 333]
    assert largest_remainders([0.5], 10) == [10]
