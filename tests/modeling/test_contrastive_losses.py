"""InfoNCE, the sigmoid loss and the choice among hard negatives: value and gradient against plain loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contrastive_reference import Case, info_nce_by_loops, random_case, relations, sigmoid_by_loops
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_regionmed_clip.contrastive_losses import (
    BLOCK_ROWS,
    blocked_info_nce,
    blocked_sigmoid,
    hard_negative_loss,
    info_nce_loss,
    sigmoid_loss,
    whole_info_nce,
    whole_sigmoid,
)
from modeling_regionmed_clip.contrastive_pairs import PairRules
from modeling_regionmed_clip.loss_terms import LossTerm

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}
FORMS: dict[str, Callable[[Case], LossTerm]] = {
    "info_nce, whole": lambda case: whole_info_nce(case.rows, case.candidates, case.rules, case.scale),
    "info_nce, blocks of 3": lambda case: blocked_info_nce(case.rows, case.candidates, case.rules, case.scale, 3),
    "info_nce, one block": lambda case: blocked_info_nce(case.rows, case.candidates, case.rules, case.scale),
    "sigmoid, whole": lambda case: whole_sigmoid(case.rows, case.candidates, case.rules, case.scale, case.bias),
    "sigmoid, blocks of 3": lambda case: blocked_sigmoid(
        case.rows, case.candidates, case.rules, case.scale, case.bias, 3
    ),
    "sigmoid, one block": lambda case: blocked_sigmoid(case.rows, case.candidates, case.rules, case.scale, case.bias),
}
SHAPES = {"square": (7, 7), "wide": (5, 12), "tall": (11, 2), "one row": (1, 6), "one candidate": (6, 1)}
EMPTY = PairRules(torch.tensor([[1], [2], [3]]), torch.tensor([8, 9]))  # nobody's text is among the candidates


def by_loops(name: str, case: Case) -> Tensor:
    found = relations(case.rules)
    if name.startswith("info_nce"):
        return info_nce_by_loops(case.rows, case.candidates, found, case.scale)
    return sigmoid_by_loops(case.rows, case.candidates, found, case.scale, case.bias)


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    inputs = (case.rows, case.candidates, case.scale, case.bias)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(value) if gradient is None else gradient for value, gradient in zip(inputs, found)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_those_of_plain_loops(form, shape):
    for seed in range(3):
        case = random_case(seed, *shape)
        found, expected = FORMS[form](case).loss, by_loops(form, case)
        torch.testing.assert_close(found, expected, **FLOAT64)
        for one, other in zip(gradients(3.0 * found, case), gradients(3.0 * expected, case)):
            torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_masked_gives_the_same_as_plain_loops(form):
    case = random_case(5, masks=False, facts=False, negatives=False, filtered=False)
    case.rules.row_keys = case.rules.row_keys[:, :1]  # one own text each, the common case
    term, expected = FORMS[form](case), by_loops(form, case)
    torch.testing.assert_close(term.loss, expected, **FLOAT64)
    assert int(term.num_masked) == 0
    assert int(term.num_positives + term.num_negatives) == 7 * 9
    for one, other in zip(gradients(term.loss, case), gradients(expected, case)):
        torch.testing.assert_close(one, other, **FLOAT64)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from(["info_nce", "sigmoid"]))
def test_blocks_of_any_size_give_the_counts_and_the_loss_of_the_whole(seed, size, kind):
    case = random_case(seed)
    inputs = (case.rows, case.candidates, case.rules, case.scale)
    if kind == "info_nce":
        whole, blocked = whole_info_nce(*inputs), blocked_info_nce(*inputs, size)
    else:
        whole, blocked = whole_sigmoid(*inputs, case.bias), blocked_sigmoid(*inputs, case.bias, size)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(blocked, name), value, **FLOAT64)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.permutations(range(7)), st.sampled_from(list(FORMS)))
def test_the_order_of_the_rows_does_not_matter(seed, order, form):
    case = random_case(seed)
    names = ("row_keys", "row_mask", "row_facts", "row_negative_keys")
    rules = replace(case.rules, **{name: getattr(case.rules, name)[order] for name in names})
    permuted = replace(case, rows=case.rows[order], rules=rules)
    torch.testing.assert_close(FORMS[form](permuted).loss, FORMS[form](case).loss, **FLOAT64)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(list(FORMS)))
def test_a_candidate_that_is_masked_for_everyone_changes_nothing(seed, form):
    case = random_case(seed, masks=False, facts=False, filtered=False)
    more = torch.cat([case.candidates, normalize(torch.ones(1, 4, dtype=torch.float64), dim=-1)])
    unstated = torch.cat([case.rules.candidate_is_stated, torch.tensor([False])])
    keys = torch.cat([case.rules.candidate_keys, torch.tensor([99])])  # a hard negative of no row here
    rules = replace(case.rules, candidate_keys=keys, candidate_is_stated=unstated)
    plain, wider = FORMS[form](case), FORMS[form](replace(case, candidates=more, rules=rules))
    torch.testing.assert_close(wider.loss, plain.loss, **FLOAT64)
    assert int(wider.num_masked - plain.num_masked) == 7
    assert (int(wider.num_positives), int(wider.num_negatives)) == (int(plain.num_positives), int(plain.num_negatives))


@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("info_nce")])
def test_without_a_positive_info_nce_is_exactly_zero_and_has_a_gradient(form):
    case = replace(random_case(0, 3, 2), rules=EMPTY)
    term = FORMS[form](case)
    assert term.loss.item() == 0.0
    term.loss.backward()
    for value in (case.rows, case.candidates, case.scale):
        assert torch.equal(value.grad, torch.zeros_like(value))
    assert (int(term.num_positives), int(term.num_negatives)) == (0, 6)


@pytest.mark.parametrize("form", FORMS)
def test_where_nobody_takes_part_the_loss_is_exactly_zero_and_has_a_gradient(form):
    case = replace(random_case(0, 3, 2), rules=replace(EMPTY, row_mask=torch.zeros(3, dtype=torch.bool)))
    term = FORMS[form](case)
    term.loss.backward()
    assert term.loss.item() == 0.0
    assert torch.equal(case.rows.grad, torch.zeros_like(case.rows))
    assert [int(count) for count in (term.num_positives, term.num_negatives, term.num_masked)] == [0, 0, 0]


def unit(num_rows: int, seed: int, width: int = 16) -> Tensor:
    return normalize(torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
def test_sharp_temperatures_overflow_nowhere(form, scale):
    """A text far from all rows of one block, and near one of another: its sum begins with nothing."""
    rows = torch.cat([-unit(8, 0)[:1].expand(6, -1), unit(8, 0)[:1]]).double().requires_grad_()
    rules = PairRules(torch.arange(7)[:, None], torch.tensor([6, 0]))
    candidates = torch.stack([unit(8, 0)[0], unit(8, 1)[0]]).double().requires_grad_()
    scales = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (scale, -10.0)]
    case = Case(rows, candidates, rules, *scales)
    found, expected = FORMS[form](case).loss, by_loops(form, case)
    torch.testing.assert_close(found, expected, **FLOAT64)
    for one, other in zip(gradients(found, case), gradients(expected, case)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_float32_keeps_a_small_loss_to_the_last_digits(form):
    """Rows and texts nearly equal at scale 100: the loss is about 1e-4, the logits about 100."""
    rows = unit(20, 0, 64)
    candidates = normalize(rows + 0.02 * unit(20, 1, 64), dim=-1)
    rules = PairRules(torch.arange(20)[:, None], torch.arange(20))
    numbers = (torch.tensor([60.0]), torch.tensor([-40.0]))
    single = Case(rows, candidates, rules, *numbers)
    double = Case(rows.double(), candidates.double(), rules, *(number.double() for number in numbers))
    torch.testing.assert_close(FORMS[form](single).loss.double(), by_loops(form, double), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_give_the_float32_loss_of_their_values(form):
    case = random_case(2)
    half = [value.detach().to(torch.bfloat16).requires_grad_() for value in (case.rows, case.candidates)]
    full = [value.detach().float().requires_grad_() for value in half]
    rules = replace(case.rules, least_similarity=None)
    scales = [value.detach().float().requires_grad_() for value in (case.scale, case.bias)]
    found, expected = (FORMS[form](Case(*inputs, rules, *scales)).loss for inputs in (half, full))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    for one, other in zip(torch.autograd.grad(found, half), torch.autograd.grad(expected, full)):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=2**-8, atol=1e-6)  # bfloat16 has 8 bits


@pytest.mark.parametrize("form", FORMS)
def test_autocast_lowers_nothing(form):
    case = random_case(4)
    single = Case(
        *(value.detach().float().requires_grad_() for value in (case.rows, case.candidates)),
        case.rules,
        *(value.detach().float().requires_grad_() for value in (case.scale, case.bias)),
    )
    expected = FORMS[form](single).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FORMS[form](single).loss
        assert torch.equal(found, expected)
        for one, other in zip(gradients(found, single), gradients(expected, single)):
            assert torch.equal(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_without_gradients_the_loss_is_the_same(form):
    case = random_case(6)
    expected = FORMS[form](case).loss
    with torch.no_grad():
        found = FORMS[form](case).loss
    assert torch.equal(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, at a graph break
@pytest.mark.parametrize("form", ["info_nce, whole", "info_nce, one block", "sigmoid, one block"])
def test_it_works_in_a_compiled_step(form):
    case = random_case(6, facts=False, filtered=False)
    expected = FORMS[form](case).loss
    torch.compiler.reset()
    compiled = torch.compile(lambda rows: 2 * FORMS[form](replace(case, rows=rows)).loss + rows.sum(), backend="eager")
    found = compiled(case.rows)
    torch.testing.assert_close(found, 2 * expected + case.rows.sum(), **FLOAT64)
    (gradient,) = torch.autograd.grad(found, case.rows)
    torch.testing.assert_close(gradient, 2 * gradients(expected, case)[0] + 1, **FLOAT64)


class _LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation gives."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


@pytest.mark.parametrize("loss", [info_nce_loss, lambda *inputs: sigmoid_loss(*inputs, torch.zeros(1))])
@pytest.mark.parametrize(("num_rows", "num_kept"), [(1024, 1024), (1100, BLOCK_ROWS)])
def test_large_products_are_never_in_memory_whole(loss, num_rows, num_kept):
    rows, candidates, keys = unit(num_rows, 0).requires_grad_(), unit(num_rows, 1), torch.arange(num_rows)
    rules = PairRules(keys[:, None], keys, row_mask=keys > 2)
    with _LargestTensor() as largest:
        loss(rows, candidates, rules, torch.ones(1)).loss.backward()
    assert largest.num_elements == num_kept * num_rows


def test_the_choice_among_hard_negatives_by_hand():
    cosines = torch.tensor([[0.5, 0.5, -9.0], [1.0, 0.0, 0.0], [0.3, 0.9, 0.9], [0.7, 0.1, 0.2]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [False, True, True]])
    term = hard_negative_loss(cosines, mask, torch.tensor([2.0]))  # the third has no negative, the fourth no text
    expected = (math.log(2) + math.log(1 + 2 * math.exp(-2))) / 2
    assert term.loss.item() == pytest.approx(expected, abs=1e-6)  # float32
    assert [int(count) for count in (term.num_positives, term.num_negatives, term.num_masked)] == [2, 3, 0]
    term.loss.backward()
    assert torch.equal(cosines.grad[2:], torch.zeros(2, 3))
    torch.testing.assert_close(cosines.grad[0], torch.tensor([-0.5, 0.5, 0.0]))  # scale / regions * (softmax - one)


def test_a_choice_of_no_region_is_zero_with_a_gradient():
    cosines = torch.rand(3, 2, requires_grad=True)
    term = hard_negative_loss(cosines, torch.tensor([[True, False]] * 3), torch.ones(1))
    term.loss.backward()
    assert term.loss.item() == 0
    assert torch.equal(cosines.grad, torch.zeros(3, 2))
