"""The contrastive losses against other formulas and hand sums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from modeling_regionmed_clip.loss_regionmed_clip import (
    contrastive_terms,
    first_occurrence_mask,
    keys_at,
    multi_positive_info_nce,
    region_distillation_loss,
)

ONE = torch.ones(1)


def unit_rows(num_rows: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_distinct_keys_give_the_loss_of_clip():
    images, texts, keys = unit_rows(5, 0), unit_rows(5, 1), torch.arange(5)
    logits = 10 * images @ texts.t()
    expected = (functional.cross_entropy(logits, keys) + functional.cross_entropy(logits.t(), keys)) / 2
    term = multi_positive_info_nce(images, texts, keys, keys, 10 * ONE)
    torch.testing.assert_close(term.loss, expected, atol=1e-6, rtol=0)
    assert (int(term.num_positives), int(term.num_negatives)) == (5, 20)


def test_two_images_of_one_text_share_it_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0]])
    # One column: log softmax over it is 0. Text to image: logits (1, 0), both positive.
    to_image = -0.5 * sum(value - math.log(math.e + 1) for value in (1.0, 0.0))
    term = multi_positive_info_nce(images, texts, torch.tensor([7, 7]), torch.tensor([7]), ONE)
    assert term.loss.item() == pytest.approx((0.0 + to_image) / 2, abs=1e-6)


def test_a_masked_row_and_column_change_nothing():
    images, texts, keys = unit_rows(4, 0), unit_rows(4, 1), torch.arange(4)
    plain = multi_positive_info_nce(images[:3], texts[:3], keys[:3], keys[:3], ONE)
    mask = torch.tensor([True, True, True, False])
    masked = multi_positive_info_nce(images, texts, keys, keys, ONE, mask, mask)
    torch.testing.assert_close(masked.loss, plain.loss, atol=1e-6, rtol=0)
    assert (masked.num_positives, masked.num_negatives) == (plain.num_positives, plain.num_negatives)


def test_a_batch_without_positives_has_zero_loss_and_a_finite_gradient():
    images = unit_rows(3, 0).requires_grad_()
    nobody = torch.zeros(3, dtype=torch.bool)
    term = multi_positive_info_nce(images, unit_rows(2, 1), torch.arange(3), torch.tensor([8, 9]), ONE, nobody)
    term.loss.backward()
    assert term.loss.item() == 0.0
    assert torch.equal(images.grad, torch.zeros_like(images))


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_first_occurrences_are_those_of_a_python_set(values, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    seen, expected = set(), []
    for value, is_taken in zip(values, mask):
        expected.append(is_taken and value not in seen)
        seen |= {value} if is_taken else set()
    found = first_occurrence_mask(torch.tensor(values, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool))
    assert found.tolist() == expected


def test_repeating_a_text_does_not_change_the_loss_once_it_is_counted_once():
    images, texts = unit_rows(3, 0), unit_rows(2, 1)
    keys, text_keys = torch.tensor([5, 6, 6]), torch.tensor([5, 6])
    once = multi_positive_info_nce(images, texts, keys, text_keys, ONE)
    repeated_keys = torch.tensor([5, 6, 5, 6])
    first = first_occurrence_mask(repeated_keys)
    repeated = multi_positive_info_nce(images, texts.repeat(2, 1), keys, repeated_keys, ONE, candidate_mask=first)
    torch.testing.assert_close(repeated.loss, once.loss, atol=1e-6, rtol=0)


def test_an_image_is_drawn_to_the_texts_of_all_its_regions_by_hand():
    embeddings = {
        "image": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "image_keys": torch.tensor([5, 6]),
        "image_region_keys": torch.tensor([[7, 8], [-1, -1]]),  # the second image has no region, but a caption
        "region_text": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        "region_text_keys": torch.tensor([7, 8, -1]),  # the third is a placeholder
        "region_text_mask": torch.tensor([True, True, False]),
    }
    term = contrastive_terms(embeddings, {"image_region_text": ONE}, ("image_region_text",))["image_region_text"]
    to_text = -0.5 * sum(value - math.log(math.e + 1) for value in (1.0, 0.0))  # the first image's two positives
    to_image = -0.5 * ((1.0 - math.log(math.e + 1)) + (0.0 - math.log(math.e + 1)))
    assert term.loss.item() == pytest.approx((to_text + to_image) / 2, abs=1e-6)
    assert (int(term.num_positives), int(term.num_negatives)) == (2, 2)


def test_regions_without_text_get_no_key():
    keys = keys_at(torch.tensor([31, 32]), torch.tensor([[1, -1], [0, 1]]))
    assert keys.tolist() == [[32, -1], [31, 32]]


def test_distillation_is_one_minus_the_cosine_averaged_over_the_real_regions_by_hand():
    student = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [5.0, 5.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    term = region_distillation_loss(student, teacher, mask)
    assert term.loss.item() == pytest.approx((0.0 + 1.0 + (1 - 0.5**0.5)) / 3, abs=1e-6)  # float32
    assert (int(term.num_positives), int(term.num_negatives)) == (3, 0)
    term.loss.backward()
    assert teacher.grad is None
    assert torch.equal(student.grad[1, 1], torch.zeros(2))
    torch.testing.assert_close(student.grad[0, 1], torch.tensor([-1 / 6, 0.0]), atol=1e-6, rtol=0)  # -(1/3) / |student|


def test_distillation_of_no_region_is_zero_with_a_gradient():
    student = torch.ones(1, 2, 3, requires_grad=True)
    term = region_distillation_loss(student, torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    term.loss.backward()
    assert term.loss.item() == 0
    assert torch.equal(student.grad, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("name", ["image_text", "fused_image_text", "image_region_text"])
def test_an_image_of_which_nothing_is_known_takes_no_part(name):
    images, texts = unit_rows(3, 0), unit_rows(2, 1)
    known = {
        "image": images,
        "fused_image": images,
        "image_keys": torch.tensor([5, 6, 6]),
        "image_region_keys": torch.tensor([[5], [6], [-1]]),  # the third has a caption and no region
    }
    shared = {f"{kind}{part}": value for kind in ("text", "region_text") for part, value in (
        ("", texts), ("_keys", torch.tensor([5, 6])), ("_mask", torch.ones(2, dtype=torch.bool))
    )}  # fmt: skip
    unknown = {
        "image": torch.cat([images, unit_rows(1, 7)]),
        "fused_image": torch.cat([images, unit_rows(1, 7)]),
        "image_keys": torch.tensor([5, 6, 6, -1]),
        "image_region_keys": torch.tensor([[5], [6], [-1], [-1]]),
    }
    one, other = (contrastive_terms(shared | rows, {name: ONE}, (name,))[name] for rows in (known, unknown))
    torch.testing.assert_close(other.loss, one.loss, atol=1e-6, rtol=0)  # float32
    assert (int(other.num_positives), int(other.num_negatives)) == (int(one.num_positives), int(one.num_negatives))
