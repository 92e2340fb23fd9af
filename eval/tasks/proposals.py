"""Box-free discovery: do proposals hold the annotated regions, and does the model abstain where there are none?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.intervals import percentile_interval, resample_mean
from regionmed_clip.eval.metrics.boxes import best_iou
from regionmed_clip.eval.tasks.embedding import batched, evaluating, normalized
from regionmed_clip.eval.tasks.measured import Measured, Stratum, iter_strata, skipped
from regionmed_clip.eval.tasks.prepared import PreparedExample

MATCH_IOU = 0.5
LEAST_BUDGET = 16  # proposals an image may use; at least twice its regions


@dataclass(frozen=True)
class ProposedSplit:
    """What a model proposes on a split of N images with M annotated regions, scored against the annotation.

    Attributes:
        image_sources, image_modalities: (N,) str.
        num_regions, num_proposed: (N,) int; annotated regions, and those of the image's max(16, 2 x regions) best
            proposals that reach the model's own threshold.
        region_image: (M,) int64 row of the region's image.
        iou_ranked: (M,) best overlap with the image's max(16, 2 x regions) best proposals, whatever their scores.
        iou_proposed: (M,) best overlap with those of them that reach the model's own threshold.
        is_patch_sized: (M,) bool; whether the box covers at least the area of one patch of the model's frame.
    """

    image_sources: np.ndarray
    image_modalities: np.ndarray
    num_regions: np.ndarray
    num_proposed: np.ndarray
    region_image: np.ndarray
    iou_ranked: np.ndarray
    iou_proposed: np.ndarray
    is_patch_sized: np.ndarray

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.num_regions)


def propose_examples(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> ProposedSplit:
    """The scored proposals of `examples` (dicts of the corpus builder), streamed batch by batch."""
    images, regions = [], []
    height, width = processor.image_processor.grid_size
    with evaluating(model), tqdm(desc="propose regions", unit="img", disable=not progress or None, leave=False) as bar:
        for batch in batched(examples, batch_size):
            prepared = [PreparedExample.read(example, processor.image_processor, False) for example in batch]
            budget = max(LEAST_BUDGET, *(2 * len(image.boxes) for image in prepared))
            pixels = normalized(processor.image_processor, [image.frame for image in prepared], device)
            found = model.propose_regions(pixel_values=pixels, top_k=budget, threshold=0.0)
            boxes, scores = found.region_boxes.cpu().numpy(), found.scores.cpu().numpy()
            is_real = found.region_mask.cpu().numpy()
            for row, image in enumerate(prepared):
                own = slice(max(LEAST_BUDGET, 2 * len(image.boxes)))  # whatever its neighbours in the batch need
                ranked = boxes[row, own][is_real[row, own]]
                sure = boxes[row, own][is_real[row, own] & (scores[row, own] >= model.config.proposal_threshold)]
                area = (image.boxes[:, 2:] - image.boxes[:, :2]).prod(axis=1) * height * width  # in patches
                overlaps = zip(best_iou(image.boxes, ranked), best_iou(image.boxes, sure), area >= 1.0)
                regions.extend((len(images), *values) for values in overlaps)
                images.append((image.example["source"], image.example["modality"], len(image.boxes), len(sure)))
            bar.update(len(batch))
    if not images:
        raise ValueError("the split has no examples; an evaluation needs at least one. Check --data and --split.")
    columns = (np.array(column) for column in zip(*images))
    per_region = np.array(regions, dtype=np.float64).reshape(-1, 4).T
    return ProposedSplit(
        *columns, per_region[0].astype(np.int64), per_region[1], per_region[2], per_region[3].astype(bool)
    )


def measure_proposals(split: ProposedSplit, *, seed: int = 0) -> list[Measured]:
    """The figures of every stratum; images are resampled whole.

    `proposal_recall`: share of annotated regions of at least a patch that one of the max(16, 2 x regions) best
    proposals meets at IoU 0.5; `proposal_recall_small` of the smaller ones; `proposal_recall_at_threshold` as the
    first, with the proposals at the model's own threshold; `proposals_per_empty_image` at that threshold.
    """
    measured = []
    for stratum in iter_strata(split):
        in_stratum = stratum.is_member[split.region_image]
        for metric, ious, is_taken in (
            ("proposal_recall", split.iou_ranked, split.is_patch_sized),
            ("proposal_recall_small", split.iou_ranked, ~split.is_patch_sized),
            ("proposal_recall_at_threshold", split.iou_proposed, split.is_patch_sized),
        ):
            is_query = in_stratum & is_taken
            outcomes, clusters = ious[is_query] >= MATCH_IOU, split.region_image[is_query]
            measured.append(_mean(metric, outcomes, clusters, stratum, seed, "no such regions"))
        is_empty = stratum.is_member & (split.num_regions == 0)
        counts = split.num_proposed[is_empty]
        reason = "no image without regions"
        measured.append(_mean("proposals_per_empty_image", counts, np.flatnonzero(is_empty), stratum, seed, reason))
    return measured


def _mean(metric: str, values: np.ndarray, clusters: np.ndarray, stratum: Stratum, seed: int, reason: str) -> Measured:
    """The mean of `values` with its interval, or a skipped figure where there are none."""
    if not len(values):
        return skipped("proposals", metric, reason, n=0, stratum=stratum)
    resampled = resample_mean(values, clusters, seed=seed)
    low, high = percentile_interval(resampled)
    return Measured(
        task="proposals",
        metric=metric,
        value=float(np.mean(values)),
        low=low,
        high=high,
        n=len(values),
        source=stratum.source,
        stratum=stratum.name,
        protocol={"iou": MATCH_IOU, "budget": f"max({LEAST_BUDGET}, 2 x regions)"},
        resampled=resampled,
        clusters=clusters,
    )
