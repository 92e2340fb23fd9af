"""Images made worse in fixed ways, the same for every model: noise, contrast, resolution, a shifted window.

Grain and resolution are measured on the longer side of the image, so that a large original and a small one suffer
alike, whatever the model's frame. The image keeps its size: boxes stay where they are. What is drawn depends on the
seed and the image's name alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.shown_image import shown_image

GRAIN_PX = 128  # cells of the noise along the longer side


@dataclass(frozen=True)
class Perturbation:
    """One way and one strength; `strength` is in percent, of resolutions in pixels of the longer side."""

    kind: str
    strength: int
    meaning: str

    @property
    def name(self) -> str:
        """ "noise@10"."""
        return f"{self.kind}@{self.strength}"


PERTURBATIONS = (
    *(
        Perturbation("noise", percent, f"Gaussian noise of {percent} % of the range, grain 1/{GRAIN_PX} of the side")
        for percent in (5, 15)
    ),
    *(
        Perturbation("contrast", percent, f"differences from the image's mean made {percent} % of what they were")
        for percent in (60, 30)
    ),
    *(
        Perturbation("resolution", pixels, f"reduced to {pixels} pixels along the longer side, and brought back")
        for pixels in (96, 48)
    ),
    *(
        Perturbation("window", percent, f"the window of grey levels moved by {percent} % of its width, up or down")
        for percent in (10, 25)
    ),
)


def perturb_all(
    examples: Iterable[Mapping[str, Any]], perturbations: Iterable[Perturbation], seed: int
) -> Iterator[dict[str, Any]]:
    """Every example under every perturbation, one after the other; each image is decoded once."""
    chosen = tuple(perturbations)
    for example in examples:
        image = shown_image(example)
        for perturbation in chosen:
            yield perturb_example(example, image, perturbation, seed)


def perturb_example(
    example: Mapping[str, Any], image: Image.Image, perturbation: Perturbation, seed: int
) -> dict[str, Any]:
    """The example with its image made worse; texts and boxes are untouched.

    Args:
        image: of the example, as `shown_image` gives it.
    """
    if perturbation.kind == "window" and example.get("window") is not None:
        low, high = (float(edge) for edge in example["window"])
        shift = _sign(example, seed) * perturbation.strength / 100 * (high - low)
        return {**example, "window": [low + shift, high + shift]}
    changed = perturb_image(image, perturbation, _generator(example, perturbation, seed), _sign(example, seed))
    return {**example, "image": changed, "window": None}


def perturb_image(
    image: Image.Image, perturbation: Perturbation, generator: np.random.Generator, sign: int = 1
) -> Image.Image:
    """The picture made worse, in its own mode and size.

    Args:
        image: 8 bits, "L" or "RGB".
        generator: of the noise; sign: 1 or -1, the way in which a window moves.
    """
    share = perturbation.strength / 100
    if perturbation.kind == "resolution":
        scale = min(1.0, perturbation.strength / max(image.size))
        small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BILINEAR)
    levels = np.asarray(image, dtype=np.float32)
    if perturbation.kind == "noise":
        levels = levels + 255 * share * _grain(image.size, levels.shape, generator)
    elif perturbation.kind == "contrast":
        levels = levels.mean() + share * (levels - levels.mean())
    elif perturbation.kind == "window":
        levels = levels - sign * 255 * share
    else:
        raise ValueError(
            f"perturbation {perturbation.kind!r} is not known; choose noise, contrast, resolution or window."
        )
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8), mode=image.mode)


def _grain(size: tuple[int, int], shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Standard normal noise of `shape` (H, W) or (H, W, 3), constant over cells of 1 / GRAIN_PX of the longer side."""
    cell = max(1.0, max(size) / GRAIN_PX)
    columns, rows = (np.arange(side, dtype=np.float64) // cell for side in size)
    cells = generator.standard_normal((int(rows[-1]) + 1, int(columns[-1]) + 1, *shape[2:]), dtype=np.float32)
    return cells[rows.astype(int)[:, None], columns.astype(int)[None, :]]


def _generator(example: Mapping[str, Any], perturbation: Perturbation, seed: int) -> np.random.Generator:
    """Decided by the seed, the image's name and the kind: a stronger noise is the same noise, stronger."""
    return np.random.default_rng([seed, name_hash(example["image_id"]), name_hash(perturbation.kind)])


def _sign(example: Mapping[str, Any], seed: int) -> int:
    """1 or -1 by the seed and the image's name."""
    return 1 if np.random.default_rng([seed, name_hash(example["image_id"])]).random() < 0.5 else -1


def name_hash(name: Any) -> int:
    """A number below 2**64 for a name, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(str(name).encode("utf-8"), digest_size=8).digest(), "big")
