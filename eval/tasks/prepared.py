"""One example made ready for the model: decoded and framed once, its boxes in the frame, its crops on demand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.shown_image import shown_image
from regionmed_clip.processing.region_boxes import clip_to_frame


@dataclass(frozen=True)
class PreparedExample:
    """One decoded example: its fields, the uint8 frame (3, H, W), and its visible regions' boxes in that frame."""

    example: Mapping[str, Any]
    frame: np.ndarray
    regions: list[Mapping[str, Any]]
    boxes: np.ndarray  # (R, 4) float32, fractions of the frame
    crops: list[np.ndarray]  # R uint8 frames of the cropped boxes; empty unless asked for
    is_visible: np.ndarray  # (A,) bool: which of the example's regions are visible; R are

    @classmethod
    def read(cls, example: Mapping[str, Any], image_processor: Any, has_crops: bool) -> PreparedExample:
        """The example decoded and framed once; boxes clipped to the frame, invisible ones dropped.

        One that was kept for this very frame (`KeptExample`) is not decoded again.
        """
        if isinstance(example, KeptExample) and not has_crops:
            return example.prepared
        image = shown_image(example)
        frame, geometry = image_processor.frame_picture(image)
        pixel = np.array([region["box"] for region in example["regions"]], dtype=np.float32).reshape(-1, 4)
        boxes, is_visible = clip_to_frame(np.asarray(geometry.boxes_to_frame_fractions(pixel), dtype=np.float32))
        regions = [region for region, keep in zip(example["regions"], is_visible, strict=True) if keep]
        crops = (
            [image_processor.frame_picture(_crop(image, region["box"]))[0] for region in regions] if has_crops else []
        )
        return cls(example, np.asarray(frame), regions, boxes[is_visible], crops, is_visible)

    def colour_size(self) -> np.ndarray:
        """(R, 5) float32 mean RGB of each box in the frame, its width and its height; see `EmbeddedSplit`."""
        height, width = self.frame.shape[1:]
        features = np.empty((len(self.boxes), 5), dtype=np.float32)
        for row, (x0, y0, x1, y1) in enumerate(self.boxes):
            top, left = min(int(y0 * height), height - 1), min(int(x0 * width), width - 1)
            bottom, right = max(top + 1, round(y1 * height)), max(left + 1, round(x1 * width))
            features[row, :3] = self.frame[:, top:bottom, left:right].mean(axis=(1, 2)) / 255.0
            features[row, 3:] = x1 - x0, y1 - y0
        return features


class KeptExample(dict):
    """An example that is evaluated again and again by one image processor: it carries what was made of it at first."""

    def __init__(self, example: Mapping[str, Any], prepared: PreparedExample):
        super().__init__(example)
        self.prepared = prepared


def keep_prepared(
    examples: Iterable[Mapping[str, Any]], image_processor: Any, path: Path, *, has_images: bool
) -> list[KeptExample]:
    """The examples, each decoded and framed once; the frames lie in the file `path`, not in memory.

    Args:
        examples: best with their images still encoded.
        has_images: whether they keep these, for tasks that look at the image anew.
    """
    width, height = image_processor.frame_size
    kept: list[PreparedExample] = []  # their frames are in the file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for example in examples:
            prepared = PreparedExample.read(example, image_processor, False)
            file.write(np.ascontiguousarray(prepared.frame).tobytes())
            fields = example if has_images else {key: value for key, value in example.items() if key != "image"}
            kept.append(replace(prepared, example=fields, frame=np.empty(0, dtype=np.uint8)))
    if not kept:
        raise ValueError(f"{path}: the split has no examples; there is nothing to keep. Name another split.")
    frames = np.memmap(path, dtype=np.uint8, mode="r", shape=(len(kept), 3, height, width))
    return [KeptExample(one.example, replace(one, frame=frames[row])) for row, one in enumerate(kept)]


def _crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The box cut out of the original image, rounded outwards to whole pixels."""
    x0, y0, x1, y1 = box
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    return image.crop((left, top, max(left + 1, int(np.ceil(x1))), max(top + 1, int(np.ceil(y1)))))
