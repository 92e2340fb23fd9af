"""All kinds of source by name, and the opening of one or several at a root."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.sources import Source, SourceAbout

# One module of this folder each, with `ABOUT` and `open_sources(root, *, index_folder=None, **options)`.
SOURCE_NAMES = (
    "phantom",
    "jsonl",
    "coco",
    "voc",
    "yolo",
    "mask_folder",
    "vindr_cxr",
    "rsna_pneumonia",
    "nih_bbox",
    "ms_cxr",
    "chest_imagenome",
    "padchest_gr",
    "deeplesion",
    "slake",
    "vqa_rad",
    "rocov2",
    "medtrinity",
)


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source to be opened: its kind, its root (None for drawn sources) and its options as texts."""

    name: str
    root: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def parse_source_spec(text: str, root: str | None) -> SourceSpec:
    """The spec that `--source NAME[:key=value,...]` and `--root FOLDER` give.

    Raises:
        ValueError: an unknown name or option, an option without value or given twice, a missing or needless root.
    """
    name, _, rest = text.partition(":")
    about = about_source(name)
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in about.options or not equals or not value or key in options:
            known = ", ".join(about.options) or "none"
            raise ValueError(
                f"Source {text!r}: {part!r} is no option of {name}; its options are {known}, each once as key=value. "
                "Correct it."
            )
        options[key] = value
    if name == "phantom" and root is not None:
        raise ValueError(f"Source {text!r} is drawn and takes no root, and root is {root!r}. Leave it out.")
    if name != "phantom" and root is None:
        raise ValueError(f"Source {text!r} needs a root that holds {about.layout}. Add --root FOLDER.")
    return SourceSpec(name, root, tuple(options.items()))


def about_source(name: str) -> SourceAbout:
    """What is known of the kind of source; ValueError for an unknown name."""
    return _module(name).ABOUT


def open_sources_of(spec: SourceSpec, *, index_folder: Path | None = None) -> list[Source]:
    """The sources at the spec's root: one, or several where a jsonl root is a folder of source folders.

    Args:
        spec: what to open.
        index_folder: where the sources keep, or find again, the indexes of their rows; None: temporary files.
    """
    module = _module(spec.name)
    options: dict[str, Any] = dict(spec.options)
    if index_folder is not None:
        index_folder.mkdir(parents=True, exist_ok=True)
    return module.open_sources(spec.root, index_folder=index_folder, **options)


def _module(name: str) -> Any:
    """The module of a kind of source."""
    if name not in SOURCE_NAMES:
        raise ValueError(
            f"Source {name!r} is unknown; the sources are {', '.join(SOURCE_NAMES)}. `regionmed-corpus list` tells "
            "about each."
        )
    return importlib.import_module(f"regionmed_clip.processing.corpus.sources.{name}")
