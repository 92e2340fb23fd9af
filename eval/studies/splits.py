"""The examples on which all trainings of a study are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tqdm import tqdm

from regionmed_clip.processing.corpus.data_spec import stream_examples


@lru_cache(maxsize=1)
def read_split(data: str, split: str) -> list[Mapping[str, Any]]:
    """The examples of a split with their images encoded, drawn or read once for all trainings."""
    return list(tqdm(stream_examples(data, split, decode_images=False), desc=f"read {split}", unit="img", leave=False))
