"""Which pairs are positive, negative or neither, against plain loops and by properties."""

from dataclasses import replace

import pytest
import torch
from contrastive_reference import ABSENT, MASKED, NEGATIVE, POSITIVE, random_case, relations, says_less
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_regionmed_clip import contrastive_pairs
from modeling_regionmed_clip.contrastive_pairs import PairRules

SEEDS, FLAGS = st.integers(0, 10_000), st.booleans()
SHADOW, LEFT, BIG, RIGHT = 11, 22, 33, 44  # values of the attributes finding, side, size


def codes(rules: PairRules, start: int = 0, stop: int | None = None) -> list[list[int | None]]:
    """What `relations` says, from the blocks; a pair that is not taken is masked or absent."""
    positive, taken = rules.block(start, rules.shape[0] if stop is None else stop)
    taken = torch.ones_like(positive) if taken is None else taken
    assert not (positive & ~taken).any()
    return torch.where(positive, POSITIVE, torch.where(taken, NEGATIVE, MASKED)).tolist()


def as_masked(found: list[list[int | None]]) -> list[list[int]]:
    return [[MASKED if value is ABSENT else value for value in line] for line in found]


@settings(max_examples=60)
@given(SEEDS, FLAGS, FLAGS, FLAGS, FLAGS)
def test_the_pairs_are_those_of_plain_loops(seed, masks, facts, negatives, filtered):
    rules = random_case(seed, masks=masks, facts=facts, negatives=negatives, filtered=filtered).rules
    assert codes(rules) == as_masked(relations(rules))


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 7))
def test_blocks_of_any_size_give_the_same_pairs(seed, size):
    rules = random_case(seed).rules
    parts = [codes(rules, start, min(start + size, 7)) for start in range(0, 7, size)]
    assert [line for part in parts for line in part] == codes(rules)


def test_little_working_memory_gives_the_same_pairs(monkeypatch):
    rules = random_case(3, num_rows=40, num_candidates=30).rules
    expected = codes(rules)
    monkeypatch.setattr(contrastive_pairs, "_LARGEST_WORK", 200)  # a row at a time
    monkeypatch.setattr(contrastive_pairs, "_SIMILARITY_CHUNK", 2)
    again = replace(rules)
    assert codes(again) == expected
    assert {value for line in expected for value in line} == {POSITIVE, NEGATIVE, MASKED}


@settings(max_examples=20)
@given(SEEDS, FLAGS)
def test_all_pairs_of_rows_and_candidates_that_take_part_are_counted_once(seed, facts):
    rules = random_case(seed, facts=facts).rules
    positive, taken = rules.block(0, 7)
    found = [value for line in relations(rules) for value in line]
    expected = [found.count(value) for value in (POSITIVE, NEGATIVE, MASKED)]
    assert [int(count) for count in rules.counts(positive.sum(), taken)] == expected


def one_row(own: list[list[int]], candidate: list[list[int]], **changes) -> int:
    """The relation of a row with the own text `own` to a candidate of another key; texts as lists of statements."""
    rules = PairRules(
        row_keys=torch.tensor([[1]]),
        candidate_keys=torch.tensor([2]),
        row_facts=torch.tensor([[own]]),
        candidate_facts=torch.tensor([candidate]),
    )
    return codes(replace(rules, **changes))[0][0]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ([[SHADOW, 0, 0]], [[SHADOW, LEFT, 0]]),
        ([[SHADOW, 0, 0]], [[SHADOW, LEFT, BIG]]),
        ([[SHADOW, 0, 0], [0, 0, 0]], [[SHADOW, LEFT, 0], [BIG, LEFT, 0]]),  # one statement less
        ([[0, LEFT, 0], [0, 0, BIG]], [[SHADOW, LEFT, BIG], [0, 0, 0]]),  # both in the one statement
        ([[SHADOW, LEFT, 0]], [[SHADOW, LEFT, 0]]),  # the same facts in a text of another key
    ],
)
def test_a_text_that_says_less_is_masked_in_both_directions(less, more):
    assert one_row(less, more) == one_row(more, less) == MASKED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[SHADOW, LEFT, 0]], [[SHADOW, RIGHT, 0]]),  # they contradict each other
        ([[SHADOW, LEFT, 0]], [[SHADOW, 0, BIG]]),  # each says something that the other leaves open
        ([[SHADOW, LEFT, 0]], [[SHADOW, 0, 0], [BIG, LEFT, 0]]),  # of two statements each agrees in part
        ([[0, 0, 0]], [[SHADOW, LEFT, 0]]),  # of the first nothing is known
        ([[0, LEFT, SHADOW]], [[SHADOW, LEFT, 0]]),  # equal values of other attributes
    ],
)
def test_texts_that_differ_otherwise_are_negatives_of_each_other(first, second):
    assert one_row(first, second) == one_row(second, first) == NEGATIVE


@pytest.mark.parametrize("which", ["row_facts", "candidate_facts"])
def test_a_batch_in_which_no_text_has_a_statement_has_no_relations(which):
    rules = random_case(0, negatives=False, filtered=False).rules
    facts = getattr(rules, which)
    without = replace(rules, **{which: facts[..., :0, :]})
    assert codes(without) == codes(replace(rules, row_facts=None, candidate_facts=None))


def test_an_own_negative_is_negative_whatever_its_facts_and_likeness_say():
    less, more = [[SHADOW, 0, 0]], [[SHADOW, LEFT, 0]]
    named = {"row_negative_keys": torch.tensor([[2]]), "candidate_is_stated": torch.tensor([False])}
    assert one_row(less, more, **named) == NEGATIVE
    assert one_row(less, more, **named, least_similarity=-1.0, candidate_embeds=torch.ones(1, 1)) == NEGATIVE


def test_a_hard_negative_of_another_row_is_masked_unless_some_row_states_it():
    rules = PairRules(
        row_keys=torch.tensor([[1], [2]]),
        candidate_keys=torch.tensor([1, 2, 9]),
        row_negative_keys=torch.tensor([[9], [-1]]),
        candidate_is_stated=torch.tensor([True, True, False]),
    )
    assert codes(rules) == [[POSITIVE, NEGATIVE, NEGATIVE], [NEGATIVE, POSITIVE, MASKED]]


def test_a_row_without_a_text_is_positive_with_no_placeholder():
    rules = PairRules(torch.tensor([[-1, 5]]), torch.tensor([-1, 5]), row_negative_keys=torch.tensor([[-1]]),
                      candidate_is_stated=torch.tensor([True, True]))  # fmt: skip
    assert codes(rules) == [[NEGATIVE, POSITIVE]]


def test_the_filter_masks_what_resembles_an_own_text_and_nothing_else():
    embeds = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.0, 1.0]])  # cosines with the first: 1, 0.9, 0
    rules = PairRules(torch.tensor([[1], [3]]), torch.tensor([1, 2, 3]), least_similarity=0.8, candidate_embeds=embeds)
    assert codes(rules) == [[POSITIVE, MASKED, NEGATIVE], [NEGATIVE, NEGATIVE, POSITIVE]]


@settings(max_examples=20)
@given(SEEDS, st.permutations(range(7)), st.permutations(range(9)))
def test_the_order_of_rows_and_candidates_does_not_matter(seed, row_order, candidate_order):
    rules = random_case(seed).rules
    expected = torch.tensor(codes(rules))[row_order][:, candidate_order]
    by_row = {name: getattr(rules, name)[row_order] for name in ("row_keys", "row_mask", "row_facts")}
    by_row["row_negative_keys"] = rules.row_negative_keys[row_order]
    names = ("candidate_keys", "candidate_mask", "candidate_facts", "candidate_is_stated", "candidate_embeds")
    by_candidate = {name: getattr(rules, name)[candidate_order] for name in names}
    assert codes(replace(rules, **by_row, **by_candidate)) == expected.tolist()


@settings(max_examples=20)
@given(SEEDS)
def test_equal_keys_are_never_negative_or_masked(seed):
    rules = random_case(seed, masks=False).rules
    found = codes(rules)
    for own, line in zip(rules.row_keys.tolist(), found):
        for key, value in zip(rules.candidate_keys.tolist(), line):
            assert (value == POSITIVE) == (key in own and key != -1)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=3))
def test_a_text_says_no_more_than_itself_with_a_statement_added(statements):
    """Of the reference, by which the code is measured."""
    if any(any(statement) for statement in statements):
        assert says_less(statements, [*statements, [1, 1]])
    else:
        assert not says_less(statements, [*statements, [1, 1]])
