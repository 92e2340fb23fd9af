"""What names the model of an index: its weights, and what it makes of a test image, a box in it and a text.

The weights alone would not do: the same weights behind another image processor or tokenizer embed otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from regionmed_clip.eval.tasks.embedding import embed_texts, evaluating
from regionmed_clip.eval.tasks.region_readings import unit_rows
from regionmed_clip.eval.tasks.revision import weights_revision

TEST_TEXT = "small round opacity in the left upper zone"
TEST_SIZE = (88, 72)  # width and height of the test image
TEST_BOX = (20, 10, 60, 50)
LEAST_COSINE = 0.999  # between embeddings of the same thing on other devices, or by other versions of the libraries
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")


def identify(model: Any, processor: Any, device: str | torch.device) -> dict[str, Any]:
    """ "weights", their hash; "embedded": unit embeddings of the test "image", "region" and "text" as lists; for the
    record "libraries" and "device"."""
    inputs = processor(images=[_test_image()], boxes=[[list(TEST_BOX)]], window=None)  # of 8 bits: no window
    with evaluating(model):
        output = model(**{name: value.to(device) for name, value in inputs.items()})
    embedded = {
        "image": unit_rows(output.image_embeds)[0],
        "region": unit_rows(output.region_embeds)[0, 0],
        "text": embed_texts(model, processor, [TEST_TEXT], device=device)[0],
    }
    return {
        "weights": weights_revision(model),
        "embedded": {name: [round(float(number), 6) for number in vector] for name, vector in embedded.items()},
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "device": torch.device(device).type,
    }


def describe_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two models of `identify` differ, as part of a sentence; "" where their embeddings can be compared."""
    if there.get("weights") != here["weights"]:
        return f"weights are {there.get('weights')} there and {here['weights']} here"
    for name, vector in here["embedded"].items():
        other = np.asarray(there.get("embedded", {}).get(name, ()), dtype=np.float64)
        cosine = float(other @ np.asarray(vector)) if other.shape == (len(vector),) else 0.0
        if not cosine >= LEAST_COSINE:
            return f"the same weights embed a test {name} otherwise (cosine {cosine:.4f}): processor or code differ"
    return ""


def _test_image() -> Image.Image:
    """Two slopes and a bright square, the same everywhere."""
    width, height = TEST_SIZE
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    levels = (2 * x + y) % 200
    levels[20:40, 30:50] = 255
    return Image.fromarray(levels.astype(np.uint8))
