"""What the exports share: safe and unique names for image files, and the fields of a row without its image."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_IMAGES = "images"
MAX_PART = 120  # letters of a folder or file name


def source_folder(source: str) -> str:
    """The name of a source as that of a folder."""
    return _safe_part(source)


def image_suffix(row: dict[str, Any]) -> str:
    """The suffix of a row's image file, by the name that the build gave it after looking at its bytes."""
    return PurePosixPath(row["image"]["path"] or "").suffix.lower() or ".img"


def image_name(row: dict[str, Any]) -> str:
    """The path of a row's image below the folder of its source's images, without the source's own "images/".

    It keeps the name by which the source knows the image; what no file system would take is replaced.
    """
    key = row["image_id"].removeprefix(f"{row['source']}/")
    parts = [_safe_part(part) for part in key.split("/") if part not in ("", ".", "..")]
    parts = parts[1:] if len(parts) > 1 and parts[0] == _IMAGES else parts
    name, suffix = "/".join(parts) or "image", image_suffix(row)
    is_named = name.lower().endswith((suffix, ".jpeg") if suffix == ".jpg" else suffix)
    return name if is_named else name + suffix


def write_image(folder: Path, row: dict[str, Any]) -> str:
    """The path below `folder` at which the image of a row was written; of two with one name the second gets a hash."""
    path = folder / image_name(row)
    if path.exists():
        path = path.with_name(f"{path.stem}-{hashlib.sha256(row['image_id'].encode()).hexdigest()[:12]}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row["image"]["bytes"])
    return path.relative_to(folder).as_posix()


def fields_without_image(row: dict[str, Any]) -> dict[str, Any]:
    """Everything of a row but its image bytes, as JSON can hold it."""
    return {name: value for name, value in row.items() if name != "image"}


def _safe_part(part: str) -> str:
    """One part of a path that every file system takes; a changed one gets a hash, so that two stay two."""
    safe = _UNSAFE.sub("_", part)[:MAX_PART].strip(".") or "_"
    return safe if safe == part else f"{hashlib.sha256(part.encode()).hexdigest()[:8]}-{safe}"
