"""What the sources share in reading files: safe paths, images, CSV rows, boxes, and hashes of annotation files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from regionmed_clip.processing.mask_codes import ROUNDING_PIXELS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
MAX_NAME_BYTES = 255  # of a file, with which the common file systems agree
Box = tuple[float, float, float, float]

_END_OF_JPEG, _END_OF_PNG = b"\xff\xd9", b"IEND\xaeB`\x82"
_PIECE_BYTES = 1 << 20
_TAIL_BYTES = 64  # some writers pad the file after the end marker
_SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF: shown with width and height exchanged


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A verified image: its path or its encoded bytes, its size as shown, the sha256 of the bytes, and its window.

    `window` is (low, high) in stored pixel values, shown as black and white; None for 8-bit images.
    """

    content: str | bytes
    width: int
    height: int
    sha256: str
    window: tuple[float, float] | None = None


def open_image_file(path: Path, size: tuple[int, int] | None = None) -> ImageFile:
    """The image at `path`, whose bytes enter the corpus as they are, after checking that it is whole.

    The header is read and the end marker looked for; only a file without the marker in its tail is decoded.

    Args:
        path: a JPEG, PNG or other file that Pillow reads.
        size: (width, height) that an annotation states; a difference is refused, since the boxes would be off.

    Raises:
        ValueError: the file is missing, broken or of another size.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; every annotated image needs its file. Restore it or drop its rows.")
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            width, height = image.size[::-1] if orientation in _SWAPPED_ORIENTATIONS else image.size
            if not _has_end_marker(content, image.format):
                image.load()
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be decoded ({error}; {len(content)} bytes); an image file must be whole. "
            "Fetch it again or drop its row."
        ) from error
    if size is not None and size != (width, height):
        raise ValueError(
            f"{path} is {width}x{height} pixels and its row says {size[0]}x{size[1]}; they must agree, "
            "or the boxes are off. Correct width and height, and scale the boxes if the image was resized."
        )
    return ImageFile(str(path), width, height, hashlib.sha256(content).hexdigest())


def path_inside(root: Path, name: str) -> Path:
    """The path of `name` under `root`, links resolved; ValueError where it leads outside or can name no file."""
    try:
        is_too_long = any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in Path(name).parts)
        path = (root / name).resolve()
    except ValueError as error:
        raise ValueError(f"{name!r} names no file ({error}); correct the row.") from error
    if is_too_long:
        raise ValueError(f"{name!r:.99} names no file: a part of it has more than {MAX_NAME_BYTES} bytes. Correct it.")
    if not path.is_relative_to(root.resolve()):
        raise ValueError(
            f"{name!r} leads to {path}; files of a source must lie within {root}, links included. "
            "Copy the file into the folder."
        )
    return path


def read_csv_rows(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str] | None, str]]:
    """(line number, fields, "") of every row of a CSV file with a header; (line, None, why) for a row that is broken.

    Raises:
        ValueError: the file is missing, is no UTF-8 text, or its header lacks one of `columns`.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; the source needs it. Restore it or check the root.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise ValueError(
                    f"{path} has the columns {', '.join(header)} and lacks {', '.join(missing)}; it must have the "
                    "columns of the source's own release. Fetch the file again."
                )
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    reason = f"has {len(values)} fields and the header {len(header)}; every row has all. Correct it."
                    yield reader.line_num, None, reason
                    continue
                yield reader.line_num, dict(zip(header, (value.strip() for value in values))), ""
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is no UTF-8 CSV text ({error}); fetch or convert the file again.") from error


def load_json(path: Path) -> Any:
    """What the JSON file at `path` holds; ValueError where it is missing or no JSON."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; the source needs it. Restore it or check the root.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both
        raise ValueError(f"{path} is no JSON ({error}); fetch the file again.") from error


def list_images(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The image files under `folder` at any depth, sorted by their path."""
    wanted = tuple(suffixes)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in wanted and path.is_file())


def parse_number(text: str, name: str) -> float:
    """The finite number in `text`; ValueError naming the field."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {text!r}; it must be a finite number. Correct or drop the row.")
    return number


def fit_box(box: Box, width: int, height: int) -> Box:
    """`box` (x0, y0, x1, y1) in pixels, clipped where it sticks out of the image by rounding; else unchanged.

    A box further out is left for `StudyRecord.check` to refuse: it belongs to another image or another frame.
    """
    x0, y0, x1, y1 = box
    slack = ROUNDING_PIXELS
    if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        return box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def hash_of_files(root: Path, paths: Iterable[Path]) -> str:
    """The first 12 hex digits of a sha256 over the names (relative to `root`) and contents of annotation files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(root).as_posix().encode(errors="surrogateescape"))
        digest.update(bytes.fromhex(sha256_of_file(path)))
    return digest.hexdigest()[:12]


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _has_end_marker(content: bytes, image_format: str | None) -> bool:
    """True where the last bytes hold the end marker of a JPEG or PNG file."""
    marker = {"JPEG": _END_OF_JPEG, "PNG": _END_OF_PNG}.get(image_format or "")
    return marker is not None and marker in content[-_TAIL_BYTES:]
