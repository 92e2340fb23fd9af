"""Image embeddings fused with regions: those that are given, and those that the model proposes itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from regionmed_clip.eval.tasks.embedding import NO_EXAMPLES, batched, evaluating
from regionmed_clip.eval.tasks.prepared import PreparedExample
from regionmed_clip.eval.tasks.region_readings import normalized, unit_rows
from regionmed_clip.eval.tasks.sharing import ALONE, Share

MOST_SLOTS = 4096  # regions of a pass, padding included; crowded images go through the model in smaller batches


@dataclass(frozen=True)
class FusedImages:
    """N images, fused; float32 of unit length.

    Attributes:
        image_ids: N names.
        given: (N, D), fused with the annotated boxes; the plain global embedding of an image without any.
        proposed: (N, D), fused with the regions that the model proposes; plain where it proposes none.
        num_given: (N,) int64 annotated boxes inside the frame.
    """

    image_ids: list[str]
    given: np.ndarray
    proposed: np.ndarray
    num_given: np.ndarray


def embed_fused(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
) -> FusedImages:
    """The fused embeddings of `examples` (dicts of the corpus builder), streamed batch by batch, in their order."""
    parts: list[tuple[int, FusedImages]] = []
    bar = tqdm(desc="fuse regions", unit="img", disable=not (progress and share.is_main) or None, leave=False)
    with evaluating(model), bar:
        for number, batch in enumerate(batched(examples, batch_size)):
            if share.is_own(number):
                parts.append((number, _fuse_batch(model, processor.image_processor, batch, device)))
            bar.update(len(batch))
    whole = share.join(parts)
    if not whole:
        raise ValueError(NO_EXAMPLES)
    return _join(whole)


def _fuse_batch(model: Any, image_processor: Any, examples: Sequence[Mapping[str, Any]], device: Any) -> FusedImages:
    """The fused embeddings of a few examples, each decoded once."""
    images = [PreparedExample.read(example, image_processor, False) for example in examples]
    given, proposed = [], []
    for part in _split_crowded(images):
        pixels = normalized(image_processor, [image.frame for image in part], device)
        boxes, mask = _pad_boxes(part)
        given.append(unit_rows(model.get_image_features(pixels, boxes.to(device), mask.to(device)).pooler_output))
        proposed.append(unit_rows(model.get_image_features(pixels, regions="proposed").pooler_output))
    return FusedImages(
        image_ids=[image.example["image_id"] for image in images],
        given=np.concatenate(given),
        proposed=np.concatenate(proposed),
        num_given=np.array([len(image.boxes) for image in images]),
    )


def _join(parts: Sequence[FusedImages]) -> FusedImages:
    """The images of all parts, one after the other."""
    return FusedImages(
        image_ids=[name for part in parts for name in part.image_ids],
        given=np.concatenate([part.given for part in parts]),
        proposed=np.concatenate([part.proposed for part in parts]),
        num_given=np.concatenate([part.num_given for part in parts]),
    )


def _split_crowded(images: Sequence[PreparedExample]) -> Iterator[list[PreparedExample]]:
    """The images in order, in lists whose padded boxes fill at most MOST_SLOTS, or of one image."""
    part: list[PreparedExample] = []
    for image in images:
        most = max([len(image.boxes), *(len(other.boxes) for other in part)])
        if part and most * (len(part) + 1) > MOST_SLOTS:
            yield part
            part = []
        part.append(image)
    yield part


def _pad_boxes(images: Sequence[PreparedExample]) -> tuple[Tensor, Tensor]:
    """((B, R, 4) float32 boxes, (B, R) bool mask) of a batch, R at least 1."""
    boxes = torch.zeros(len(images), max([1, *(len(image.boxes) for image in images)]), 4)
    mask = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for row, image in enumerate(images):
        boxes[row, : len(image.boxes)] = torch.from_numpy(image.boxes)
        mask[row, : len(image.boxes)] = True
    return boxes, mask
