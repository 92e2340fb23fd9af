"""Proposals: non-maximum suppression, abstention, and the loss that teaches them, against plain references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_batch, tiny_config, tiny_model

from modeling_regionmed_clip.loss_regionmed_clip import proposal_loss
from modeling_regionmed_clip.region_pooling import patch_boxes
from modeling_regionmed_clip.region_proposals import (
    PRIOR_SCORE,
    ProposalHead,
    box_iou,
    select_proposals,
    suppress_overlaps,
)

CPU = torch.device("cpu")


def numpy_iou(first, second) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    overlap = float(np.prod(np.clip(sides, 0, None)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return overlap / max(sum(areas) - overlap, 1e-9)


def numpy_greedy_nms(boxes, scores, max_iou) -> list[int]:
    """Rows kept: the best score first, whatever overlaps a kept box more than `max_iou` is dropped."""
    kept: list[int] = []
    for row in sorted(range(len(scores)), key=lambda row: -scores[row]):
        if all(numpy_iou(boxes[row], boxes[k]) <= max_iou for k in kept):
            kept.append(row)
    return kept


@st.composite
def images_of_boxes(draw):
    """(boxes (B, P, 4), scores (B, P)): corners in sixteenths, exact in float32, scores all different."""
    num_images, num_boxes = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    corner = st.integers(0, 16)
    boxes = np.array(
        [[draw(st.tuples(corner, corner, corner, corner)) for _ in range(num_boxes)] for _ in range(num_images)]
    )
    boxes = np.concatenate([np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1)
    scores = [[(1 + rank) / 100 for rank in draw(st.permutations(range(num_boxes)))] for _ in range(num_images)]
    return boxes / 16, np.array(scores)


@settings(max_examples=40)
@given(images_of_boxes(), st.integers(1, 15), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_keeps_what_the_greedy_rule_keeps_one_image_at_a_time(images, num_kept, max_iou):
    boxes, scores = images
    kept_boxes, kept_scores = suppress_overlaps(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), num_kept, max_iou
    )
    assert kept_boxes.shape == (len(boxes), num_kept, 4)
    for i, (image_boxes, image_scores) in enumerate(zip(boxes, scores)):
        rows = numpy_greedy_nms(image_boxes, image_scores, max_iou)[:num_kept]
        np.testing.assert_array_equal(kept_boxes[i, : len(rows)].numpy(), image_boxes[rows])
        np.testing.assert_allclose(kept_scores[i, : len(rows)].numpy(), image_scores[rows], atol=1e-7)
        assert (kept_scores[i, len(rows) :] == -torch.inf).all()  # nothing left


def test_iou_is_the_hand_made_one_and_zero_for_empty_boxes():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.5, 0.0, 1.0, 0.5], [0.1, 0.1, 0.1, 0.1]])
    found = box_iou(boxes[:, None], boxes[None])
    third = 1 / 3
    expected = [[1, third, 0, 0], [third, 1, third, 0], [0, third, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_boxes_without_area_are_each_kept_once():
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.9], [0.2, 0.2, 0.4, 0.4]]])
    kept, scores = suppress_overlaps(boxes, torch.tensor([[0.9, 0.8, 0.7]]), 5)
    torch.testing.assert_close(scores[0, :3], torch.tensor([0.9, 0.8, 0.7]))
    assert torch.equal(kept[0, :3], boxes[0])
    assert (scores[0, 3:] == -torch.inf).all()


# ---- abstention


APART = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.4, 0.0, 0.6, 0.2], [0.8, 0.0, 1.0, 0.2], [0.0, 0.4, 0.2, 0.6]])


def logits_of(*scores: float) -> torch.Tensor:
    return torch.logit(torch.tensor(scores))


def test_proposals_come_best_first_and_those_below_the_threshold_are_zero():
    logits = torch.stack([logits_of(0.3, 0.9, 0.1, 0.6), logits_of(0.2, 0.1, 0.3, 0.2)])
    found = select_proposals(logits, APART.expand(2, -1, -1), top_k=3, threshold=0.5)
    assert found.region_mask.tolist() == [[True, True, False], [False, False, False]]  # the second image: abstained
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.0, 0.0]]), atol=1e-6, rtol=0)
    assert torch.equal(found.region_boxes[0, :2], APART[[1, 3]])
    assert torch.equal(found.region_boxes[~found.region_mask], torch.zeros(4, 4))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_fewer_patches_than_proposals_asked_for_leave_the_rest_empty(threshold):
    found = select_proposals(logits_of(0.9, 0.8, 0.7, 0.6)[None], APART[None], top_k=7, threshold=threshold)
    assert found.region_boxes.shape == (1, 7, 4)
    assert found.region_mask.tolist() == [[True] * 4 + [False] * 3]
    assert found.scores.isfinite().all()
    assert torch.equal(found.region_boxes[0, 4:], torch.zeros(3, 4))


def test_a_threshold_of_one_proposes_nothing_and_a_score_at_the_threshold_counts():
    logits = logits_of(0.9, 0.5, 0.4, 0.3)[None]
    assert not select_proposals(logits, APART[None], top_k=4, threshold=1.0).region_mask.any()
    assert select_proposals(torch.zeros(1, 4), APART[None], top_k=4, threshold=0.5).region_mask.all()  # sigmoid(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k is 0; it must be a whole number of at least 1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"threshold": 1.5}, r"threshold is 1.5; a score lies in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_an_impossible_number_or_threshold_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().propose_regions(tiny_batch()["pixel_values"], **arguments)


def test_of_two_boxes_that_overlap_by_more_than_half_of_their_union_the_better_one_is_proposed():
    first = torch.tensor([0.0, 0.0, 1.0, 0.5])
    for height, num_proposed in ((0.26, 1), (0.24, 2)):  # an IoU of 0.52, 0.48
        boxes = torch.stack([first, torch.tensor([0.0, 0.0, 1.0, height])])[None]
        found = select_proposals(logits_of(0.6, 0.9)[None], boxes, top_k=2, threshold=0.5)
        assert found.region_mask.sum().item() == num_proposed
        assert torch.equal(found.region_boxes[0, 0], boxes[0, 1])


def test_an_untrained_model_proposes_nothing_and_the_default_threshold_is_the_configs():
    pixels = tiny_batch()["pixel_values"]
    assert not tiny_model().propose_regions(pixels).region_mask.any()
    eager = tiny_model(proposal_threshold=0.0).propose_regions(pixels, top_k=5)
    assert eager.region_mask.any(dim=1).all()
    assert eager.region_boxes.shape == (3, 5, 4)
    assert (eager.scores[:, :-1] >= eager.scores[:, 1:]).all()


def test_proposals_of_a_batch_equal_those_of_its_images():
    model, pixels = tiny_model(), tiny_batch()["pixel_values"]
    whole = model.propose_regions(pixels, top_k=6, threshold=0.0)
    for i in range(3):
        single = model.propose_regions(pixels[i : i + 1], top_k=6, threshold=0.0)
        for name in ("region_boxes", "scores"):
            torch.testing.assert_close(single[name][0], whole[name][i], atol=1e-5, rtol=0)


def test_the_head_gives_boxes_around_their_patches_inside_the_frame():
    torch.manual_seed(0)
    head = ProposalHead(tiny_config())
    logits, boxes = head(torch.randn(2, 12, 32) * 3, (3, 4))
    corners = patch_boxes((3, 4), CPU)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    assert logits.shape == (2, 12)
    assert boxes.dtype == torch.float32
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., :2] <= centres).all()
    assert (boxes[..., 2:] >= centres).all()


def test_scores_start_at_their_prior():
    model = tiny_model()
    torch.testing.assert_close(torch.sigmoid(model.proposal_head.score.bias), torch.tensor([PRIOR_SCORE]))


# ---- the loss


def reference_loss(logits, boxes, targets, masks, patches, quality=None) -> float:
    """The rule of `proposal_loss` patch by patch in float64; `quality` may be given to hold it fixed."""
    total, num_positives = 0.0, 0
    for b in range(len(logits)):
        for p, patch in enumerate(patches):
            own = target_of(patch, targets[b], masks[b])
            iou = 0.0 if own is None else numpy_iou(boxes[b][p], own)
            wanted = iou if quality is None else quality[b][p]
            score = 1 / (1 + math.exp(-logits[b][p]))
            entropy = -wanted * math.log(score) - (1 - wanted) * math.log(1 - score)
            total += (score - wanted) ** 2 * entropy
            if own is not None:
                num_positives += 1
                hull_sides = np.maximum(boxes[b][p][2:], own[2:]) - np.minimum(boxes[b][p][:2], own[:2])
                hull = float(np.prod(hull_sides))
                areas = sum(float(np.prod(box[2:] - box[:2])) for box in (boxes[b][p], own))
                union = areas / (1 + iou)  # union + overlap = areas, overlap = iou * union
                giou = iou - (hull - union) / hull
                total += 5 * float(np.abs(boxes[b][p] - own).mean()) + 2 * (1 - giou)
    return total / max(num_positives, 1)


def target_of(patch, targets, mask):
    """The smallest target in whose middle the patch's centre lies, or None."""
    centre, side = (patch[:2] + patch[2:]) / 2, patch[2:] - patch[:2]
    near = []
    for target, is_real in zip(targets, mask):
        middle, extent = (target[:2] + target[2:]) / 2, target[2:] - target[:2]
        if is_real and (np.abs(centre - middle) <= np.maximum(extent / 4, side / 2)).all():
            near.append((float(np.prod(extent)), tuple(target)))
    return np.array(min(near)[1]) if near else None


def hand_made_case():
    """Two images on a 3 x 4 grid: a large region around a small one, and one region with padding beside it."""
    generator = np.random.default_rng(0)
    patches = patch_boxes((3, 4), CPU).double().numpy()
    centres = (patches[:, :2] + patches[:, 2:]) / 2
    reach = generator.uniform(0.05, 0.4, (2, 12, 4)) * [-1, -1, 1, 1]
    boxes = np.clip(np.concatenate([centres, centres], axis=1) + reach, 0, 1)
    targets = np.array([[[0.05, 0.1, 0.95, 0.9], [0.4, 0.4, 0.55, 0.6]], [[0.1, 0.5, 0.4, 0.95], [0.2, 0.1, 0.9, 0.8]]])
    masks = np.array([[True, True], [True, False]])
    return generator.normal(size=(2, 12)), boxes, targets, masks, patches


def as_tensors(logits, boxes, targets, masks, patches):
    numbers = [torch.from_numpy(np.asarray(array)).float() for array in (logits, boxes, targets)]
    return *numbers, torch.from_numpy(masks), torch.from_numpy(patches).float()


def test_the_loss_is_the_plain_sum_over_patches():
    case = hand_made_case()
    term = proposal_loss(*as_tensors(*case))
    assert term.loss.item() == pytest.approx(reference_loss(*case), abs=1e-5)  # float32
    num_positives = sum(target_of(p, t, m) is not None for t, m in zip(case[2], case[3]) for p in case[4])
    assert (term.num_positives.item(), term.num_negatives.item()) == (num_positives, 24 - num_positives)


def test_its_gradient_is_that_of_the_plain_sum_with_the_wanted_scores_held_fixed():
    logits, boxes, targets, masks, patches = hand_made_case()
    owners = [[target_of(p, t, m) for p in patches] for t, m in zip(targets, masks)]
    quality = [[0.0 if o is None else numpy_iou(box, o) for box, o in zip(*rows)] for rows in zip(boxes, owners)]
    tensors = as_tensors(logits, boxes, targets, masks, patches)
    for tensor in tensors[:2]:
        tensor.requires_grad_(True)
    proposal_loss(*tensors).loss.backward()
    step = 1e-5
    for values, gradient in zip((logits, boxes), (tensors[0].grad, tensors[1].grad)):
        for place in np.random.default_rng(1).choice(values.size, 12, replace=False):
            at = np.unravel_index(place, values.shape)
            kept = values[at]
            sides = []
            for moved in (kept + step, kept - step):
                values[at] = moved
                sides.append(reference_loss(logits, boxes, targets, masks, patches, quality))
            values[at] = kept
            assert gradient[at].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-4)


def test_perfect_boxes_and_scores_cost_nothing():
    _, _, targets, masks, patches = hand_made_case()
    owners = [[target_of(p, t, m) for p in patches] for t, m in zip(targets, masks)]
    boxes = np.array([[patch if o is None else o for patch, o in zip(patches, row)] for row in owners])
    logits = np.array([[-30.0 if o is None else 30.0 for o in row] for row in owners])
    assert proposal_loss(*as_tensors(logits, boxes, targets, masks, patches)).loss.item() == pytest.approx(0, abs=1e-6)


def test_a_score_as_high_as_the_overlap_is_better_than_a_certain_one():
    patches = patch_boxes((2, 2), CPU)
    target = torch.tensor([[[0.1, 0.1, 0.4, 0.4]]])
    iou = 0.09 / 0.25  # of the target with the patch [0, 0.5) squared, which contains it
    losses = []
    for logit in (-3.0, math.log(iou / (1 - iou)), 3.0):
        logits = torch.full((1, 4), -30.0).index_fill(1, torch.tensor([0]), logit)
        losses.append(proposal_loss(logits, patches[None], target, torch.ones(1, 1, dtype=torch.bool), patches).loss)
    assert losses[1] < min(losses[0], losses[2])


def test_padding_and_the_order_of_regions_change_nothing():
    tensors = as_tensors(*hand_made_case())
    logits, boxes, targets, masks, patches = tensors
    expected = proposal_loss(*tensors).loss
    turned = proposal_loss(logits, boxes, targets.flip(1), masks.flip(1), patches).loss
    torch.testing.assert_close(turned, expected)
    filler = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.8, 0.8], [0.0, 0.0, 1.0, 1.0]]]).expand(2, -1, -1)
    padded = torch.cat([targets, filler], dim=1)
    padding = torch.cat([masks, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(proposal_loss(logits, boxes, padded, padding, patches).loss, expected)


def test_patches_beside_the_targets_of_an_incomplete_image_teach_nothing():
    tensors = as_tensors(*hand_made_case())
    logits = tensors[0].requires_grad_(True)
    whole = proposal_loss(*tensors)
    partial = proposal_loss(*tensors, torch.tensor([True, False]))
    partial.loss.backward()
    owned = [
        target_of(patch, *(rows[1] for rows in hand_made_case()[2:4])) is not None for patch in hand_made_case()[4]
    ]
    assert (logits.grad[1] != 0).tolist() == owned
    assert (logits.grad[0] != 0).all()
    assert partial.num_positives == whole.num_positives
    assert whole.num_negatives - partial.num_negatives == owned.count(False)


def test_without_any_region_only_the_scores_are_taught_and_all_gradients_are_finite():
    tensors = as_tensors(*hand_made_case())
    logits, boxes = (tensor.requires_grad_(True) for tensor in tensors[:2])
    nothing = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool)
    term = proposal_loss(logits, boxes, *nothing, tensors[4])
    term.loss.backward()
    assert term.num_positives.item() == 0
    assert (logits.grad > 0).all()  # every score goes down
    assert torch.equal(boxes.grad, torch.zeros_like(boxes))


def test_one_patch_learns_and_an_empty_target_is_one_and_an_inverted_or_outer_one_is_none():
    patches = patch_boxes((1, 1), CPU)
    for box, num_positives in (
        ((0.2, 0.3, 0.6, 0.9), 1),
        ((0.5, 0.5, 0.5, 0.5), 1),
        ((0.5, 0.2, 0.5, 0.9), 1),
        ((0.8, 0.8, 0.2, 0.2), 0),
        ((0.2, 0.8, 0.6, 0.3), 0),
        ((-1.0, -1.0, 2.0, 2.0), 1),
    ):
        logits = torch.zeros(1, 1, requires_grad=True)
        boxes = torch.tensor([[[0.1, 0.1, 0.7, 0.8]]], requires_grad=True)
        term = proposal_loss(logits, boxes, torch.tensor([[box]]), torch.ones(1, 1, dtype=torch.bool), patches)
        term.loss.backward()
        assert term.num_positives.item() == num_positives, box
        assert 0 <= term.loss.item() < 9, box  # 5 x L1 of at most 1, 2 x GIoU loss of at most 2
        assert logits.grad.isfinite().all()
        assert boxes.grad.isfinite().all()
    cut = proposal_loss(torch.zeros(1, 1), patches[None], patches[None], torch.ones(1, 1, dtype=torch.bool), patches)
    beyond = torch.tensor([[[-1.0, -1.0, 2.0, 2.0]]])
    assert proposal_loss(torch.zeros(1, 1), patches[None], beyond, cut.num_positives[None, None] > 0, patches) == cut


@pytest.mark.parametrize("num_patches", [4, 6, 7, 8, 12, 14, 16, 24, 27])
def test_every_region_has_a_patch_that_stands_for_it_even_between_patches(num_patches):
    """Boxes along the patches' own borders; the middle of one of two patches a side lies exactly between patches."""
    patches = patch_boxes((num_patches, num_patches), CPU)
    for side in (1, 2, 3):
        for start in range(num_patches - side + 1):
            box = torch.tensor([start, start, start + side, start + side]) / num_patches
            term = proposal_loss(
                torch.zeros(1, len(patches)),
                patches[None],
                box[None, None],
                torch.ones(1, 1, dtype=torch.bool),
                patches,
            )
            assert term.num_positives.item() == (4 if side == 2 else 1), (side, start)
