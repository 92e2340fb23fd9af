"""Data specs, the strings by which recipes and commands name data.

Forms: `phantom[:key=value,...]`; `jsonl:FOLDER`; the folder of a built corpus; and mixtures of these, `A*2 + B*1`:
terms separated by " + ", each with a weight above 0 (1 where none is written). Weights are shares of the training
samples: of three samples two come from A, whatever the sizes of A and B; a smaller part is repeated. Evaluation splits
of a mixture are its parts' splits one after the other, each example once.

Reading goes through the `datasets` builder (`stream_examples`) or straight from the sources (`open_sources`).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.sources import Source
from regionmed_clip.processing.corpus.sources.phantom import OPTION_TYPES, PhantomSource, parse_option

if TYPE_CHECKING:
    import datasets

FORMS = 'phantom[:key=value,...], jsonl:FOLDER, the folder of a built corpus, or a mixture "A*2 + B*1" of these'
TRAINING_SPLIT = "train"
_SEPARATOR = " + "
_WEIGHTED_TERM = re.compile(r"(.*\S)\s*\*\s*([0-9.eE+-]+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A parsed spec; `str` writes it again.

    Attributes:
        kind: "phantom", "jsonl", "corpus" or "mixture".
        options: of phantom.
        folder: of jsonl and corpus.
        parts: of a mixture: (spec, weight) of each term.
    """

    kind: str
    options: tuple[tuple[str, int | float], ...] = ()
    folder: str | None = None
    parts: tuple[tuple[DataSpec, float], ...] = ()

    def __str__(self) -> str:
        if self.kind == "mixture":
            terms = ((part, int(weight) if weight == int(weight) else weight) for part, weight in self.parts)
            return _SEPARATOR.join(f"{part}*{weight!r}" for part, weight in terms)
        if self.kind == "corpus":
            return str(self.folder)
        if self.kind == "jsonl":
            return f"jsonl:{self.folder}"
        options = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.kind}:{options}" if options else self.kind

    def terms(self) -> tuple[tuple[DataSpec, float], ...]:
        """The parts of a mixture with their weights; of any other spec itself alone."""
        return self.parts or ((self, 1.0),)


def parse_data_spec(text: str) -> DataSpec:
    """The spec that `text` writes; ValueError for an unknown form, key or value. A jsonl folder is not opened yet."""
    parts = tuple(_parse_term(text, term.strip()) for term in text.split(_SEPARATOR))
    return parts[0][0] if len(parts) == 1 else DataSpec("mixture", parts=parts)


def open_sources(spec: DataSpec | str, *, with_masks: bool = False) -> list[Source]:
    """The sources of `spec` in their order; `with_masks` makes jsonl sources read their mask files too."""
    spec = _as_spec(spec)
    if spec.kind == "mixture":
        return [source for part, _ in spec.parts for source in open_sources(part, with_masks=with_masks)]
    if spec.kind == "phantom":
        return [PhantomSource(**dict(spec.options))]
    if spec.kind == "corpus":
        from regionmed_clip.processing.corpus.corpus_source import CorpusSource

        return [CorpusSource(_folder_of(spec))]
    from regionmed_clip.processing.corpus.sources.jsonl import open_jsonl

    return list(open_jsonl(_folder_of(spec), with_masks=with_masks))


def stream_examples(
    spec: DataSpec | str,
    split: str,
    *,
    decode_images: bool = True,
    with_masks: bool = False,
    columns: Sequence[str] | None = None,
    num_shards: int = 8,
    is_interleaved: bool | None = None,
    seed: int = 0,
) -> datasets.IterableDataset:
    """The examples of `split` as a stream, sources one after the other, each in its own order.

    An example holds the columns of medregion.py with `image` as a PIL image as stored (`decode_images=False`: a dict of
    `bytes` and `path`, exactly one of them filled). To look at it, take `shown_image(example)`.

    Args:
        spec, split: what to read.
        decode_images: see above.
        with_masks: fill `mask` of the regions where there is one.
        columns: names of the columns to read; None: all.
        num_shards: of phantom and jsonl data; a built corpus has its own.
        is_interleaved: draw the examples of a mixture from its parts at random by their weights, a smaller part again
            and again, until each was seen whole; False: the parts one after the other. None: for split "train" alone.
        seed: of that draw, which is the same in every run.

    Raises:
        ValueError: a bad spec or folder; a split that no source has. While reading: a bad record.
    """
    import datasets

    spec = _as_spec(spec)
    chosen: dict[str, Any] = {"decode_images": decode_images, "with_masks": with_masks, "num_blocks": num_shards}
    chosen["columns"] = None if columns is None else list(columns)
    parts = _terms_with(spec, split)
    streams = [_stream(part, split, chosen) for part, _ in parts]
    if len(streams) == 1:
        return streams[0]
    if split != TRAINING_SPLIT if is_interleaved is None else not is_interleaved:
        return datasets.concatenate_datasets(streams)
    total = sum(weight for _, weight in parts)
    shares = [weight / total for _, weight in parts]
    return datasets.interleave_datasets(streams, shares, seed=seed, stopping_strategy="all_exhausted")


def num_examples(spec: DataSpec | str, split: str) -> int:
    """Number of different examples that `stream_examples` gives for `split`."""
    return sum(source.num_records(split) for source in _sources_with(_as_spec(spec), split))


def data_revision(spec: DataSpec | str) -> str:
    """The revisions of all sources, "bccd@86d76509d187+ct_ich@d3a35ebeddd2"; of a mixture "(...)*2 + (...)*1"."""
    spec = _as_spec(spec)
    if spec.kind == "mixture":
        return _SEPARATOR.join(f"({data_revision(part)})*{weight:g}" for part, weight in spec.parts)
    return "+".join(f"{source.name}@{source.revision}" for source in open_sources(spec))


def split_sha256(spec: DataSpec | str, split: str) -> str:
    """Hash of the ordered (image_id, sha256 of the image) pairs of `split`, parts of a mixture one after the other.

    Of a built corpus two columns are read; else every image is read, or drawn, once.
    """
    parts = _terms_with(_as_spec(spec), split)
    return hash_images(pair for part, _ in parts for pair in _image_hashes(part, split))


def hash_images(images: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of ordered (image_id, sha256 of the image) pairs, the identity of a split."""
    digest = hashlib.sha256()
    for image_id, sha256 in images:
        digest.update(f"{image_id}\t{sha256}\n".encode())
    return digest.hexdigest()


def _stream(spec: DataSpec, split: str, chosen: dict[str, Any]) -> datasets.IterableDataset:
    """The stream of a spec that is no mixture."""
    from regionmed_clip.processing.corpus.medregion import MedRegion

    place = dict(spec.options) if spec.kind == "phantom" else {"data_dir": spec.folder}
    with tempfile.TemporaryDirectory(prefix="medregion-") as cache:  # the builder insists; a stream writes nothing
        builder = MedRegion(config_name=spec.kind, cache_dir=cache, **place, **chosen)
        try:
            return builder.as_streaming_dataset(split=split)
        except ValueError:
            _sources_with(spec, split)  # its message names the sources, that of the library would not
            raise


def _image_hashes(spec: DataSpec, split: str) -> Iterator[tuple[str, str]]:
    """(image_id, sha256 of the image) of every example of a spec that is no mixture."""
    if spec.kind == "corpus":
        for row in BuiltCorpus(_folder_of(spec)).rows(split, columns=("image_id", "sha256")):
            yield row["image_id"], row["sha256"]
        return
    for source in _sources_with(spec, split):
        for record in source.records(split):
            yield record.image_id, record.sha256


def _terms_with(spec: DataSpec, split: str) -> list[tuple[DataSpec, float]]:
    """The terms that have `split`; ValueError if none has, or if a part of a mixture lacks its training split."""
    if spec.kind != "mixture":
        return list(spec.terms())  # what it lacks is found by who opens it
    chosen = [(part, weight) for part, weight in spec.parts if _has_split(part, split)]
    if not chosen or (split == TRAINING_SPLIT and len(chosen) < len(spec.parts)):
        for part, _ in spec.parts:
            _sources_with(part, split)
    return chosen


def _has_split(spec: DataSpec, split: str) -> bool:
    return any(split in source.splits() for source in open_sources(spec))


def _sources_with(spec: DataSpec, split: str) -> list[Source]:
    """The sources of `spec` that have `split`; ValueError if none has."""
    sources = open_sources(spec)
    chosen = [source for source in sources if split in source.splits()]
    if not chosen:
        known = "; ".join(f"{source.name}: {', '.join(source.splits())}" for source in sources)
        raise ValueError(f"Data {str(spec)!r} has no split {split!r}; it has {known}. Ask for one of these.")
    return chosen


def _as_spec(spec: DataSpec | str) -> DataSpec:
    return parse_data_spec(spec) if isinstance(spec, str) else spec


def _folder_of(spec: DataSpec) -> str:
    assert spec.folder is not None
    return spec.folder


def _parse_term(text: str, term: str) -> tuple[DataSpec, float]:
    """The spec and the weight of one term of `text`."""
    weighted = _WEIGHTED_TERM.fullmatch(term)
    form, weight = (weighted.group(1), weighted.group(2)) if weighted else (term, "1")
    spec = _parse_form(text, form)
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(
            f"Data {text!r}: the weight of {form!r} is {weight!r}; it must be a number above 0. Correct it."
        )
    return spec, number


def _parse_form(text: str, form: str) -> DataSpec:
    """The spec of one term of `text` without its weight."""
    kind, _, rest = form.partition(":")
    if kind == "phantom":
        return DataSpec("phantom", options=_parse_options(text, rest))
    if kind == "jsonl":
        if not rest:
            raise ValueError(
                f"Data {text!r} names no folder; the form is jsonl:FOLDER. Write e.g. data=jsonl:../shared/data."
            )
        return DataSpec("jsonl", folder=str(Path(rest)))  # X and X/ are one
    if form and is_built_corpus(form):
        return DataSpec("corpus", folder=str(Path(form)))
    hint = (
        "The folder has no manifest.json: correct it" if form and Path(form).is_dir() else f"{form!r} is none of them"
    )
    if form and (any(Path(form).glob("annotations.jsonl")) or any(Path(form).glob("*/annotations.jsonl"))):
        hint = f"The folder has annotations.jsonl: write jsonl:{form}"
    raise ValueError(f"Data {text!r} has no known form; data is {FORMS}. {hint}.")


def _parse_options(text: str, rest: str) -> tuple[tuple[str, int | float], ...]:
    """The options of a phantom spec in the order of OPTION_TYPES."""
    options: dict[str, int | float] = {}
    for item in filter(None, (part.strip() for part in rest.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in OPTION_TYPES or not equals:
            known = ", ".join(OPTION_TYPES)
            raise ValueError(
                f"Data {text!r}: {item!r} is no option of phantom; the options are {known}, as key=value. Correct it."
            )
        if name in options:
            raise ValueError(f"Data {text!r}: {name} is given twice; an option has one value. Keep one.")
        try:
            options[name] = parse_option(name, value)
        except ValueError as error:
            raise ValueError(f"Data {text!r}: {error}") from error
    return tuple((name, options[name]) for name in OPTION_TYPES if name in options)
