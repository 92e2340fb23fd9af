"""Embeds one split of a corpus: images, regions and unique texts as numpy arrays, every image decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_regionmed_clip.roi_processor import box_coverage, pool_regions
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit, SplitRows
from regionmed_clip.eval.tasks.prepared import PreparedExample

READINGS = ("roi", "dense_mean", "crop")
REGIONS_PER_PASS = 64  # an image with more regions goes through the model again for the rest


def embed_examples(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    region_reading: str = "roi",
    progress: bool = True,
) -> EmbeddedSplit:
    """The embedded split of `examples` (dicts of the corpus builder), streamed batch by batch.

    Args:
        region_reading: "roi" asks the ROI processor; "dense_mean" takes the coverage mean of the patches and "crop"
            the global embedding of the cropped box: the two training-free readings of a plain CLIP.
    """
    readings = embed_readings(
        model, processor, examples, readings=(region_reading,), batch_size=batch_size, device=device, progress=progress
    )
    return readings[region_reading]


def embed_readings(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    *,
    readings: Sequence[str],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, EmbeddedSplit]:
    """The embedded split under each region reading; images, texts and decoding are shared by all of them."""
    unknown = [name for name in readings if name not in READINGS]
    if unknown or not readings:
        raise ValueError(f"region readings {list(readings)} are not all known; choose from {READINGS}.")
    rows = SplitRows(readings)
    bar = tqdm(desc="embed images", unit="img", disable=not progress or None, leave=False)
    with evaluating(model), bar:
        for batch in batched(examples, batch_size):
            images = [PreparedExample.read(example, processor.image_processor, "crop" in readings) for example in batch]
            rows.add_images(images, *_encode_images(model, processor.image_processor, images, readings, device))
            bar.update(len(batch))
        if not rows.images:
            raise ValueError("the split has no examples; an evaluation needs at least one. Check --data and --split.")
        return rows.finish(lambda texts: embed_texts(model, processor, texts, device=device))


def embed_texts(
    model: Any, processor: Any, texts: Sequence[str], *, batch_size: int = 256, device: str | torch.device = "cpu"
) -> np.ndarray:
    """(T, D) float32 unit-length embeddings of `texts`, in order; each distinct text is encoded once."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))  # like lengths together: less padding
    parts = [np.zeros((0, 0), dtype=np.float32)]
    with evaluating(model):
        for start in range(0, len(unique), batch_size):
            inputs = processor.encode_texts(unique[start : start + batch_size])
            output = model.get_text_features(
                input_ids=inputs["input_ids"].to(device), attention_mask=inputs["attention_mask"].to(device)
            )
            parts.append(_unit(output.pooler_output))
    if not unique:
        return parts[0]
    embeds = np.concatenate(parts[1:])
    row_of_text = {text: row for row, text in enumerate(unique)}
    return embeds[[row_of_text[text] for text in texts]]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode and inference mode inside the block; its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _encode_images(
    model: Any, image_processor: Any, images: Sequence[PreparedExample], readings: Sequence[str], device: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(B, D) image embeddings and, for each reading, the (sum of R, D) embeddings of all regions in order."""
    pixels = normalized(image_processor, [image.frame for image in images], device)
    image_embeds, regions = None, {}
    for reading in readings:
        if reading != "crop":
            image_embeds, regions[reading] = _encode_boxes(model, pixels, images, _READ[reading])
    if image_embeds is None:
        image_embeds = _unit(model.get_image_features(pixel_values=pixels).pooler_output)
    if "crop" in readings:
        regions["crop"] = _encode_crops(model, image_processor, images, device, image_embeds.shape[1])
    return image_embeds, regions


def _read_roi(model: Any, pixels: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) plain global and (b, R, D) region embeddings of the ROI processor, from one pass of the vision tower."""
    output = model(pixel_values=pixels, region_boxes=boxes, region_mask=mask)
    return output.image_embeds, output.region_embeds


def _read_dense_mean(model: Any, pixels: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) plain global embeddings and (b, R, D) coverage means of the patches under the image's own projection."""
    patches, pooled = model.encode_patches(pixels)[:2]
    side = round(patches.shape[1] ** 0.5)
    coverage = box_coverage(boxes, (side, side)).flatten(2)  # (b, R, P)
    return model.visual_projection(pooled), model.visual_projection(pool_regions(patches, coverage))


_READ = {"roi": _read_roi, "dense_mean": _read_dense_mean}


def _encode_boxes(
    model: Any,
    pixels: Tensor,
    images: Sequence[PreparedExample],
    read: Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """(B, D) image and (sum of R, D) region embeddings; a crowded image takes a pass for every REGIONS_PER_PASS."""
    image_embeds, embeds = None, [[] for _ in images]
    most = max(1, *(len(image.boxes) for image in images))
    for start in range(0, most, REGIONS_PER_PASS):
        rows = [row for row, image in enumerate(images) if start == 0 or len(image.boxes) > start]
        chunks = [images[row].boxes[start : start + REGIONS_PER_PASS] for row in rows]
        boxes = torch.zeros(len(rows), max(1, *(len(chunk) for chunk in chunks)), 4)
        mask = torch.zeros(boxes.shape[:2], dtype=torch.bool)
        for slot, chunk in enumerate(chunks):
            boxes[slot, : len(chunk)] = torch.from_numpy(chunk)
            mask[slot, : len(chunk)] = True
        passed, found = read(model, pixels[rows], boxes.to(pixels.device), mask.to(pixels.device))
        image_embeds = _unit(passed) if image_embeds is None else image_embeds  # the first pass holds every image
        found = _unit(found)  # (b, R, D)
        for slot, row in enumerate(rows):
            embeds[row].append(found[slot, : len(chunks[slot])])
    return image_embeds, np.concatenate([part for parts in embeds for part in parts])


def _encode_crops(
    model: Any, image_processor: Any, images: Sequence[PreparedExample], device: Any, width: int
) -> np.ndarray:
    """(sum of R, D) global embeddings of the cropped boxes, in batches as large as the images' batch."""
    crops = [crop for image in images for crop in image.crops]
    parts = [np.zeros((0, width), dtype=np.float32)]
    for start in range(0, len(crops), max(len(images), 16)):
        pixels = normalized(image_processor, crops[start : start + max(len(images), 16)], device)
        parts.append(_unit(model.get_image_features(pixel_values=pixels).pooler_output))
    return np.concatenate(parts)


def normalized(image_processor: Any, frames: Sequence[np.ndarray], device: Any) -> Tensor:
    """(B, 3, H, W) float32 pixel values of uint8 frames."""
    return image_processor.normalize_frames(torch.from_numpy(np.stack(frames))).to(device)


def _unit(embeds: Tensor) -> np.ndarray:
    """The embeddings at unit length as float32 on the host; zero rows stay zero."""
    embeds = embeds.float()
    return (embeds / embeds.norm(dim=-1, keepdim=True).clamp_min(1e-12)).cpu().numpy()


def batched(examples: Iterable[Mapping[str, Any]], batch_size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Lists of at most `batch_size` examples, in order."""
    batch: list[Mapping[str, Any]] = []
    for example in examples:
        batch.append(example)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
