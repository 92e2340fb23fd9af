"""Figures of proposed regions: a scripted model whose boxes are known, every expected number a sum of a few cases."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regionmed_clip.eval.metrics.boxes import best_iou
from regionmed_clip.eval.tasks.proposals import ProposedSplit, measure_proposals, propose_examples


class ScriptedModel(torch.nn.Module):
    """Proposes, for every image, the box of the left half (score 0.9) and one of the whole frame (score 0.3)."""

    config = SimpleNamespace(proposal_threshold=0.5)

    def propose_regions(self, pixel_values, top_k, threshold):
        assert threshold == 0.0
        size = len(pixel_values)
        boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]]).repeat(size, 1, 1)
        mask = torch.ones(size, 2, dtype=torch.bool)
        return SimpleNamespace(region_boxes=boxes, region_mask=mask, scores=torch.tensor([[0.9, 0.3]]).repeat(size, 1))


def example(boxes, modality="CT"):
    """A black square picture of 32 pixels with these boxes in pixels."""
    from PIL import Image

    regions = [{"box": list(box), "finding": "cyst", "is_negated": False, "description": "cyst"} for box in boxes]
    image = Image.new("L", (32, 32))
    return {"image": image, "window": None, "source": "drawn", "modality": modality, "regions": regions}


def test_regions_are_matched_with_ranked_and_with_sure_proposals(processor):
    examples = [
        example([(0, 0, 16, 32), (0, 0, 32, 32), (20, 20, 24, 24)]),  # left half, whole frame, half a patch of 8 pixels
        example([]),
    ]
    split = propose_examples(ScriptedModel(), processor, examples, batch_size=2, progress=False)
    np.testing.assert_allclose(split.iou_ranked, [1.0, 1.0, 16 / 1024], atol=1e-6)
    np.testing.assert_allclose(split.iou_proposed, [1.0, 0.5, 0.0], atol=1e-6)  # the whole frame's score is too low
    assert split.is_patch_sized.tolist() == [True, True, False]
    assert split.num_regions.tolist() == [3, 0]
    assert split.num_proposed.tolist() == [1, 1]
    figures = {m.metric: (m.value, m.n) for m in measure_proposals(split)}
    assert figures == {
        "proposal_recall": (1.0, 2),
        "proposal_recall_small": (0.0, 1),
        "proposal_recall_at_threshold": (1.0, 2),  # an overlap of exactly one half counts
        "proposals_per_empty_image": (1.0, 1),
    }


def test_what_is_found_in_an_image_does_not_depend_on_its_neighbours_in_the_batch(processor):
    class ManySures(ScriptedModel):
        def propose_regions(self, pixel_values, top_k, threshold):
            shape = (len(pixel_values), top_k)
            boxes = torch.zeros(*shape, 4)
            boxes[:, 16:] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # only a budget of more than 16 gets here
            return SimpleNamespace(
                region_boxes=boxes, region_mask=torch.ones(shape, dtype=torch.bool), scores=torch.full(shape, 0.9)
            )

    crowded, sparse = example([(0, 0, 8, 8)] * 10), example([(0, 0, 32, 32)])
    together = propose_examples(ManySures(), processor, [crowded, sparse], batch_size=2, progress=False)
    alone = propose_examples(ManySures(), processor, [sparse], progress=False)
    assert together.num_proposed.tolist() == [20, 16]
    assert alone.num_proposed.tolist() == [16]
    assert together.iou_proposed[-1] == alone.iou_proposed[0] == 0.0


def test_strata_and_missing_cases_are_told_apart():
    split = ProposedSplit(
        image_sources=np.array(["drawn"] * 3),
        image_modalities=np.array(["CT", "CT", "MRI"]),
        image_clusters=np.arange(3),
        num_regions=np.array([1, 0, 1]),
        num_proposed=np.array([2, 3, 0]),
        region_image=np.array([0, 2]),
        iou_ranked=np.array([0.6, 0.2]),
        iou_proposed=np.array([0.6, 0.2]),
        is_patch_sized=np.array([True, True]),
    )
    figures = {(m.metric, m.stratum): m for m in measure_proposals(split)}
    assert figures["proposal_recall", None].value == 0.5
    assert figures["proposal_recall", "CT"].value == 1.0
    assert figures["proposal_recall", "MRI"].value == 0.0
    assert figures["proposals_per_empty_image", None].value == 3.0
    assert figures["proposals_per_empty_image", "MRI"].protocol["skipped"] == "no image without regions"
    assert figures["proposal_recall_small", None].value is None


def test_the_best_overlap_with_no_boxes_is_zero():
    boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
    assert best_iou(boxes, np.zeros((0, 4))).tolist() == [0.0]
    assert best_iou(boxes, np.array([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])).tolist() == [pytest.approx(1 / 3)]


def test_an_empty_split_is_refused(processor):
    with pytest.raises(ValueError, match="no examples"):
        propose_examples(ScriptedModel(), processor, [], progress=False)
