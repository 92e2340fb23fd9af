"""Prepared samples -> the batch of tensors of DESIGN.md section 2, every distinct text tokenised once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.text_facts import NUM_FACTS
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .augmented_samples import PositionedSamples
from .frame_store import StoredSample
from .interruption import kill_workers_at_exit, shield_worker

TEXT_ROWS_MULTIPLE = 16
TEXT_LENGTH_MULTIPLE = 8
PLACEHOLDER_TEXT = "-"


def load_batches(
    samples: PositionedSamples, positions: Sequence[range], collator: Collator, num_workers: int
) -> DataLoader:
    """Batches in the order of `positions`, the global positions of each, made by so many processes (0: by this one)."""
    if num_workers:  # after a fork the tokenizer must not use threads, and warns unless it is told so
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        kill_workers_at_exit()
    return DataLoader(
        samples, batch_sampler=positions, collate_fn=collator, num_workers=num_workers, worker_init_fn=shield_worker
    )


class UniqueTexts:
    """Numbers texts in the order of their first appearance; `keys` and `facts` have one entry per distinct text.

    A text that comes with two keys, as the words of one source and by the template of another, counts twice here: the
    loss makes them one (`count_texts_once`).
    """

    def __init__(self):
        self.row_of_text: dict[tuple[str, int], int] = {}
        self.keys: list[int] = []
        self.facts: list[np.ndarray | None] = []  # None: those of a text of the same key, if there is one

    def row(self, text: str, key: int, facts: np.ndarray | None = None) -> int:
        """Row of `text`, added with its key and facts when it is new."""
        row = self.row_of_text.setdefault((text, key), len(self.keys))
        if row == len(self.keys):
            self.keys.append(key)
            self.facts.append(facts)
        return row

    @property
    def texts(self) -> list[str]:
        """The distinct texts in the order of their rows."""
        return [text for text, _ in self.row_of_text]


class Collator:
    """Batches of (sample, chosen regions) as tensors; docs/data_contract.md has names, shapes and dtypes.

    Args:
        processor: tokenises texts and normalises frames.
        num_negatives: N, the second axis of `negative_text_index`, at least as many as were drawn for any region. With
            0 that tensor is absent.
    """

    def __init__(self, processor: RegionMedClipProcessor, num_negatives: int = 0):
        self.processor = processor
        self.num_negatives = num_negatives
        self.max_length = processor.tokenizer.model_max_length

    def __call__(self, chosen: Sequence[tuple[StoredSample, np.ndarray]]) -> dict[str, Tensor | list[str]]:
        """One batch; R is the largest number of chosen regions, and R, S, K and U are at least 1."""
        samples = [sample for sample, _ in chosen]
        captions = UniqueTexts()
        text_index = [
            -1
            if sample.caption_key == NO_TEXT_KEY
            else captions.row(sample.caption, sample.caption_key, sample.caption_facts)
            for sample in samples
        ]
        input_ids, attention_mask, text_keys = self._encode(captions)
        frames = torch.from_numpy(np.stack([sample.frame for sample in samples]))  # (B, 3, S, S) uint8
        return {
            "sample_id": [sample.sample_id for sample in samples],
            "pixel_values": self.processor.image_processor.normalize_frames(frames),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "text_index": torch.tensor(text_index),
            "text_keys": text_keys,
            "text_facts": _pad_facts(captions.facts, len(text_keys)),
            **self._regions(chosen),
            **_all_regions(samples),
        }

    def _regions(self, chosen: Sequence[tuple[StoredSample, np.ndarray]]) -> dict[str, Tensor]:
        num_regions = max(1, max(len(regions) for _, regions in chosen))  # R
        boxes = torch.zeros(len(chosen), num_regions, 4)
        mask = torch.zeros(len(chosen), num_regions, dtype=torch.bool)
        index = torch.full((len(chosen), num_regions), -1)
        unique = UniqueTexts()
        for i, (sample, regions) in enumerate(chosen):
            boxes[i, : len(regions)] = torch.from_numpy(sample.boxes[regions])
            mask[i, : len(regions)] = True
            for j, region in enumerate(regions):
                text = sample.region_texts[region]
                key, facts = sample.region_keys[region], sample.region_facts[region]
                index[i, j] = unique.row(text, key, facts) if text else -1
        negatives = self._negatives(chosen, unique, num_regions) if self.num_negatives else {}
        input_ids, attention_mask, keys = self._encode(unique)
        return {
            "region_boxes": boxes,
            "region_mask": mask,
            "region_is_complete": torch.tensor([len(regions) == len(sample.boxes) for sample, regions in chosen]),
            "region_input_ids": input_ids,
            "region_attention_mask": attention_mask,
            "region_text_index": index,
            "region_text_keys": keys,
            "region_text_facts": _facts_by_key(unique, len(keys)),
            **negatives,
        }

    def _negatives(
        self, chosen: Sequence[tuple[StoredSample, np.ndarray]], unique: UniqueTexts, num_regions: int
    ) -> dict[str, Tensor]:
        """`negative_text_index`; the texts are added to `unique`, after those of all regions."""
        index = torch.full((len(chosen), num_regions, self.num_negatives), -1)
        for i, (sample, regions) in enumerate(chosen):
            for j, region in enumerate(regions if sample.drawn_negatives else ()):
                rows = [unique.row(negative.text, negative.key) for negative in sample.drawn_negatives[region]]
                index[i, j, : len(rows)] = torch.tensor(rows)
        return {"negative_text_index": index}

    def _encode(self, unique: UniqueTexts) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids and mask (rows, L) and keys (rows,) of the texts, padded to few sizes.

        Rows are filled up to a multiple of `TEXT_ROWS_MULTIPLE` with a placeholder of key `NO_TEXT_KEY`, so that even a
        batch without any text has some, and L to a multiple of `TEXT_LENGTH_MULTIPLE`: a new shape costs the CPU's
        matrix kernels a new compilation, which is dearer than the padding.
        """
        num_missing = -len(unique.keys) % TEXT_ROWS_MULTIPLE or (0 if unique.keys else TEXT_ROWS_MULTIPLE)
        encoded = self.processor.encode_texts([*unique.texts, *[PLACEHOLDER_TEXT] * num_missing])
        input_ids, attention_mask = encoded["input_ids"], encoded["attention_mask"]
        num_columns = min(-input_ids.shape[1] % TEXT_LENGTH_MULTIPLE, self.max_length - input_ids.shape[1])
        input_ids = pad(input_ids, (0, num_columns), value=self.processor.tokenizer.pad_token_id)
        keys = torch.tensor([*unique.keys, *[NO_TEXT_KEY] * num_missing])
        return input_ids, pad(attention_mask, (0, num_columns)), keys


def _all_regions(samples: Sequence[StoredSample]) -> dict[str, Tensor]:
    """Keys (B, K) and facts (B, K, F) of the distinct texts of all regions of each image, chosen or not."""
    distinct = [dict(zip(sample.region_keys, sample.region_facts)) for sample in samples]
    num_texts = max(1, max(len(facts_of_key) for facts_of_key in distinct))  # K
    keys = np.full((len(samples), num_texts), NO_TEXT_KEY, dtype=np.int64)
    facts = np.zeros((len(samples), num_texts, NUM_FACTS), dtype=np.int64)
    for i, facts_of_key in enumerate(distinct):
        if facts_of_key:
            keys[i, : len(facts_of_key)] = list(facts_of_key)
            facts[i, : len(facts_of_key)] = list(facts_of_key.values())
    return {"image_region_keys": torch.from_numpy(keys), "image_region_facts": torch.from_numpy(facts)}


def _pad_facts(facts: Sequence[np.ndarray], num_rows: int) -> Tensor:
    """(num_rows, S, F) int64: the facts of texts of several statements (S of each, F), filled up with zeros."""
    padded = np.zeros((num_rows, max(1, max(map(len, facts), default=0)), NUM_FACTS), dtype=np.int64)
    for row, of_text in enumerate(facts):
        padded[row, : len(of_text)] = of_text
    return torch.from_numpy(padded)


def _facts_by_key(unique: UniqueTexts, num_rows: int) -> Tensor:
    """(num_rows, F) int64: the facts of each text, of one added without them those of a text of the same key."""
    facts = np.zeros((num_rows, NUM_FACTS), dtype=np.int64)
    of_key = {key: known for key, known in zip(unique.keys, unique.facts) if known is not None}
    for row, key in enumerate(unique.keys):
        facts[row] = of_key.get(key, 0)
    return torch.from_numpy(facts)
