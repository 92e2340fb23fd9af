"""Region readings: the ways in which a model may be asked for the embedding of a box.

"roi" is the trained way, the ROI processor. The others need no training and work for any image-text model:

- "crop": the global embedding of the box cut out of the original image (crop-and-encode).
- "blur": the global embedding of the whole image with all but the box blurred; after arXiv:2204.05991 (ReCLIP).
- "red_circle": the global embedding of the whole image with a red ellipse drawn around the box; after
  arXiv:2304.06712 (What does CLIP know about a red circle?).
- "dense_mean": the patches' mean, each weighted by the share of it that the box covers, taken to the shared space as
  the model takes its image there; after arXiv:2112.01071 (MaskCLIP).
- "roialign": the same of RoIAlign's mean of the patches, arXiv:1703.06870.

The strength of the blur and the width of the line are ours: shares of the model's frame, the same for all models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from modeling_regionmed_clip.roi_processor import box_coverage, pool_regions, roi_align_weights
from modeling_regionmed_clip.source_checkpoint import pooling_layer
from regionmed_clip.eval.tasks.prepared import PreparedExample

TRAINED_READING = "roi"
TRAINING_FREE = ("crop", "blur", "red_circle", "dense_mean", "roialign")
READINGS = (TRAINED_READING, *TRAINING_FREE)
MEANING = {
    "roi": "the ROI processor",
    "crop": "the box cut out and encoded",
    "blur": "the image encoded with all but the box blurred",
    "red_circle": "the image encoded with a red circle around the box",
    "dense_mean": "the mean of the patches in the box",
    "roialign": "RoIAlign's mean of the patches in the box",
}
REGIONS_PER_PASS = 64  # an image with more regions goes through the model again for the rest
MIN_PROMPTED_PER_PASS = 16
BLUR_SHARE = 0.1  # standard deviation of the blur as a share of the frame's shorter side
LINE_SHARE = 0.01  # width of the red line likewise, at least a pixel
RED = (255, 0, 0)
Read = Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def check_readings(readings: Sequence[str]) -> None:
    """None; ValueError where one is not known, or where there is none."""
    unknown = [name for name in readings if name not in READINGS]
    if unknown or not readings:
        raise ValueError(f"region readings {list(readings)} are not all known; choose from {', '.join(READINGS)}.")


def encode_images(
    model: Any, image_processor: Any, images: Sequence[PreparedExample], readings: Sequence[str], device: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(B, D) image embeddings and, for each reading, the (sum of R, D) embeddings of all regions in order.

    float32 of unit length. The images need their `crops` for the reading "crop".
    """
    pixels = normalized(image_processor, [image.frame for image in images], device)
    image_embeds, regions = None, {}
    for reading in readings:
        if reading in _READ:
            image_embeds, regions[reading] = _encode_boxes(model, pixels, images, _READ[reading])
    if image_embeds is None:
        image_embeds = unit_rows(model.get_image_features(pixel_values=pixels).pooler_output)
    for reading in readings:
        if reading in _PROMPT:
            frames = (frame for image in images for frame in _PROMPT[reading](image))
            per_pass = max(len(images), MIN_PROMPTED_PER_PASS)
            regions[reading] = _encode_frames(model, image_processor, frames, per_pass, image_embeds.shape[1], device)
    return image_embeds, {reading: regions[reading] for reading in readings}


def normalized(image_processor: Any, frames: Sequence[np.ndarray], device: Any) -> Tensor:
    """(B, 3, H, W) float32 pixel values of uint8 frames."""
    return image_processor.normalize_frames(torch.from_numpy(np.stack(frames))).to(device)


def unit_rows(embeds: Tensor) -> np.ndarray:
    """The embeddings at unit length as float32 on the host; zero rows stay zero."""
    embeds = embeds.float()
    return (embeds / embeds.norm(dim=-1, keepdim=True).clamp_min(1e-12)).cpu().numpy()


def blurred_around(frame: np.ndarray, boxes: np.ndarray) -> Iterator[np.ndarray]:
    """For every box the uint8 frame (3, H, W) with all but the box blurred.

    Args:
        frame: (3, H, W) uint8.
        boxes: (R, 4) fractions of the frame; their edges are rounded outwards to whole pixels.
    """
    sharp = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(BLUR_SHARE * min(sharp.size)))).transpose(2, 0, 1)
    for box in boxes:
        x0, y0, x1, y1 = _whole_pixels(box, sharp.size)
        shown = blurred.copy()
        shown[:, y0:y1, x0:x1] = frame[:, y0:y1, x0:x1]
        yield shown


def circled(frame: np.ndarray, boxes: np.ndarray) -> Iterator[np.ndarray]:
    """For every box the uint8 frame (3, H, W) with a red ellipse around it, which no corner of the box leaves.

    Args:
        frame, boxes: as of `blurred_around`.
    """
    height, width = frame.shape[1:]
    line = max(1, round(LINE_SHARE * min(height, width)))
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64):
        shown = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
        centre_x, centre_y = (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
        reach_x = (x1 - x0) / 2 * width * 2**0.5 + line  # half sides times the root of 2: through the box's corners
        reach_y = (y1 - y0) / 2 * height * 2**0.5 + line
        outline = (centre_x - reach_x, centre_y - reach_y, centre_x + reach_x, centre_y + reach_y)
        ImageDraw.Draw(shown).ellipse(outline, outline=RED, width=line)
        yield np.asarray(shown).transpose(2, 0, 1)


_PROMPT: dict[str, Callable[[PreparedExample], Iterable[np.ndarray]]] = {
    "crop": lambda image: image.crops,
    "blur": lambda image: blurred_around(image.frame, image.boxes),
    "red_circle": lambda image: circled(image.frame, image.boxes),
}


def _read_roi(model: Any, pixels: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) plain global and (b, R, D) region embeddings of the ROI processor, from one pass of the vision tower."""
    output = model(pixel_values=pixels, region_boxes=boxes, region_mask=mask)
    return output.image_embeds, output.region_embeds


def _read_dense_mean(model: Any, pixels: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) plain global embeddings and (b, R, D) coverage means of the patches under the image's own projection."""
    return _read_pooled(model, pixels, lambda grid: box_coverage(boxes, grid).flatten(2), pool_regions)


def _read_roialign(model: Any, pixels: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) plain global embeddings and (b, R, D) RoIAlign means of the patches under the image's own projection."""
    return _read_pooled(
        model,
        pixels,
        lambda grid: roi_align_weights(boxes, grid),
        lambda patches, weights: torch.bmm(weights.to(patches.dtype), patches),
    )


_READ: dict[str, Read] = {"roi": _read_roi, "dense_mean": _read_dense_mean, "roialign": _read_roialign}


def _read_pooled(
    model: Any,
    pixels: Tensor,
    weigh: Callable[[tuple[int, int]], Tensor],
    pool: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """(b, D) and (b, R, D): means of patches, each taken to the shared space as an image of that patch alone."""
    patches, pooled = model.encode_patches(pixels)[:2]
    means = pool(patches, weigh(_grid_of(model, pixels)))  # (b, R, C)
    return model.visual_projection(pooled), _project_alone(model, means)


def project_patches(model: Any, pixels: Tensor) -> Tensor:
    """(b, D, h, w) unit embeddings of every patch, taken to the shared space as an image of that patch alone."""
    patches = model.encode_patches(pixels)[0]
    dense = torch.nn.functional.normalize(_project_alone(model, patches).float(), dim=-1)  # (b, P, D)
    return dense.transpose(1, 2).unflatten(-1, _grid_of(model, pixels))


def _grid_of(model: Any, pixels: Tensor) -> tuple[int, int]:
    """(h, w) patches of the frame."""
    side = model.config.vision_config.patch_size
    return pixels.shape[2] // side, pixels.shape[3] // side


def _project_alone(model: Any, states: Tensor) -> Tensor:
    """(b, R, D) of states (b, R, C), each as if it were the only patch of an image."""
    pooled = pooling_layer(model)(states.reshape(-1, 1, states.shape[-1]))  # the identity leaves the axis of one patch
    return model.visual_projection(pooled.reshape(*states.shape[:2], -1))


def _encode_boxes(
    model: Any, pixels: Tensor, images: Sequence[PreparedExample], read: Read
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
        image_embeds = unit_rows(passed) if image_embeds is None else image_embeds  # the first pass holds every image
        found = unit_rows(found)  # (b, R, D)
        for slot, row in enumerate(rows):
            embeds[row].append(found[slot, : len(chunks[slot])])
    return image_embeds, np.concatenate([part for parts in embeds for part in parts])


def _encode_frames(
    model: Any, image_processor: Any, frames: Iterable[np.ndarray], per_pass: int, width: int, device: Any
) -> np.ndarray:
    """(number of frames, D) global embeddings; `per_pass` frames are in memory at a time, `width` is D."""
    parts = [np.zeros((0, width), dtype=np.float32)]
    remaining = iter(frames)
    while batch := list(islice(remaining, per_pass)):
        pixels = normalized(image_processor, batch, device)
        parts.append(unit_rows(model.get_image_features(pixel_values=pixels).pooler_output))
    return np.concatenate(parts)


def _whole_pixels(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a box in fractions, rounded outwards within a frame of `size` (width, height)."""
    width, height = size
    x0, y0 = int(box[0] * width), int(box[1] * height)
    return x0, y0, max(x0 + 1, int(np.ceil(box[2] * width))), max(y0 + 1, int(np.ceil(box[3] * height)))
