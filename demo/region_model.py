"""The published model as the demo uses it: loaded by transformers alone, one picture a call.

Boxes are (x0, y0, x1, y1) in pixels of the picture, origin top-left, half-open. Letters: R boxes, T texts, D width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

Box = tuple[float, float, float, float]

MIN_COSINE_OF_SAME_MODEL = 0.999  # of one text, embedded when the index was made and now
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CHOSEN = {"window": None, "frame_index": None, "slice_index": None}  # pictures come from `read_image`, of 8 bits
NEEDED_METHODS = ("get_region_features", "propose_regions", "ground_phrases")


class Reading(NamedTuple):
    """How a picture and its boxes read: shares of the T texts that sum to 1, (T,) and (R, T) float32."""

    image: np.ndarray
    regions: np.ndarray


class Found(NamedTuple):
    """Where a text is seen: cosines (H, W) float32 of the picture's pixels; the boxes that fit, with their cosines."""

    heat: np.ndarray
    boxes: list[Box]
    scores: list[float]


class RegionModel:
    """A RegionMedClipModel with its processor, from a folder or a Hub id.

    Args:
        source: folder or Hub id; its own code is run (`trust_remote_code`), so name only a source that you trust.
        revision: of a Hub id.

    Raises:
        ValueError: it is neither, or holds a model without regions.
        OSError: files are missing, or the Hub cannot be reached.
    """

    def __init__(self, source: str, revision: str | None = None):
        if not Path(source).is_dir() and not HUB_ID.fullmatch(source):
            raise ValueError(f"{source} is neither a folder here nor ORG/NAME on the Hub. Correct REGIONMED_MODEL.")
        options: dict[str, Any] = {"revision": revision} if revision else {}
        self._model = AutoModel.from_pretrained(source, trust_remote_code=True, **options).eval()
        missing = [name for name in NEEDED_METHODS if not hasattr(self._model, name)]
        if missing:
            raise ValueError(
                f"{source} holds a {type(self._model).__name__}, which has no {missing[0]}; the demo needs a "
                "RegionMedClipModel. Set REGIONMED_MODEL to its folder or Hub id."
            )
        self._processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, **options)
        self.read_image: Callable[..., Image.Image] = get_class_from_dynamic_module(
            "medical_image.read_image", source, **options
        )
        self.source = source
        self.window: Any = self._processor.image_processor.window  # that was saved with it, of CT; None: none was
        self.proposal_threshold = float(self._model.config.proposal_threshold)

    @torch.inference_mode()
    def read(self, picture: Image.Image, boxes: Sequence[Box], texts: Sequence[str]) -> Reading:
        """The shares of the texts, for the whole picture and for every box; without boxes `regions` is (0, T)."""
        regions = {"boxes": [list(boxes)], "region_text": list(texts)} if boxes else {}
        output = self._model(**self._processor(images=picture, text=list(texts), **CHOSEN, **regions))
        image = output.logits_per_image[0].float().softmax(dim=-1).numpy()  # (T,)
        if not boxes:
            return Reading(image, np.zeros((0, len(texts)), dtype=np.float32))
        return Reading(image, output.logits_per_region[0].float().softmax(dim=-1).numpy())

    @torch.inference_mode()
    def find(self, picture: Image.Image, text: str, threshold: float = 0.65) -> Found:
        """The heat map of a text, and the proposed boxes whose cosine with it reaches the threshold, best first."""
        pixels = self._processor(images=picture, **CHOSEN)["pixel_values"]
        grounded = self._model.ground_phrases(pixels, **self._processor.encode_texts([text]))
        size = [(picture.height, picture.width)]
        heat = self._processor.post_process_heatmap(grounded.heat, size)[0][0]
        fitting = self._processor.post_process_grounding(grounded, size, threshold=threshold, max_boxes=3)[0]
        return Found(heat, [tuple(box) for box in fitting["boxes"].tolist()], fitting["scores"].tolist())

    @torch.inference_mode()
    def propose(self, picture: Image.Image, threshold: float, max_boxes: int) -> list[Box]:
        """The boxes that the model itself finds worth a look, best first; none where no score reaches the threshold."""
        pixels = self._processor(images=picture, **CHOSEN)["pixel_values"]
        proposals = self._model.propose_regions(pixels, top_k=max_boxes, threshold=threshold)
        found = self._processor.post_process_proposals(proposals, [(picture.height, picture.width)])[0]
        return [tuple(box) for box in found["boxes"].tolist()]

    @torch.inference_mode()
    def embed_box(self, picture: Image.Image, box: Box) -> np.ndarray:
        """(D,) float32 of unit length."""
        inputs = self._processor(images=picture, boxes=[[box]], **CHOSEN)
        return _unit(self._model.get_region_features(**inputs).pooler_output[0, 0])

    @torch.inference_mode()
    def embed_text(self, text: str) -> np.ndarray:
        """(D,) float32 of unit length."""
        return _unit(self._model.get_text_features(**self._processor.encode_texts([text])).pooler_output[0])


class Case(NamedTuple):
    """One region of the index: its cosine with the query, what it shows, and its tile (square RGB picture)."""

    score: float
    text: str
    tile: Image.Image


class RegionIndex:
    """The regions that came with the demo, as `stage_space` wrote them: index.safetensors, index.json, index.webp.

    Raises:
        ValueError: files that do not belong together.
    """

    def __init__(self, folder: Path):
        tensors = load_file(folder / "index.safetensors")
        self._embeds = tensors["region_embeds"].astype(np.float32)  # (N, D)
        self._check_embed = tensors["check_embed"]  # (D,) of the text `check_text`
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._texts, self._side_px, self._columns = facts["texts"], facts["tile_side_px"], facts["tiles_per_row"]
        self._check_text = facts["check_text"]
        with Image.open(folder / "index.webp") as atlas:
            self._atlas = atlas.convert("RGB")
        num_tiles = (self._atlas.width // self._side_px) * (self._atlas.height // self._side_px)
        if len(self._texts) != len(self._embeds) or num_tiles < len(self._texts):
            raise ValueError(
                f"{folder}: the index has {len(self._embeds)} embeddings, {len(self._texts)} texts and {num_tiles} "
                "tiles; there must be one of each for a region. Stage the Space again."
            )

    def __len__(self) -> int:
        return len(self._texts)

    def belongs_to(self, model: RegionModel) -> bool:
        """Whether the index was made by this model: a text embeds as it did then."""
        embed = model.embed_text(self._check_text)
        return embed.shape == self._check_embed.shape and float(embed @ self._check_embed) > MIN_COSINE_OF_SAME_MODEL

    def nearest(self, query: np.ndarray, num_cases: int) -> list[Case]:
        """The cases whose cosine with the query (D,) is highest, best first."""
        scores = self._embeds @ query
        order = np.argsort(-scores, kind="stable")[:num_cases]
        return [Case(float(scores[i]), self._texts[i], self._tile(int(i))) for i in order]

    def _tile(self, index: int) -> Image.Image:
        side = self._side_px
        left, top = index % self._columns * side, index // self._columns * side
        return self._atlas.crop((left, top, left + side, top + side))


def _unit(vector: torch.Tensor) -> np.ndarray:
    """The vector at length 1, float32."""
    return torch.nn.functional.normalize(vector.float(), dim=-1).numpy()
