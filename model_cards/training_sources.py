"""What a card says of the images that a model was trained on, from training_data.json: sources and licences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regionmed_clip.processing.corpus.licences import may_redistribute
from regionmed_clip.processing.corpus.phantoms.study import LICENSE as PHANTOM_LICENSE
from regionmed_clip.processing.corpus.phantoms.study import SOURCE_NAME as PHANTOM

NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class TrainingSource:
    """One source of training images; `licenses` is empty where training_data.json, written earlier, names none."""

    name: str
    num_images: int
    licenses: tuple[str, ...]

    @property
    def license_text(self) -> str:
        """Its licences for a person."""
        return ", ".join(self.licenses) or NOT_RECORDED

    @property
    def is_open(self) -> bool:
        """Whether every image of it may be passed on by anyone; False where that is unknown."""
        return bool(self.licenses) and all(may_redistribute(name) for name in self.licenses)


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """All sources, the largest first; `unknown` says what is not known of the checkpoint it started from, or is ""."""

    sources: tuple[TrainingSource, ...]
    num_images: int
    num_patients: int  # that are named; of images without an id none
    unknown: str

    @property
    def closed(self) -> tuple[TrainingSource, ...]:
        """Those whose images may not be passed on, or of which that is unknown."""
        return tuple(source for source in self.sources if not source.is_open)


def read_training_images(training_data: Mapping[str, Any]) -> TrainingImages:
    """What a training_data.json (train/training_data.py) says of its images, those of the start included.

    Raises:
        ValueError: it has no list of images; then it is not what training writes.
    """
    images, start = training_data.get("images"), training_data.get("start") or {}
    if not isinstance(images, Mapping) or not isinstance(images.get("num_images"), int):
        raise ValueError(
            f"training_data.json says of its images {images!r}; it must have num_images. Take the file that training "
            "wrote, or leave it out."
        )
    try:
        licenses = _licenses([*training_data.get("data", ()), *start.get("data", ())])
        counts = sorted(images.get("sources", {}).items(), key=lambda item: (-item[1], item[0]))
        sources = tuple(TrainingSource(name, number, tuple(sorted(licenses.get(name, ())))) for name, number in counts)
        return TrainingImages(sources, images["num_images"], images.get("num_patients", 0), start.get("unknown") or "")
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"training_data.json is not of the form that training writes ({error!r}); take it from the run again, or "
            "leave it out."
        ) from error


def _licenses(parts: list[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Source -> its licences; phantoms are drawn by this package, so theirs is known in any case."""
    found: dict[str, set[str]] = {}
    for part in parts:
        if part.get("kind") == PHANTOM:
            found.setdefault(PHANTOM, set()).add(PHANTOM_LICENSE)
        for source in part.get("sources", ()):
            found.setdefault(source["name"], set()).add(source["license"])
    return found
