"""Noise on region boxes, as careless annotators or detectors make it: the same in training and in evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_BOX_NOISE = 0.5  # above it two opposite edges could pass each other


def check_box_noise(share: float) -> None:
    """None for a share that boxes can be moved by; else a ValueError."""
    if not 0 <= share <= MAX_BOX_NOISE:
        raise ValueError(
            f"box noise is {share!r}; it is the share of a box's sides by which its edges move at most, from 0 (exact "
            f"boxes) to {MAX_BOX_NOISE}. Give for instance 0.2."
        )


def jitter_boxes(
    boxes_xyxy: np.ndarray,
    share: float,
    generator: np.random.Generator,
    *,
    frame_size: tuple[float, float],
    min_side: float,
) -> np.ndarray:
    """(R, 4) float64 boxes whose every edge moved by uniform(-share, share) of the box's width or height.

    They stay inside the frame, and no side gets shorter than `min_side` (the frame's side, if that is shorter still).
    The draws of a box depend on its place in the list, not on the boxes after it.

    Args:
        boxes_xyxy: (R, 4), in any unit, inside the frame.
        share: from 0, which gives the boxes back as they are, to MAX_BOX_NOISE.
        frame_size: (width, height) in the unit of the boxes: of the image in pixels, or (1, 1) for fractions.
        min_side: in the same unit, one pixel as a rule.
    """
    check_box_noise(share)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    if share == 0:
        return boxes
    sides = boxes[:, 2:] - boxes[:, :2]  # (R, 2): width, height
    moved = boxes + generator.uniform(-share, share, boxes.shape) * np.tile(sides, 2)
    frame = np.asarray(frame_size, dtype=np.float64)
    start, end = np.clip(moved[:, :2], 0.0, frame), np.clip(moved[:, 2:], 0.0, frame)
    shortest = np.minimum(min_side, frame)
    is_short = end - start < shortest
    widened = np.clip((start + end - shortest) / 2, 0.0, frame - shortest)
    start = np.where(is_short, widened, start)
    end = np.where(is_short, np.minimum(widened + shortest, frame), end)
    return np.concatenate([start, end], axis=1)


def jitter_example(example: Mapping[str, Any], share: float, seed: int) -> dict[str, Any]:
    """The example of a corpus with its regions' boxes moved, decided by `seed` and its image id; texts are untouched.

    Boxes are original pixels, stay inside the image and measure at least one pixel. Masks would not follow: the moved
    regions have none.
    """
    regions = example["regions"]
    digest = hashlib.blake2b(str(example["image_id"]).encode("utf-8"), digest_size=8).digest()
    generator = np.random.default_rng([seed, int.from_bytes(digest, "big")])
    boxes = np.array([region["box"] for region in regions], dtype=np.float64).reshape(-1, 4)
    size = (float(example["width"]), float(example["height"]))
    moved = jitter_boxes(boxes, share, generator, frame_size=size, min_side=1.0).tolist()
    without_mask = {"mask": None} if any("mask" in region for region in regions) else {}
    moved_regions = [{**region, **without_mask, "box": box} for region, box in zip(regions, moved, strict=True)]
    return {**example, "regions": moved_regions}
