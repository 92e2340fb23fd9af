"""Data specs, the strings by which recipes and commands name data: `phantom[:key=value,...]` and `jsonl:FOLDER`.

Reading goes through the `datasets` builder (`stream_examples`) or straight from the sources (`open_sources`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regionmed_clip.processing.corpus.sources import Source

if TYPE_CHECKING:
    import datasets

PHANTOM_OPTIONS: dict[str, type[int] | type[float]] = {
    "num_train": int,
    "num_test": int,
    "seed": int,
    "difficulty": float,
}
FORMS = "phantom[:key=value,...] or jsonl:FOLDER"


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A parsed spec: its kind with the options given (phantom) or the folder (jsonl); `str` writes it again."""

    kind: str
    options: tuple[tuple[str, int | float], ...] = ()
    folder: str | None = None

    def __str__(self) -> str:
        if self.kind == "jsonl":
            return f"jsonl:{self.folder}"
        options = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.kind}:{options}" if options else self.kind


def parse_data_spec(text: str) -> DataSpec:
    """The spec that `text` writes; ValueError for an unknown form, key or value. A jsonl folder is not opened yet."""
    kind, _, rest = text.strip().partition(":")
    if kind == "phantom":
        return DataSpec("phantom", options=_parse_options(text, rest))
    if kind == "jsonl":
        if not rest:
            raise ValueError(
                f"Data {text!r} names no folder; the form is jsonl:FOLDER. Write e.g. data=jsonl:../shared/data."
            )
        return DataSpec("jsonl", folder=rest)
    if (Path(text) / "manifest.json").is_file():
        raise ValueError(
            f"Data {text!r} is a built corpus folder; this version reads {FORMS} only. "
            "Name the jsonl sources from which it was built."
        )
    raise ValueError(f"Data {text!r} has no known form; data is {FORMS}. Put the form's name before the first colon.")


def open_sources(spec: DataSpec | str, *, with_masks: bool = False) -> list[Source]:
    """The sources of `spec` in their order; `with_masks` makes jsonl sources read their mask files too."""
    spec = _as_spec(spec)
    if spec.kind == "phantom":
        from regionmed_clip.processing.corpus.sources.phantom import PhantomSource

        return [PhantomSource(**dict(spec.options))]
    from regionmed_clip.processing.corpus.sources.jsonl import open_jsonl

    return list(open_jsonl(spec.folder, with_masks=with_masks))


def stream_examples(
    spec: DataSpec | str,
    split: str,
    *,
    decode_images: bool = True,
    with_masks: bool = False,
    num_shards: int = 8,
) -> datasets.IterableDataset:
    """The examples of `split` as a stream, sources one after the other, each in its own order.

    An example holds the fields of a StudyRecord with `image` as a PIL image (`decode_images=False`: a dict of `bytes`
    and `path`, exactly one of them filled), plus `caption_key` and per region `key` and `mask` (see medregion.py).

    Raises:
        ValueError: a bad spec or folder; a split that no source has. While reading: a bad record.
    """
    from regionmed_clip.processing.corpus.medregion import MedRegion

    spec = _as_spec(spec)
    _sources_with(spec, split)  # before the library, whose own message would not name the sources
    chosen = dict(spec.options) if spec.kind == "phantom" else {"data_dir": spec.folder, "with_masks": with_masks}
    with tempfile.TemporaryDirectory(
        prefix="medregion-"
    ) as cache_dir:  # the builder insists on one; a stream writes nothing
        builder = MedRegion(
            config_name=spec.kind, cache_dir=cache_dir, num_blocks=num_shards, decode_images=decode_images, **chosen
        )
        return builder.as_streaming_dataset(split=split)


def num_examples(spec: DataSpec | str, split: str) -> int:
    """Number of examples that `stream_examples` gives for `split`."""
    return sum(source.num_records(split) for source in _sources_with(spec, split))


def data_revision(spec: DataSpec | str) -> str:
    """The revisions of all sources, "bccd@86d76509d187+ct_ich@d3a35ebeddd2"."""
    return "+".join(f"{source.name}@{source.revision}" for source in open_sources(spec))


def split_sha256(spec: DataSpec | str, split: str) -> str:
    """Hash of the ordered (image_id, sha256 of the image) pairs of `split`; it reads, or draws, every image once."""
    records = (record for source in _sources_with(spec, split) for record in source.records(split))
    return hash_images((record.image_id, record.sha256) for record in records)


def hash_images(images: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of ordered (image_id, sha256 of the image) pairs, the identity of a split."""
    digest = hashlib.sha256()
    for image_id, sha256 in images:
        digest.update(f"{image_id}\t{sha256}\n".encode())
    return digest.hexdigest()


def _sources_with(spec: DataSpec | str, split: str) -> list[Source]:
    """The sources of `spec` that have `split`; ValueError if none has."""
    sources = open_sources(spec)
    chosen = [source for source in sources if split in source.splits()]
    if not chosen:
        known = "; ".join(f"{source.name}: {', '.join(source.splits())}" for source in sources)
        raise ValueError(f"Data {str(spec)!r} has no split {split!r}; it has {known}. Ask for one of these.")
    return chosen


def _as_spec(spec: DataSpec | str) -> DataSpec:
    return parse_data_spec(spec) if isinstance(spec, str) else spec


def _parse_options(text: str, rest: str) -> tuple[tuple[str, int | float], ...]:
    """The options of a phantom spec in the order of PHANTOM_OPTIONS."""
    options: dict[str, int | float] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in PHANTOM_OPTIONS or not equals:
            known = ", ".join(PHANTOM_OPTIONS)
            raise ValueError(
                f"Data {text!r}: {item!r} is no option of phantom; the options are {known}, as key=value. Correct it."
            )
        if name in options:
            raise ValueError(f"Data {text!r}: {name} is given twice; an option has one value. Keep one.")
        options[name] = _parse_value(text, name, value)
    return tuple((name, options[name]) for name in PHANTOM_OPTIONS if name in options)


def _parse_value(text: str, name: str, value: str) -> int | float:
    """The number that an option gives; all options are non-negative, and difficulty is at most 1."""
    wanted = PHANTOM_OPTIONS[name]
    try:
        number = wanted(value)
    except ValueError:
        number = -1
    if not 0 <= number <= (1 if name == "difficulty" else float("inf")):
        rule = "a number from 0 to 1" if name == "difficulty" else "a whole number from 0"
        raise ValueError(f"Data {text!r}: {name} is {value!r}; it must be {rule}. Correct it.")
    return number
