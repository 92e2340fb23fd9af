"""RegionMed-CLIP by onnxruntime, without torch: needs numpy, Pillow, tokenizers and onnxruntime, and the folder beside.

    python onnx_inference.py picture.png --labels "left pleural effusion" "no finding" --box 99 94 129 139

prints how well each label fits the picture and the region in the box. As a library:

    model = OnnxModel("FOLDER")
    model.embed_images([image]); model.embed_texts(["left pleural effusion"]); model.embed_regions(image, [box])

Pictures are of 8 bits and shown as they are; DICOM, 16-bit and volumes must be windowed to 8 bits first, by the
"window" of export.json where the model was saved with one. Boxes are (x0, y0, x1, y1) in pixels of the picture as
displayed, half-open. Not a medical device.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

SETTINGS_NAME = "export.json"
PICTURE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@dataclass(frozen=True)
class Placement:
    """How a picture lies in the frame: resized to `resized`, its corner at `offset`; all (width, height) or (x, y)."""

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    frame: tuple[int, int]

    def to_frame(self, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """(R, 4) float32 fractions of the frame; ValueError for a box that is empty or lies outside the picture."""
        pixel = np.asarray(boxes, dtype=np.float64)
        if pixel.ndim != 2 or pixel.shape[1] != 4 or not np.isfinite(pixel).all():
            raise ValueError(f"boxes are {boxes}; each must be four finite numbers x0 y0 x1 y1.")
        size = np.array(self.original * 2, dtype=np.float64)
        inside = np.clip(pixel, 0, size)
        for box, (x0, y0, x1, y1) in zip(pixel, inside):
            if not (x1 > x0 and y1 > y0) or (box < -0.5).any() or (box > size + 0.5).any():
                raise ValueError(
                    f"box {box.tolist()} is empty or outside the picture of {self.original[0]} x {self.original[1]} "
                    "pixels; give x0 y0 x1 y1 in pixels of the original."
                )
        scale = np.array([self.resized[0] / self.original[0], self.resized[1] / self.original[1]] * 2)
        moved = inside * scale + np.array(self.offset * 2)
        fractions = np.clip(moved / np.array(self.frame * 2), 0.0, 1.0).astype(np.float32)
        for box, seen in zip(pixel, fractions):
            if not (seen[2] > seen[0] and seen[3] > seen[1]):
                raise ValueError(f"box {box.tolist()} lies outside what this model sees, which crops pictures.")
        return fractions


class OnnxModel:
    """The graphs of an exported folder.

    Args:
        folder: of `regionmed-export --format onnx`.
        is_int8: take the 8-bit graphs, where the folder has them.
        num_threads: of onnxruntime; 0: as many as there are cores.
    """

    def __init__(self, folder: str | Path, *, is_int8: bool = False, num_threads: int = 0):
        self.folder = Path(folder)
        self.settings = json.loads((self.folder / SETTINGS_NAME).read_text(encoding="utf-8"))
        self._files = self.settings["int8_files" if is_int8 else "files"]
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = num_threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._tokenizer = self._open_tokenizer()

    def frame(self, picture: Image.Image) -> tuple[np.ndarray, Placement]:
        """(3, H, W) float32 pixel values of a picture, and how it lies in the frame."""
        frame = self.settings["image"]
        picture = _as_levels(picture, frame["window"])
        placement = _place(picture.size, frame)
        if placement.resized != picture.size:
            picture = picture.resize(placement.resized, resample=frame["resample"])
        levels = np.asarray(picture)
        levels = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
        width, height = placement.frame
        left, top = placement.offset
        right, bottom = left + placement.resized[0], top + placement.resized[1]
        pixels = np.zeros((3, height, width), dtype=np.float32)
        seen = levels[:, max(0, -top) : height - top, max(0, -left) : width - left]
        pixels[:, max(0, top) : min(height, bottom), max(0, left) : min(width, right)] = seen
        scale, shift = (np.array(frame[name], dtype=np.float32).reshape(3, 1, 1) for name in ("scale", "shift"))
        return pixels * scale + shift, placement

    def tokenize(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """input_ids and attention_mask (T, L) int64."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64)}

    def embed_images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(B, D) float32 of unit length; B may be 0."""
        if not len(pictures):
            return self._no_embeddings()
        return self.run("image", pixel_values=np.stack([self.frame(one)[0] for one in pictures]))["image_embeds"]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 of unit length; T may be 0."""
        if not len(texts):
            return self._no_embeddings()
        return self.run("text", **self.tokenize(texts))["text_embeds"]

    def embed_regions(self, picture: Image.Image, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """(R, D) float32 of unit length, of the regions of one picture; R may be 0."""
        if not len(boxes):
            return self._no_embeddings()
        pixels, placement = self.frame(picture)
        region_boxes = placement.to_frame(boxes)[None]  # (1, R, 4)
        region_mask = np.ones(region_boxes.shape[:2], dtype=bool)
        found = self.run("regions", pixel_values=pixels[None], region_boxes=region_boxes, region_mask=region_mask)
        return found["region_embeds"][0]

    def classify(self, embeds: np.ndarray, labels: Sequence[str], term: str) -> np.ndarray:
        """(N, T) probabilities of the labels for embeddings (N, D) of images or regions.

        Args:
            term: "image_text" for images, "region_text" for regions.
        """
        logits = embeds @ self.embed_texts(labels).T * self.settings["scales"][term]
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def run(self, path: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that the graph of "image", "text" or "regions" gives, by name."""
        if path not in self._sessions:
            file = str(self.folder / self._files[path])
            self._sessions[path] = onnxruntime.InferenceSession(file, self._options, providers=["CPUExecutionProvider"])
        session = self._sessions[path]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs)))

    def _no_embeddings(self) -> np.ndarray:
        """(0, D) float32."""
        return np.zeros((0, self.settings["projection_dim"]), dtype=np.float32)

    def _open_tokenizer(self) -> Tokenizer:
        text: dict[str, Any] = self.settings["text"]
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = text["splits_special_tokens"]  # then "[SEP]" in a text is five characters
        tokenizer.no_truncation()
        if text["max_length"] is not None:
            tokenizer.enable_truncation(text["max_length"])
        length = text["max_length"] if text["pads_to_full_length"] else None
        tokenizer.enable_padding(
            pad_id=text["pad_id"], pad_token=text["pad_token"], length=length, direction=text["padding_side"]
        )
        return tokenizer


def _as_levels(picture: Image.Image, window: Any) -> Image.Image:
    """The picture upright, in mode "L" or "RGB", transparency over black; `window` is the model's, or None."""
    if picture.mode not in PICTURE_MODES:
        own = "" if window is None else f" (this model was saved with the window {window} of CT)"
        raise ValueError(f"the picture has mode {picture.mode!r}, more than 8 bits; window it to 8 bits first{own}.")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _place(size: tuple[int, int], frame: dict[str, Any]) -> Placement:
    """How a picture of `size` (width, height) lies in the frame: whole on black, or as the source checkpoint crops."""
    width, height = frame["width"], frame["height"]
    if frame["resized_to"] is not None:  # squashed
        resized = tuple(frame["resized_to"])
    elif frame["shortest_edge"] is not None:
        edge, stretched = frame["shortest_edge"], int(frame["shortest_edge"] * max(size) / min(size))
        resized = (edge, stretched) if size[0] <= size[1] else (stretched, edge)
    else:
        scale = min(width / size[0], height / size[1])
        resized = (max(1, min(width, round(size[0] * scale))), max(1, min(height, round(size[1] * scale))))
    rounded = round if frame["crop_rounding"] == "half_even" else math.floor
    offset = (-rounded((resized[0] - width) / 2), -rounded((resized[1] - height) / 2))
    return Placement(size, (resized[0], resized[1]), offset, (width, height))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after a message on what was wrong with the input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", help="a picture of 8 bits")
    parser.add_argument("--labels", nargs="+", required=True, help="texts among which to choose")
    parser.add_argument("--box", nargs=4, type=float, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--folder", default=Path(__file__).parent, help="of the graphs (default: beside this file)")
    parser.add_argument("--int8", action="store_true", help="the 8-bit graphs")
    options = parser.parse_args(arguments)
    try:
        model = OnnxModel(options.folder, is_int8=options.int8)
        with Image.open(options.picture) as picture:
            picture.load()
            found = [("picture", model.classify(model.embed_images([picture]), options.labels, "image_text")[0])]
            if options.box:
                regions = model.classify(model.embed_regions(picture, options.box), options.labels, "region_text")
                found += [(f"box {' '.join(f'{v:g}' for v in box)}", one) for box, one in zip(options.box, regions)]
    except (ValueError, OSError, KeyError) as error:
        parser.exit(2, f"error: {error}\n")
    for what, probabilities in found:
        shown = ", ".join(f"{label} {p:.3f}" for label, p in zip(options.labels, probabilities.tolist()))
        print(f"{what}: {shown}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
