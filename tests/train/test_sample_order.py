"""The order of samples is a pure function of seed, epoch and position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.train.sample_order import SampleOrder, choose_regions, rank_positions, step_seed


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
    parts = [rank_positions(step, 8, rank, num_processes) for rank in range(num_processes)]
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
