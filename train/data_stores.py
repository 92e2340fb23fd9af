"""The training samples that a data spec names: built corpora read from their shards, other data prepared as frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regionmed_clip.processing.corpus.data_spec import DataSpec, data_revision
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .frame_store import STORE_FEATURES, FrameStore, StoredSample, prepare_split
from .sample_order import MixtureOrder, Order, SampleOrder
from .shard_store import ShardStore


class SampleStore(Protocol):
    """Training samples by index, with the order in which they are shown."""

    @property
    def decodes_images(self) -> bool:
        """Whether reading a sample is work that processes of the loader should share."""
        ...

    def __len__(self) -> int: ...

    def samples(self, indices: Sequence[int] | np.ndarray) -> list[StoredSample]:
        """The samples at `indices`, in that order."""
        ...

    def order(self, seed: int) -> Order:
        """The order of training."""
        ...

    def examples(self) -> Iterator[dict[str, Any]]:
        """Every sample as an example of the corpus whose image is the frame itself."""
        ...

    def text_keys(self) -> Iterator[tuple[int, Sequence[int]]]:
        """(key of the caption, keys of the regions' texts) of every sample; see `StoredSample`."""
        ...

    def texts(self) -> Iterator[str]:
        """Every caption and region text, in order, with repetitions."""
        ...

    def fingerprints(self) -> Iterator[tuple[np.ndarray, Sequence[str]]]:
        """(fingerprints (N,) of `fingerprints.TYPE`, their sources) of all samples, block by block."""
        ...


class MixtureStore:
    """Several stores as one, shown by weight; an index counts through them one after the other."""

    def __init__(self, stores: Sequence[FrameStore | ShardStore], weights: Sequence[float]):
        self.decodes_images = any(store.decodes_images for store in stores)
        self._stores = list(stores)
        self._weights = list(weights)
        self._ends = np.cumsum([len(store) for store in stores])
        self.order(seed=0)  # refuses a weight too small before any work

    def __len__(self) -> int:
        return int(self._ends[-1])

    def samples(self, indices: Sequence[int] | np.ndarray) -> list[StoredSample]:
        """The samples at `indices`, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        parts = np.searchsorted(self._ends, wanted, side="right")
        found: dict[int, StoredSample] = {}  # by place in `wanted`
        for part, store in enumerate(self._stores):
            places = np.flatnonzero(parts == part)
            first = self._ends[part] - len(store)
            found.update(zip(places.tolist(), store.samples(wanted[places] - first) if len(places) else ()))
        return [found[place] for place in range(len(wanted))]

    def order(self, seed: int) -> MixtureOrder:
        """The stores' own orders, mixed by weight."""
        orders: list[SampleOrder] = [store.order(seed) for store in self._stores]
        return MixtureOrder(orders, self._weights, seed)

    def examples(self) -> Iterator[dict[str, Any]]:
        """Every sample once as an example of the corpus, store by store."""
        return chain.from_iterable(store.examples() for store in self._stores)

    def text_keys(self) -> Iterator[tuple[int, Sequence[int]]]:
        """(key of the caption, keys of the regions' texts) of every sample, store by store."""
        return chain.from_iterable(store.text_keys() for store in self._stores)

    def texts(self) -> Iterator[str]:
        """Every caption and region text once, store by store."""
        return chain.from_iterable(store.texts() for store in self._stores)

    def fingerprints(self) -> Iterator[tuple[np.ndarray, Sequence[str]]]:
        """(fingerprints (N,) of `fingerprints.TYPE`, their sources) of all samples once, store by store."""
        return chain.from_iterable(store.fingerprints() for store in self._stores)


def prepare_data(
    spec: DataSpec, split: str, cache: Path, image_processor: RegionMedClipImageProcessor, num_workers: int
) -> None:
    """Writes to `cache` the frames of every part of `spec` that is no built corpus, where they are missing."""
    cache.mkdir(parents=True, exist_ok=True)
    for part, _ in spec.terms():
        if part.kind != "corpus":
            prepare_split(
                _frames_folder(cache, part, split, image_processor), str(part), split, image_processor, num_workers
            )


def open_data(spec: DataSpec, split: str, cache: Path, image_processor: RegionMedClipImageProcessor) -> SampleStore:
    """The samples of `spec`; frames must have been prepared."""
    stores: list[FrameStore | ShardStore] = []
    for part, _ in spec.terms():
        if part.kind == "corpus":
            stores.append(ShardStore(str(part.folder), split, image_processor))
        else:
            width, _ = image_processor.frame_size
            stores.append(FrameStore(_frames_folder(cache, part, split, image_processor), width))
    return stores[0] if len(stores) == 1 else MixtureStore(stores, [weight for _, weight in spec.terms()])


def _frames_folder(cache: Path, part: DataSpec, split: str, image_processor: RegionMedClipImageProcessor) -> Path:
    """A folder whose name changes with the data, with how images are brought into the frame, and with what is kept."""
    settings = [str(part), data_revision(part), image_processor.to_dict(), STORE_FEATURES.to_dict()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return cache / f"{split}-{digest[:16]}"
