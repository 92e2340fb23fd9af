"""Which models a command line compares, and how each of them reads a region.

`[NAME=]FOLDER[:READING][:pad]`. READING is one of `region_readings.READINGS`; without one our own models are read by
their ROI processor and checkpoints of others by "crop", as their region path has learnt nothing. `:pad` shows a
checkpoint of others the whole image, with black bars, where its own processor would crop (docs/starts.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionmed_clip.eval.saved_models import OWN_KIND, kind_of_folder
from regionmed_clip.eval.tasks.region_readings import READINGS, TRAINED_READING, TRAINING_FREE

FORM = "[NAME=]FOLDER[:READING][:pad]"
OWN_NAME = "regionmed-clip"
READING_OF_OTHERS = "crop"
OWN_GEOMETRY = "own"
_PAD = "pad"


@dataclass(frozen=True)
class ModelEntry:
    """One model of a comparison.

    Attributes:
        name: by which Results call it.
        folder: where it is saved.
        kind: what the folder holds, see `kind_of_folder`.
        reading: how it reads a region.
        geometry: "own" for a RegionMedClipModel; "source" or "pad" for a checkpoint of others.
    """

    name: str
    folder: Path
    kind: str
    reading: str
    geometry: str

    @property
    def has_trained_regions(self) -> bool:
        """Whether regions are read by a trained ROI processor, as far as the folder tells."""
        return self.reading == TRAINED_READING

    @property
    def protocol(self) -> dict[str, str]:
        """What the protocol of each of its figures says of it."""
        return {"checkpoint": self.kind, "geometry": self.geometry, "reading": self.reading}


def parse_entries(texts: Sequence[str], baselines: Sequence[str] = ()) -> list[ModelEntry]:
    """The models of a command line, each training-free reading of the first one right after it as "NAME:READING".

    Args:
        texts: entries of the form FORM.
        baselines: readings of the first model, none of them the trained one.

    Raises:
        ValueError: for a folder without a model, an unknown reading, a trained reading of an untrained region path, and
            a name that is given twice.
    """
    unknown = [name for name in baselines if name not in TRAINING_FREE]
    if unknown:
        raise ValueError(f"baselines {unknown} are not known; choose from {', '.join(TRAINING_FREE)}.")
    if not texts:
        raise ValueError(f"no model is given; give at least one as {FORM}.")
    entries = [_parse_entry(text) for text in texts]
    first = entries[0]
    added = [
        ModelEntry(f"{first.name}:{reading}", first.folder, first.kind, reading, first.geometry)
        for reading in dict.fromkeys(baselines)
        if reading != first.reading
    ]
    entries[1:1] = added
    names = [entry.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"model names {repeated} are given twice; name each model: --model first=FOLDER second=FOLDER."
        )
    return entries


def parse_training_images(texts: Sequence[str], entries: Sequence[ModelEntry]) -> dict[Path, Path]:
    """Folder of a model -> the list of its training images, of the texts `[NAME=]FILE`.

    Raises:
        ValueError: for a name that no model has, a file without a name where there are several models, and a model that
            is given two.
    """
    folders = {entry.name: entry.folder for entry in entries}
    found: dict[Path, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals:
            name, place = entries[0].name, text
            if len(set(folders.values())) > 1:
                raise ValueError(f"--training-images {text!r}: of which model? Give NAME={text}, {_one_of(folders)}.")
        if name not in folders or not place:
            raise ValueError(f"--training-images {text!r}: the form is [NAME=]FILE, {_one_of(folders)}.")
        if folders[name] in found:
            raise ValueError(f"--training-images: the model {name!r} is given two lists; give one.")
        found[folders[name]] = Path(place)
    return found


def _one_of(names: Iterable[str]) -> str:
    """The choice of a name in words."""
    return f"NAME one of {', '.join(names)}"


def _parse_entry(text: str) -> ModelEntry:
    """The model that one text names."""
    name, equals, place = text.partition("=")
    if not equals:
        name, place = "", text
    if equals and (not name or not place):
        raise ValueError(f"model {text!r} has no {'name' if not name else 'folder'}; the form is {FORM}.")
    place, is_padded = _without_suffix(place, (_PAD,))
    place, reading = _without_suffix(place, READINGS)
    before, _, suffix = place.rpartition(":")
    if before and Path(before).is_dir() and not Path(place).exists():
        raise ValueError(f"model {text!r}: {suffix!r} is no reading; choose from {', '.join(READINGS)}, or :{_PAD}.")
    folder = Path(place)
    kind = kind_of_folder(folder)
    is_own = kind == OWN_KIND
    if is_padded and is_own:
        raise ValueError(f"model {text!r} is our own and always shows whole images; leave ':{_PAD}' out.")
    if reading == TRAINED_READING and not is_own:
        raise ValueError(
            f"model {text!r}: the region path of a {kind} checkpoint has learnt nothing; choose a training-free "
            f"reading, one of {', '.join(TRAINING_FREE)}."
        )
    reading = reading or (TRAINED_READING if is_own else READING_OF_OTHERS)
    geometry = OWN_GEOMETRY if is_own else (is_padded or "source")
    return ModelEntry(name or (OWN_NAME if is_own else folder.resolve().name), folder, kind, reading, geometry)


def _without_suffix(text: str, suffixes: Sequence[str]) -> tuple[str, str]:
    """(the text before ":SUFFIX", SUFFIX) for one of the suffixes at its end; (the text, "") without one."""
    place, colon, suffix = text.rpartition(":")
    return (place, suffix) if colon and place and suffix in suffixes else (text, "")
