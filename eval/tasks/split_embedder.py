"""The splits that one model is measured and tuned on, each embedded once and only when a task asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import embed_readings
from regionmed_clip.eval.tasks.embedding_cache import EmbeddingCache, describe_model, embed_cached
from regionmed_clip.eval.tasks.sharing import ALONE, Share

Examples = Iterable[Mapping[str, Any]]


class SplitEmbedder:
    """Embeds the splits of `examples_by_split` with one model, each under all `readings` at once.

    Args:
        examples_by_split: name of a split -> its examples; a look-up may be what reads or draws them.
        cache: where embeddings are looked for and stored; None: nowhere.
        progress: whether bars are shown.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        examples_by_split: Mapping[str, Examples],
        *,
        readings: Sequence[str],
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        progress: bool = True,
        share: Share = ALONE,
        cache: EmbeddingCache | None = None,
    ):
        self._model, self._processor = model, processor
        self._examples_by_split = examples_by_split
        self._options: dict[str, Any] = {
            "readings": tuple(readings),
            "batch_size": batch_size,
            "device": device,
            "progress": progress,
            "share": share,
        }
        self._cache = cache
        self._model_key = None if cache is None else describe_model(model, processor, device)
        self._embedded: dict[str, dict[str, EmbeddedSplit]] = {}

    def examples_of(self, split: str) -> Examples:
        """The examples of a split; ValueError where there are none."""
        if split not in self._examples_by_split:
            known = ", ".join(sorted(self._examples_by_split))
            raise ValueError(f"there is no split {split!r}; there is {known}. Name one of these, or give its examples.")
        return self._examples_by_split[split]

    def readings_of(self, split: str) -> dict[str, EmbeddedSplit]:
        """The split under each reading; the same objects whenever it is asked for."""
        if split not in self._embedded:
            examples = self.examples_of(split)
            if self._cache is None:
                found = embed_readings(self._model, self._processor, examples, **self._options)
            else:
                options = {"cache": self._cache, "model_key": self._model_key, **self._options}
                found = embed_cached(self._model, self._processor, examples, **options)
            self._embedded[split] = found
        return self._embedded[split]
