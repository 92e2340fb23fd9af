"""Prepared samples -> the batch of tensors of DESIGN.md section 2, every distinct text tokenised once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.box_noise import jitter_boxes
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .data_stores import SampleStore
from .frame_store import StoredSample
from .sample_order import Order, choose_regions, noise_generator

TEXT_ROWS_MULTIPLE = 16
TEXT_LENGTH_MULTIPLE = 8
PLACEHOLDER_TEXT = "-"


class PositionedSamples(Dataset):
    """Samples by global position, each with at most `max_regions` of its regions and `box_noise` on its boxes."""

    def __init__(self, store: SampleStore, order: Order, max_regions: int, box_noise: float = 0.0):
        self.store = store
        self.order = order
        self.max_regions = max_regions
        self.box_noise = box_noise

    def __getitem__(self, position: int) -> tuple[StoredSample, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[StoredSample, np.ndarray]]:
        """(sample, indices of its chosen regions) at consecutive global positions."""
        samples = self.store.samples(self.order.indices(positions[0], positions[-1] + 1))
        return [
            (
                self._with_noise(sample, position),
                choose_regions(len(sample.boxes), self.max_regions, self.order.seed, position),
            )
            for sample, position in zip(samples, positions)
        ]

    def _with_noise(self, sample: StoredSample, position: int) -> StoredSample:
        if self.box_noise == 0:
            return sample
        generator = noise_generator(self.order.seed, position)
        one_pixel = 1 / sample.frame.shape[1]
        boxes = jitter_boxes(sample.boxes, self.box_noise, generator, frame_size=(1.0, 1.0), min_side=one_pixel)
        return replace(sample, boxes=boxes.astype(np.float32))


def load_batches(
    samples: PositionedSamples, positions: Sequence[range], collator: Collator, num_workers: int
) -> DataLoader:
    """Batches in the order of `positions`, the global positions of each, made by so many processes (0: by this one)."""
    if num_workers:  # after a fork the tokenizer must not use threads, and warns unless it is told so
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DataLoader(samples, batch_sampler=positions, collate_fn=collator, num_workers=num_workers)


class UniqueTexts:
    """Numbers texts in the order of their first appearance; `rows` and `keys` have one entry per distinct text."""

    def __init__(self):
        self.row_of_text: dict[str, int] = {}
        self.keys: list[int] = []

    def row(self, text: str, key: int) -> int:
        """Row of `text`, added with its key when it is new."""
        if text not in self.row_of_text:
            self.row_of_text[text] = len(self.keys)
            self.keys.append(key)
        return self.row_of_text[text]

    @property
    def texts(self) -> list[str]:
        """The distinct texts in the order of their rows."""
        return list(self.row_of_text)


class Collator:
    """Batches of (sample, chosen regions) as tensors; see DESIGN.md section 2 for names, shapes and dtypes."""

    def __init__(self, processor: RegionMedClipProcessor):
        self.processor = processor
        self.max_length = processor.tokenizer.model_max_length

    def __call__(self, chosen: Sequence[tuple[StoredSample, np.ndarray]]) -> dict[str, Tensor | list[str]]:
        """One batch; R is the largest number of chosen regions, at least 1, U at least 1."""
        samples = [sample for sample, _ in chosen]
        captions = UniqueTexts()
        text_index = [
            -1 if sample.caption_key == NO_TEXT_KEY else captions.row(sample.caption, sample.caption_key)
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
            **self._regions(chosen),
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
                index[i, j] = unique.row(text, sample.region_keys[region]) if text else -1
        input_ids, attention_mask, keys = self._encode(unique)
        return {
            "region_boxes": boxes,
            "region_mask": mask,
            "region_is_complete": torch.tensor([len(regions) == len(sample.boxes) for sample, regions in chosen]),
            "region_input_ids": input_ids,
            "region_attention_mask": attention_mask,
            "region_text_index": index,
            "region_text_keys": keys,
        }

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
