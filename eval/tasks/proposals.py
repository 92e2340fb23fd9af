"""Box-free discovery: do proposals hold the annotated regions, and does the model abstain where there are none?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.metrics.boxes import best_iou
from regionmed_clip.eval.tasks.embedded_split import clusters_of
from regionmed_clip.eval.tasks.embedding import batched, evaluating
from regionmed_clip.eval.tasks.figures import mean_figure
from regionmed_clip.eval.tasks.measured import Measured, iter_strata
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region_readings import normalized
from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.eval.tasks.task_inputs import TaskFindings, TaskInputs

TASK = "proposals"
MATCH_IOU = 0.5
LEAST_BUDGET = 16  # proposals an image may use; at least twice its regions


@dataclass(frozen=True, kw_only=True)
class ProposedSplit:
    """What a model proposes on a split of N images with M annotated regions, scored against the annotation.

    Attributes:
        image_sources, image_modalities: (N,) str. image_clusters: (N,) int64, equal for images of one patient.
        num_regions, num_proposed: (N,) int; annotated regions, and those of the image's max(16, 2 x regions) best
            proposals that reach the model's own threshold.
        region_image: (M,) int64 row of the region's image.
        iou_ranked: (M,) best overlap with the image's max(16, 2 x regions) best proposals, whatever their scores.
        iou_proposed: (M,) best overlap with those of them that reach the model's own threshold.
        is_patch_sized: (M,) bool; whether the box covers at least the area of one patch of the model's frame.
    """

    image_sources: np.ndarray
    image_modalities: np.ndarray
    image_clusters: np.ndarray
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


def measure(inputs: TaskInputs) -> TaskFindings:
    """The figures of the split under test; see `measure_proposals`."""
    proposed = propose_examples(inputs.model, inputs.processor, inputs.examples, **inputs.pass_options)
    return TaskFindings(measured=measure_proposals(proposed, seed=inputs.seed))


def propose_examples(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
) -> ProposedSplit:
    """The scored proposals of `examples` (dicts of the corpus builder), streamed batch by batch.

    Args:
        share: the batches that this process looks at; all processes get the whole.
    """
    names, parts = [], []
    is_hidden = not (progress and share.is_main) or None
    with evaluating(model), tqdm(desc="propose regions", unit="img", disable=is_hidden, leave=False) as bar:
        for number, batch in enumerate(batched(examples, batch_size)):
            if share.is_own(number):
                parts.append((number, _score_batch(model, processor.image_processor, batch, device)))
            names.extend({"source": one["source"], "patient_id": one.get("patient_id")} for one in batch)
            bar.update(len(batch))
    if not names:
        raise ValueError("the split has no examples; an evaluation needs at least one. Check --data and --split.")
    rows = [row for part in share.join(parts) for row in part]
    num_regions = np.array([len(row.iou_ranked) for row in rows])
    return ProposedSplit(
        image_sources=np.array([row.source for row in rows]),
        image_modalities=np.array([row.modality for row in rows]),
        image_clusters=clusters_of(names),
        num_regions=num_regions,
        num_proposed=np.array([row.num_proposed for row in rows]),
        region_image=np.repeat(np.arange(len(rows)), num_regions),
        iou_ranked=np.concatenate([row.iou_ranked for row in rows]),
        iou_proposed=np.concatenate([row.iou_proposed for row in rows]),
        is_patch_sized=np.concatenate([row.is_patch_sized for row in rows]),
    )


@dataclass(frozen=True)
class _ScoredImage:
    """What `ProposedSplit` holds, of one image with R annotated regions."""

    source: str
    modality: str
    num_proposed: int
    iou_ranked: np.ndarray  # (R,)
    iou_proposed: np.ndarray  # (R,)
    is_patch_sized: np.ndarray  # (R,) bool


def _score_batch(
    model: Any, image_processor: Any, batch: Sequence[Mapping[str, Any]], device: Any
) -> list[_ScoredImage]:
    """The scored proposals of a few examples."""
    height, width = image_processor.grid_size
    prepared = [PreparedExample.read(example, image_processor, False) for example in batch]
    budget = max(LEAST_BUDGET, *(2 * len(image.boxes) for image in prepared))
    pixels = normalized(image_processor, [image.frame for image in prepared], device)
    found = model.propose_regions(pixel_values=pixels, top_k=budget, threshold=0.0)
    boxes, scores = found.region_boxes.cpu().numpy(), found.scores.cpu().numpy()
    is_real = found.region_mask.cpu().numpy()
    scored = []
    for row, image in enumerate(prepared):
        own = slice(max(LEAST_BUDGET, 2 * len(image.boxes)))  # whatever its neighbours in the batch need
        ranked = boxes[row, own][is_real[row, own]]
        sure = boxes[row, own][is_real[row, own] & (scores[row, own] >= model.config.proposal_threshold)]
        area = (image.boxes[:, 2:] - image.boxes[:, :2]).prod(axis=1) * height * width  # in patches
        scored.append(
            _ScoredImage(
                source=image.example["source"],
                modality=image.example["modality"],
                num_proposed=len(sure),
                iou_ranked=best_iou(image.boxes, ranked),
                iou_proposed=best_iou(image.boxes, sure),
                is_patch_sized=area >= 1.0,
            )
        )
    return scored


def measure_proposals(split: ProposedSplit, *, seed: int = 0) -> list[Measured]:
    """The figures of every stratum; the images of a patient are resampled together.

    `proposal_recall`: share of annotated regions of at least a patch that one of the max(16, 2 x regions) best
    proposals meets at IoU 0.5; `proposal_recall_small` of the smaller ones; `proposal_recall_at_threshold` as the
    first, with the proposals at the model's own threshold; `proposals_per_empty_image` at that threshold.
    """
    measured = []
    shared = {"iou": MATCH_IOU, "budget": f"max({LEAST_BUDGET}, 2 x regions)"}
    for stratum in iter_strata(split):
        options: dict[str, Any] = {"stratum": stratum, "seed": seed}
        in_stratum = stratum.is_member[split.region_image]
        for metric, ious, is_taken in (
            ("proposal_recall", split.iou_ranked, split.is_patch_sized),
            ("proposal_recall_small", split.iou_ranked, ~split.is_patch_sized),
            ("proposal_recall_at_threshold", split.iou_proposed, split.is_patch_sized),
        ):
            is_query = in_stratum & is_taken
            is_met, clusters = ious[is_query] >= MATCH_IOU, split.image_clusters[split.region_image[is_query]]
            options["protocol"] = shared
            measured.append(mean_figure(TASK, metric, is_met, clusters, nothing="no such regions", **options))
        is_empty = stratum.is_member & (split.num_regions == 0)
        options["protocol"] = {**shared, "lower_is_better": True}
        counts, clusters = split.num_proposed[is_empty], split.image_clusters[is_empty]
        metric, nothing = "proposals_per_empty_image", "no image without regions"
        measured.append(mean_figure(TASK, metric, counts, clusters, nothing=nothing, **options))
    return measured
