"""What a visitor gives -> a picture, boxes and texts within the limits of the demo; a refusal is a readable line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]

MAX_SIDE_PX = 1600  # a larger picture is made smaller; the models see far less
MAX_BOXES = 12
MAX_TEXTS = 24
MAX_TEXT_LENGTH = 300
MAX_FRAMES = 1_000_000
AS_STORED, OF_MODEL = "as the file says", "the model's own"
WINDOWS = (AS_STORED, "lung", "mediastinum", "abdomen", "bone", "brain", "subdural")
_WORDS_FOR_VISITORS = (  # parts of messages that speak to programmers, and what the page says instead
    (r" \(cannot identify image file <.*?>\)", ""),
    (r" If you trust it, raise PIL\.Image\.MAX_IMAGE_PIXELS; or .*", " Make it smaller."),
    (r"by (frame|slice)_index=(\d+) to \1_index=(\d+)", r'by "Frame or slice" under Options, \2 to \3'),
    (r"(frame|slice)_index", '"Frame or slice" under Options'),
)


def open_picture(
    path: Path,
    read_image: Callable[..., Image.Image],
    window: str = AS_STORED,
    number: float | None = None,
    model_window: Any = None,
) -> tuple[Image.Image, str]:
    """The RGB picture of an uploaded file, no side above MAX_SIDE_PX, and a line that says what it is.

    Args:
        path: PNG, JPEG, TIFF, WebP, DICOM or NIfTI file.
        read_image: of the model's own files, `medical_image.read_image`.
        window: name of a CT window, AS_STORED, or OF_MODEL: `model_window`, but as stored where that does not fit.
        number: which frame of a file with several, or which slice of a volume, from 0; None: the file has only one.
        model_window: the window that was saved with the model.

    Raises:
        ValueError: it cannot be read; the message names the file as the visitor knows it.
        ImportError: a reader is not installed.
    """
    options: dict[str, Any] = {} if window in (AS_STORED, OF_MODEL) else {"window": window}
    if number is not None:
        if not isinstance(number, (int, float)) or not 0 <= number < MAX_FRAMES or number != int(number):
            raise ValueError(f'"Frame or slice" under Options is {str(number)[:40]}; it must be a whole number from 0.')
        is_volume = path.name.lower().endswith((".nii", ".nii.gz"))
        options["slice_index" if is_volume else "frame_index"] = int(number)
    try:
        picture, through = _read(path, read_image, model_window if window == OF_MODEL else None, options)
    except (ValueError, ImportError) as error:
        raise type(error)(_for_visitors(str(error), path)) from error
    size = f"{picture.width} x {picture.height} pixels{through}"
    if max(picture.size) <= MAX_SIDE_PX:
        return picture, f"{path.name}: {size}."
    scale = MAX_SIDE_PX / max(picture.size)
    smaller = picture.resize(tuple(max(1, round(side * scale)) for side in picture.size), Image.Resampling.BICUBIC)
    return smaller, f"{path.name}: {size}, shown and read at {smaller.width} x {smaller.height}."


def _read(
    path: Path, read_image: Callable[..., Image.Image], model_window: Any, options: dict[str, Any]
) -> tuple[Image.Image, str]:
    """The picture, and in words the window of the model through which it is shown; "" where it does not fit."""
    if model_window is not None:
        with suppress(ValueError):  # no such values in it; what else is wrong with the file, the next line says too
            return read_image(path, "the file", window=model_window, **options), f" through the window {model_window}"
    return read_image(path, "the file", **options), ""


def _for_visitors(message: str, path: Path) -> str:
    """The message without the server's folders, and with the names of the page's own fields."""
    message = message.replace(f"the file ({path})", path.name).replace(str(path), path.name)
    for pattern, words in _WORDS_FOR_VISITORS:
        message = re.sub(pattern, words, message)
    return message


def check_boxes(payload: Any, width: int, height: int) -> list[Box]:
    """The boxes that the page sent, clipped to the picture.

    Raises:
        ValueError: too many, or something that is no box inside the picture.
    """
    boxes = payload.get("boxes") if isinstance(payload, dict) else None
    if not isinstance(boxes, list):
        raise ValueError("The page sent no list of boxes; reload it.")
    if len(boxes) > MAX_BOXES:
        raise ValueError(f"There are {len(boxes)} boxes; the demo reads at most {MAX_BOXES}. Delete some.")
    return [_check_box(box, i + 1, width, height) for i, box in enumerate(boxes)]


def _check_box(box: Any, number: int, width: int, height: int) -> Box:
    is_four = isinstance(box, (list, tuple)) and len(box) == 4
    if not is_four or not all(isinstance(v, (int, float)) and abs(v) <= sys.float_info.max for v in box):
        raise ValueError(f"Box {number} is {str(box)[:80]}; it must be four numbers x0, y0, x1, y1 in pixels.")
    x0, y0, x1, y1 = (float(value) for value in box)
    x0, x1 = max(0.0, min(x0, width)), max(0.0, min(x1, width))
    y0, y1 = max(0.0, min(y0, height)), max(0.0, min(y1, height))
    least = max(width, height) / 500  # below it a box is a slip of the hand
    if x1 - x0 < least or y1 - y0 < least:
        raise ValueError(f"Box {number} has no area inside the picture of {width} x {height} pixels. Draw it larger.")
    return x0, y0, x1, y1


def check_texts(raw: str | None) -> list[str]:
    """The texts of a field with one a line, each once, blank lines left out.

    Raises:
        ValueError: fewer than two, too many, or one too long.
    """
    texts = list(dict.fromkeys(line.strip() for line in (raw or "").splitlines() if line.strip()))
    if len(texts) < 2:
        raise ValueError("Give at least two texts to compare, one a line; with one alone every box would fit it.")
    if len(texts) > MAX_TEXTS:
        raise ValueError(f"There are {len(texts)} texts; the demo compares at most {MAX_TEXTS}. Delete some.")
    for text in texts:
        check_text(text)
    return texts


def check_text(raw: str | None) -> str:
    """One text without spaces around it; ValueError for none, or one too long."""
    text = " ".join((raw or "").split())
    if not text:
        raise ValueError("Write a text first, for instance: small nodule in the right upper zone of the lung.")
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError(f"A text has {len(text)} characters; at most {MAX_TEXT_LENGTH} are read. Shorten it.")
    return text
