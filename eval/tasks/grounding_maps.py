"""Grounds phrases in the images of a split: heat maps against boxes, and the boxes that the model itself gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.metrics.boxes import pairwise_iou
from regionmed_clip.eval.metrics.localization import contrast_to_noise_ratio, heat_ious
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import batched, evaluating
from regionmed_clip.eval.tasks.grounding_phrases import Phrases
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region_readings import TRAINED_READING, normalized, project_patches
from regionmed_clip.eval.tasks.task_inputs import Examples, TaskInputs
from regionmed_clip.processing.grounding import patches_in_image
from regionmed_clip.processing.region_boxes import FrameGeometry, heat_to_pixels

THRESHOLDS = np.linspace(-1.0, 1.0, 401)  # of the cosine, where a map is cut
MAX_RASTER_PX = 512  # longer side on which maps and boxes are compared; the maps are a few dozen patches wide
MOST_PROPOSALS = 64
MATCH_IOU = 0.5
HEAT_SHARES = (0.7, 0.9)
BoxPath = tuple[str, float]  # source and heat_share of `post_process_grounding`; proposals have no share: 0
PROPOSALS: BoxPath = ("proposals", 0.0)
HEAT_PATHS: tuple[BoxPath, ...] = tuple(("heat", share) for share in HEAT_SHARES)


@dataclass(frozen=True)
class FoundBoxes:
    """n boxes that a model gives for phrases, best first within a phrase.

    Attributes:
        phrases: (n,) int64 row of the phrase; scores: (n,) float64 cosines.
        is_match: (n,) bool; the box meets an annotated box of the phrase at MATCH_IOU that no better one has met, so a
            threshold on the scores leaves the matches of the rest as they are.
    """

    phrases: np.ndarray
    scores: np.ndarray
    is_match: np.ndarray


@dataclass(frozen=True)
class GroundedPhrases:
    """What a model makes of Q phrases in the images of a split.

    Attributes:
        phrases: the questions; images: see there.
        clusters: (Q,) int64 patient of each phrase's image.
        peaks: (Q,) float64 highest cosine of the map.
        area_shares: (Q,) float64, of what the model sees of the image, in the boxes.
        contrasts: (Q,) float64 signed contrast-to-noise ratio. is_hit: (Q,) bool; the centre of the hottest patch lies
            in a box. ious: (Q, len(THRESHOLDS)) float32 overlap of the boxes with the map cut at each threshold. NaN,
            False and 0 where the boxes hold nothing or all of what the model sees (`is_mapped`).
        found: by path, the boxes that the model gives.
    """

    phrases: Phrases
    clusters: np.ndarray
    peaks: np.ndarray
    contrasts: np.ndarray
    is_hit: np.ndarray
    area_shares: np.ndarray
    ious: np.ndarray
    found: dict[BoxPath, FoundBoxes]

    @property
    def is_mapped(self) -> np.ndarray:
        """(Q,) bool: the phrase's boxes hold some of what the model sees, and not all."""
        return (self.area_shares > 0) & (self.area_shares < 1)


def paths_of(inputs: TaskInputs) -> tuple[BoxPath, ...]:
    """The ways to boxes that a model has: proposals only if it reads regions by its ROI processor."""
    return (PROPOSALS, *HEAT_PATHS) if inputs.region_reading == TRAINED_READING else HEAT_PATHS


def ground_split(
    inputs: TaskInputs, embedded: EmbeddedSplit, examples: Examples, phrases: Phrases, paths: Sequence[BoxPath]
) -> GroundedPhrases:
    """The phrases grounded by the model of `inputs` in `examples`, whose embedded split is `embedded`.

    A model that reads regions by its ROI processor maps phrases by it too, any other by its projected patches.

    Args:
        paths: of `paths_of`; boxes are taken by these.
    """
    row = 0
    parts: list[tuple[int, _Table]] = []
    is_hidden = not (inputs.is_shown and inputs.share.is_main) or None
    bar = tqdm(desc="ground phrases", unit="img", disable=is_hidden, leave=False)
    with evaluating(inputs.model), bar:
        for number, batch in enumerate(batched(examples, inputs.batch_size)):
            images = range(row, row + len(batch))
            _check_same(embedded, batch, images)
            if inputs.share.is_own(number):
                parts.append((number, _ground_batch(inputs, batch, phrases.of_images(images), row, paths)))
            row += len(batch)
            bar.update(len(batch))
    if row <= phrases.images.max(initial=-1):
        raise ValueError(
            f"{row} examples, and phrases for {phrases.images.max() + 1}; give the split as it was embedded."
        )
    return _join(inputs.share.join(parts), embedded, phrases, paths)


def _check_same(embedded: EmbeddedSplit, batch: Sequence[Any], rows: range) -> None:
    """None; a ValueError where the examples are not those that were embedded, in their order."""
    names = [str(example["image_id"]) for example in batch]
    expected = embedded.image_ids[rows.start : rows.stop]
    if names != expected:
        raise ValueError(
            f"images {names[:3]}... come where {expected[:3]}... were embedded; both must be one split in one order."
        )


def _ground_batch(
    inputs: TaskInputs, batch: Sequence[Any], phrases: Phrases, first: int, paths: Sequence[BoxPath]
) -> _Table:
    """What the model makes of the phrases of these images, which are `first` and those after it in the split."""
    table = _Table(phrases, paths)
    images = [image for image in range(first, first + len(batch)) if len(phrases.texts[phrases.of_image(image)])]
    batch = [batch[image - first] for image in images]
    if not batch:
        return table
    image_processor = inputs.processor.image_processor
    prepared = [PreparedExample.read(example, image_processor, False) for example in batch]
    pixels = normalized(image_processor, [one.frame for one in prepared], inputs.device)
    slices = [table.phrases.of_image(image) for image in images]
    texts = sorted({text for part in slices for text in table.phrases.texts[part]})
    row_of_text = {text: row for row, text in enumerate(texts)}
    outputs = _ground(inputs, pixels, texts)
    for place, (part, example) in enumerate(zip(slices, batch, strict=True)):
        own = [row_of_text[text] for text in table.phrases.texts[part]]
        answer = _answer_of(outputs, place, own)
        size = (int(example["height"]), int(example["width"]))
        raster_hw = raster_of(size)
        (geometry,) = inputs.processor.geometries([raster_hw])
        points = [hottest_points(heat, geometry) for heat in answer.heat[0].numpy()]
        table.add_maps(part, heat_to_pixels(answer.heat[0].numpy(), geometry), points, size)
        for path in table.paths:
            source, share = path
            settings = {"source": source, "threshold": -1.0} | ({"heat_share": share} if source == "heat" else {})
            (boxes,) = inputs.processor.post_process_grounding(answer, [size], **settings)
            table.add_boxes(path, part, boxes)
    return table


def _ground(inputs: TaskInputs, pixels: torch.Tensor, texts: Sequence[str]) -> Any:
    """Heat (b, T, h, w), and for the ROI processor the proposals of `PhraseGrounding`."""
    model = inputs.model
    if inputs.region_reading == TRAINED_READING:
        encoded = {name: tensor.to(inputs.device) for name, tensor in inputs.processor.encode_texts(texts).items()}
        return model.ground_phrases(pixels, **encoded, top_k=MOST_PROPOSALS)
    dense = project_patches(model, pixels)  # (b, D, h, w)
    phrases = torch.from_numpy(inputs.encode(texts)).to(dense.device)
    return SimpleNamespace(heat=torch.einsum("bdhw,td->bthw", dense, phrases))


def _answer_of(outputs: Any, place: int, own: Sequence[int]) -> SimpleNamespace:
    """The outputs of one image and its own phrases, in the form that `post_process_grounding` reads."""
    one = slice(place, place + 1)
    answer = SimpleNamespace(heat=outputs.heat[one, own].float().cpu())  # (1, q, h, w)
    if hasattr(outputs, "phrase_similarity"):
        answer.region_boxes, answer.region_mask = outputs.region_boxes[one].cpu(), outputs.region_mask[one].cpu()
        answer.region_scores = outputs.region_scores[one].cpu()
        answer.phrase_similarity = outputs.phrase_similarity[one][..., own].float().cpu()  # (1, K, q)
    return answer


def raster_of(size_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) on which the maps of an image are compared: its own, made no larger than MAX_RASTER_PX."""
    scale = min(1.0, MAX_RASTER_PX / max(size_hw))
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def hottest_points(heat: np.ndarray, geometry: FrameGeometry) -> np.ndarray:
    """(n, 2) int64 (row, column) of the original pixel at the centre of the hottest patch, or of each of equals.

    That is where a map read bilinearly has its peak; only at the rim of the image is the peak a line, from the centre
    of the outermost patch to the border, of which this is the one point that the model has measured.

    Args:
        heat: (h, w) float; patches wholly in the padding take no part.
        geometry: how the image lies in the frame.
    """
    inside = np.where(patches_in_image(geometry, heat.shape), heat, -np.inf)
    rows, columns = np.nonzero(inside == inside.max())
    centres = np.stack([(columns + 0.5) / heat.shape[1], (rows + 0.5) / heat.shape[0]], axis=1)
    x, y = geometry.frame_fractions_to_boxes(np.tile(centres, 2))[:, :2].T  # clipped to the image
    width, height = geometry.original
    return np.stack([np.minimum(y, height - 1), np.minimum(x, width - 1)], axis=1).astype(np.int64)


class _Table:
    """Collects what a model makes of the phrases of a batch; rows count from the first of them."""

    def __init__(self, phrases: Phrases, paths: Sequence[BoxPath]):
        self.phrases, self.paths = phrases, tuple(paths)
        num = len(phrases.texts)
        self.peaks, self.contrasts, self.area_shares = np.full(num, np.nan), np.full(num, np.nan), np.zeros(num)
        self.is_hit = np.zeros(num, dtype=bool)
        self.ious = np.zeros((num, len(THRESHOLDS)), dtype=np.float32)
        self.boxes: dict[BoxPath, list[tuple[int, float, bool]]] = {path: [] for path in self.paths}

    def add_maps(self, part: slice, maps: np.ndarray, points: Sequence[np.ndarray], size_hw: tuple[int, int]) -> None:
        """None; takes in the maps (q, height, width) of one image's phrases and the hottest points of each."""
        is_seen = np.isfinite(maps[0])
        for row, heat, hottest in zip(range(part.start, part.stop), maps, points, strict=True):
            self.peaks[row] = heat[is_seen].max()
            boxes = self.phrases.boxes[row]
            if not len(boxes):
                continue
            is_inside = fill_boxes(boxes, size_hw, heat.shape) & is_seen
            self.area_shares[row] = is_inside.sum() / is_seen.sum()
            if 0 < self.area_shares[row] < 1:
                self.contrasts[row] = contrast_to_noise_ratio(heat, is_inside)
                self.is_hit[row] = is_inside[tuple(hottest.T)].all()
                self.ious[row] = heat_ious(heat, is_inside, THRESHOLDS)

    def add_boxes(self, path: BoxPath, part: slice, answer: dict[str, torch.Tensor]) -> None:
        """None; takes in what `post_process_grounding` gives for one image's phrases, best first."""
        labels, scores = answer["labels"].numpy(), answer["scores"].numpy()
        for label in np.unique(labels).tolist():
            is_own = labels == label
            boxes = answer["boxes"].numpy()[is_own]
            matches = match_best_first(boxes, self.phrases.boxes[part.start + label])
            self.boxes[path].extend(
                (part.start + label, float(score), bool(match))
                for score, match in zip(scores[is_own], matches, strict=True)
            )


def _join(
    tables: Sequence[_Table], embedded: EmbeddedSplit, phrases: Phrases, paths: Sequence[BoxPath]
) -> GroundedPhrases:
    """The tables of all batches of a split, one after the other; `phrases` are those of all."""
    starts = np.cumsum([0, *(len(table.phrases.texts) for table in tables)])
    found = {}
    for path in paths:
        rows = [
            (start + row, score, is_match)
            for start, table in zip(starts.tolist(), tables, strict=False)
            for row, score, is_match in table.boxes[path]
        ]
        columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        found[path] = FoundBoxes(columns[0].astype(np.int64), columns[1], columns[2].astype(bool))
    names = ("peaks", "contrasts", "is_hit", "area_shares", "ious")
    columns_of = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    return GroundedPhrases(phrases, embedded.image_clusters[phrases.images], **columns_of, found=found)


def fill_boxes(boxes: np.ndarray, size_hw: tuple[int, int], raster_hw: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool raster of what boxes (n, 4) of an image of `size_hw` hold; each fills a pixel at least."""
    is_inside = np.zeros(raster_hw, dtype=bool)
    scale = np.array([raster_hw[1] / size_hw[1], raster_hw[0] / size_hw[0]] * 2)
    for x0, y0, x1, y1 in boxes.astype(np.float64) * scale:
        top, left = min(int(y0 + 0.5), raster_hw[0] - 1), min(int(x0 + 0.5), raster_hw[1] - 1)
        is_inside[top : max(top + 1, int(y1 + 0.5)), left : max(left + 1, int(x1 + 0.5))] = True
    return is_inside


def match_best_first(boxes: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each of boxes (n, 4), best first, meets one of truths (m, 4) that none before it has met."""
    is_match = np.zeros(len(boxes), dtype=bool)
    if not len(truths):
        return is_match
    overlaps = pairwise_iou(boxes, truths)
    for place, row in enumerate(overlaps):
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            is_match[place] = True
            overlaps[:, best] = -1.0  # taken: those after it look for another
    return is_match
