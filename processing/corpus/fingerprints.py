"""Fingerprints: what tells whether two images, or two patients, are the same, read without touching image bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.perceptual_hash import NUM_WORDS, hash_of_bytes, hash_of_hex, perceptual_hash
from regionmed_clip.processing.corpus.scan import hash_64
from regionmed_clip.processing.corpus.sources.source_files import list_images
from regionmed_clip.processing.corpus.splits import patient_key
from regionmed_clip.processing.image_errors import DECODE_ERRORS

COLUMNS = ("image_id", "sha256", "phash", "patient_id", "source")
TYPE = np.dtype([("sha256", "S64"), ("phash", "<u8", (NUM_WORDS,)), ("patient", "<u8")])  # patient 0: unknown
FOLDER_PART = "images"


@dataclass(frozen=True, slots=True)
class Part:
    """The images of one split, or of a folder: their names (N,), prints (N,) of TYPE, and files that do not decode."""

    name: str
    image_ids: list[str]
    prints: np.ndarray
    unreadable: tuple[str, ...] = ()


def parts_of(path: str | Path, *, show_progress: bool = True) -> list[Part]:
    """The splits of the built corpus at `path`, or one part for a folder of images at any depth.

    Raises:
        ValueError: `path` is neither, or a row has no perceptual hash.
    """
    path = Path(path)
    if is_built_corpus(path):
        corpus = BuiltCorpus(path)
        return [part_of_split(corpus, split) for split in corpus.splits()]
    paths = list_images(path) if path.is_dir() else []
    if not paths:
        raise ValueError(
            f"{str(path)!r} is neither a built corpus nor a folder with JPEG, PNG, BMP or TIFF images at any depth. "
            "Check the path."
        )
    return [_part_of_files(path, paths, show_progress)]


def part_of_split(corpus: BuiltCorpus, split: str) -> Part:
    """The fingerprints of a split of a built corpus."""
    number = corpus.num_images(split)
    image_ids: list[str] = []
    prints = np.zeros(number, dtype=TYPE)
    for index, row in enumerate(corpus.rows(split, columns=COLUMNS)):
        if index == number:
            raise ValueError(
                f"{corpus.folder}: split {split} has more than the {number} rows of its manifest. Run "
                "`regionmed-corpus check`."
            )
        for name in ("image_id", "sha256", "phash", "source"):
            if row[name] is None:
                where = f"{corpus.folder}: row {index} of split {split}"
                raise ValueError(f"{where} has no {name}; every row has one. Build the corpus again.")
        prints[index] = fingerprint(row)
        image_ids.append(row["image_id"])
    return Part(split, image_ids, prints[: len(image_ids)])


def part_of_examples(name: str, examples: Iterable[Mapping[str, Any]]) -> Part:
    """The fingerprints of examples; see `fingerprint` for what is read of each."""
    image_ids, prints = [], []
    for example in examples:
        image_ids.append(example["image_id"])
        prints.append(fingerprint(example))
    return Part(name, image_ids, np.array(prints, dtype=TYPE))


def fingerprint(example: Mapping[str, Any]) -> np.ndarray:
    """() of TYPE: the fingerprint of an example, or of a row of a built corpus.

    Where the example has no `phash`, its `image` is decoded and hashed as it is stored: without its window, as a built
    corpus has it. Where it has no `sha256` and its image is no file any more, none is known, and it equals no other.

    Args:
        example: `image_id`, `source` and `sha256`; `patient_id` or None; `phash`, or `image`: a PIL image, bytes, or a
            dict of `bytes` and `path`, exactly one of them filled.

    Raises:
        ValueError: the image cannot be decoded.
    """
    sha256, phash, patient_id = example.get("sha256"), example.get("phash"), example.get("patient_id")
    words = hash_of_hex(phash) if phash else None
    if words is None or not sha256:
        image = example["image"]
        if isinstance(image, Mapping):
            image = image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()
        words = _hash_of_image(image, example["image_id"]) if words is None else words
        sha256 = hashlib.sha256(image).hexdigest() if not sha256 and isinstance(image, bytes) else sha256
    patient = hash_64("patient", patient_key(example["source"], patient_id)) if patient_id else 0
    return np.array(((sha256 or "").encode(), words, patient), dtype=TYPE)


def _hash_of_image(image: Image.Image | bytes, name: str) -> np.ndarray:
    """(5,) uint64: the perceptual hash; ValueError for bytes that do not decode."""
    try:
        return hash_of_bytes(image) if isinstance(image, bytes) else perceptual_hash(image)
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{name} cannot be decoded ({error}); it must be a complete image file. Replace or re-export it."
        ) from error


def same_values(values: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int]]:
    """(i, j) for every i of `values` whose value occurs in `others`: j is its first place there. 0 matches nothing."""
    if len(values) == 0 or len(others) == 0:
        return
    known, first_places = np.unique(others, return_index=True)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    is_empty = values == np.zeros(1, dtype=values.dtype)
    for index in np.flatnonzero((known[places] == values) & ~is_empty):
        yield int(index), int(first_places[places[index]])


def _part_of_files(folder: Path, paths: list[Path], show_progress: bool) -> Part:
    """The fingerprints of image files, named by their path within the folder; a file that does not decode has none."""
    image_ids: list[str] = []
    unreadable: list[str] = []
    prints = np.zeros(len(paths), dtype=TYPE)
    for path in tqdm(paths, desc=f"reading {folder.name}", unit="image", disable=not show_progress):
        name = path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()  # any name can be told
        try:
            with Image.open(path) as image:
                phash = perceptual_hash(image)
        except DECODE_ERRORS:
            unreadable.append(name)
            continue
        prints[len(image_ids)] = (hashlib.sha256(path.read_bytes()).hexdigest().encode(), phash, 0)
        image_ids.append(name)
    return Part(FOLDER_PART, image_ids, prints[: len(image_ids)], tuple(unreadable))
