"""Embeddings kept on disk, so that a model meets a split once: found again by what made them, never by a file's name.

An entry is a safetensors file of the embeddings of one split under one region reading. Its name is a hash of all that
they depend on: weights and configuration of the model, image processor and tokenizer, the images, boxes and texts, this
package's code, kind of device and libraries. It tells that again inside, beside a hash of its values; an entry that
cannot be read, was damaged, or was made of something else counts as absent.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import modeling_regionmed_clip
from regionmed_clip.eval.tasks import embedded_split, embedding, prepared, region_readings
from regionmed_clip.eval.tasks.embedded_split import ComputedRows, EmbeddedSplit, SplitRows
from regionmed_clip.eval.tasks.embedding import NO_EXAMPLES, batched, embed_batch, embed_texts, embedding_bar
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.processing import region_boxes
from regionmed_clip.processing.corpus import shown_image

Examples = Iterable[Mapping[str, Any]]
TRANSIENT_CONFIG = ("_name_or_path", "transformers_version")  # they say where a model came from, not what it does
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")  # that have a part in an embedding
ARRAYS = ("image_embeds", "region_embeds", "is_inside", "region_colour_size", "text_embeds")


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/regionmed_clip/embeddings`, or the same under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "regionmed_clip" / "embeddings"


class EmbeddingCache:
    """The entries of a folder, which is made when the first one is written; deleting it costs time only."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path_of(self, key: Mapping[str, str]) -> Path:
        """The file of the entry that `key` tells of."""
        return self.folder / f"{_hash(_as_text(key))[:40]}.safetensors"

    def load(self, key: Mapping[str, str]) -> dict[str, np.ndarray] | None:
        """The arrays stored under `key`; None, after a warning unless there is no file, where they cannot be had."""
        path = self.path_of(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as entry:
                noted = entry.metadata() or {}
                arrays = {name: entry.get_tensor(name) for name in entry.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            return _distrust(path, f"it cannot be read ({error})")
        if noted.get("key") != _as_text(key) or set(arrays) != set(ARRAYS):
            return _distrust(path, "it was made of something else")
        if noted.get("values_sha256") != _hash_arrays(arrays):
            return _distrust(path, "its values are not those that were written")
        return arrays

    def store(self, key: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
        """None; the arrays then lie under `key`, whole or not at all."""
        path = self.path_of(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            save_file(whole, temporary, {"key": _as_text(key), "values_sha256": _hash_arrays(whole)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def embed_cached(
    model: Any,
    processor: Any,
    examples: Examples,
    *,
    readings: Sequence[str],
    cache: EmbeddingCache,
    model_key: Mapping[str, str],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
) -> dict[str, EmbeddedSplit]:
    """As `embed_readings`, with what the cache has; what it lacks is embedded and stored.

    Args:
        examples: may be gone through again and again, and each has its image's `sha256`; see `hash_example`.
        model_key: of `describe_model`.
    """
    rows, digest = SplitRows(), hashlib.sha256()
    for example in examples:
        rows.add(example)
        digest.update(hash_example(example))
    if not rows.images:
        raise ValueError(NO_EXAMPLES)
    keys = {reading: {**model_key, "data": digest.hexdigest(), "reading": reading} for reading in readings}
    kept = share.from_main(lambda: {reading: cache.load(key) for reading, key in keys.items()})
    missing = [reading for reading in readings if kept[reading] is None]
    if missing:
        parts = []
        with embedding_bar(progress and share.is_main) as bar:
            for number, batch in share.own(batched(examples, batch_size)):
                parts.append((number, embed_batch(model, processor, batch, readings=missing, device=device)))
                bar.update(len(batch) * share.num_processes)
        computed = ComputedRows.join(share.join(parts))
        text_embeds = embed_texts(model, processor, rows.texts(computed.is_inside), device=device, share=share)
        for reading in missing:
            kept[reading] = _as_arrays(computed, reading, text_embeds)
            if share.is_main:
                _try_to_store(cache, keys[reading], kept[reading])
    return {reading: _as_split(rows, reading, kept[reading]) for reading in readings}


def hash_example(example: Mapping[str, Any]) -> bytes:
    """SHA-256 of what an example's embeddings depend on: its image, window, boxes and texts."""
    if not example.get("sha256"):
        raise ValueError(
            f"{example['image_id']} has no sha256 of its image; embeddings are found again by it. Give examples of a "
            "corpus, or embed without a cache."
        )
    regions = [[list(map(float, region["box"])), region["description"]] for region in example["regions"]]
    facts = [example["sha256"], example["width"], example["height"], example.get("window"), example["caption"], regions]
    return hashlib.sha256(json.dumps(facts).encode()).digest()


def describe_model(model: Any, processor: Any, device: str | torch.device) -> dict[str, str]:
    """Everything but data and reading that embeddings depend on, as hashes and names."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in TRANSIENT_CONFIG}
    return {
        "weights": weights_revision(model),
        "config": _hash(json.dumps(config, sort_keys=True, default=str)),
        "processor": _hash_processor(processor),
        "code": _hash_code(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "device": torch.device(device).type,
    }


def _try_to_store(cache: EmbeddingCache, key: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """None; stored, or a warning where the folder cannot be written to: the evaluation itself can go on."""
    try:
        cache.store(key, arrays)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{cache.folder}: embeddings cannot be kept ({error}); the next run makes them anew. Give --cache a folder "
            "that can be written to, or --no-cache.",
            stacklevel=3,
        )


def _as_arrays(computed: ComputedRows, reading: str, text_embeds: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of an entry."""
    return {
        "image_embeds": computed.image_embeds,
        "region_embeds": computed.region_embeds[reading],
        "is_inside": computed.is_inside,
        "region_colour_size": computed.region_colour_size,
        "text_embeds": text_embeds,
    }


def _as_split(rows: SplitRows, reading: str, arrays: Mapping[str, np.ndarray]) -> EmbeddedSplit:
    """The split of an entry's arrays and of what its examples say."""
    computed = ComputedRows(
        image_embeds=arrays["image_embeds"],
        region_embeds={reading: arrays["region_embeds"]},
        is_inside=arrays["is_inside"],
        region_colour_size=arrays["region_colour_size"],
    )
    return rows.finish(computed, arrays["text_embeds"])[reading]


def _distrust(path: Path, reason: str) -> None:
    """None, after a warning that the entry is made anew."""
    warnings.warn(f"{path}: {reason}; the embeddings are made anew.", stacklevel=3)


def _as_text(key: Mapping[str, str]) -> str:
    """The key as one text, the same whatever its order."""
    return json.dumps(dict(key), sort_keys=True)


def _hash(text: str) -> str:
    """SHA-256 (hex) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash_processor(processor: Any) -> str:
    """SHA-256 (hex) of all files that the processor saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="processor-") as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(folder)}\n".encode() + _lasting_content(path))
    return digest.hexdigest()


def _lasting_content(path: Path) -> bytes:
    """What a file of a processor holds, without what the last texts that a fast tokenizer met have left in it."""
    if path.name != "tokenizer.json":
        return path.read_bytes()
    values = json.loads(path.read_text(encoding="utf-8"))
    lasting = {name: value for name, value in values.items() if name not in ("padding", "truncation")}
    return json.dumps(lasting, sort_keys=True).encode()


def _hash_code() -> str:
    """SHA-256 (hex) of the code between an example and its embeddings."""
    flat = (
        Path(inspect.getfile(module)).parent for module in (modeling_regionmed_clip, region_boxes)
    )  # ship to the Hub
    paths = [path for folder in flat for path in sorted(folder.glob("*.py"))]
    modules = (embedded_split, embedding, prepared, region_readings, shown_image)
    paths += [Path(inspect.getfile(module)) for module in modules]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
