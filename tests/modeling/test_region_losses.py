"""The loss of regions that learn from a teacher, by hand; that of proposals is in test_region_proposals.py."""

import pytest
import torch

from modeling_regionmed_clip.loss_regionmed_clip import region_distillation_loss


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
