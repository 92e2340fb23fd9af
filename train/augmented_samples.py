"""Training samples as they are shown: crops, flips, noise on boxes, chosen regions and hard negatives by position.

Everything here is a pure function of (seed, global position), whatever the number of processes and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from regionmed_clip.processing.corpus.box_noise import jitter_boxes
from regionmed_clip.processing.corpus.image_texts import NegativeText
from regionmed_clip.processing.frame_augmentation import FrameAugmentation, draw_augmentation

from .data_stores import SampleStore
from .frame_store import StoredSample
from .recipe_parts import Augmentation
from .sample_order import AUGMENTATION_STREAM, NEGATIVES_STREAM, Order, choose_regions, noise_generator


class HasSampleSettings(Protocol):
    """A stage of a recipe, every field given."""

    max_regions: int
    box_noise: float
    num_negatives: int
    augmentation: Augmentation


@dataclass(frozen=True)
class SampleSettings:
    """How samples are shown: at most so many regions and negatives of each, noise on boxes, crops and flips."""

    max_regions: int
    box_noise: float = 0.0
    num_negatives: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    @classmethod
    def of(cls, stage: HasSampleSettings) -> SampleSettings:
        """The settings of a stage."""
        return cls(stage.max_regions, stage.box_noise, stage.num_negatives, stage.augmentation)


class PositionedSamples(Dataset):
    """Samples by global position as `settings` show them, each with the indices of its chosen regions."""

    def __init__(self, store: SampleStore, order: Order, settings: SampleSettings):
        self.store = store
        self.order = order
        self.settings = settings

    def __getitem__(self, position: int) -> tuple[StoredSample, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[StoredSample, np.ndarray]]:
        """(sample, indices of its chosen regions) at consecutive global positions."""
        samples = self.store.samples(self.order.indices(positions[0], positions[-1] + 1))
        return [self._shown(sample, position) for sample, position in zip(samples, positions)]

    def _shown(self, sample: StoredSample, position: int) -> tuple[StoredSample, np.ndarray]:
        settings, seed = self.settings, self.order.seed
        sample = augment(sample, settings.augmentation, (seed, AUGMENTATION_STREAM, position))
        if settings.box_noise:
            generator, one_pixel = noise_generator(seed, position), 1 / sample.frame.shape[1]
            noisy = jitter_boxes(sample.boxes, settings.box_noise, generator, frame_size=(1.0, 1.0), min_side=one_pixel)
            sample = replace(sample, boxes=noisy.astype(np.float32))
        regions = choose_regions(len(sample.boxes), settings.max_regions, seed, position)
        if settings.num_negatives:
            generator = np.random.default_rng([seed, NEGATIVES_STREAM, position])
            drawn = draw_negatives(sample, settings.num_negatives, generator)
            sample = replace(sample, drawn_negatives=drawn)
        return sample, regions


def augment(sample: StoredSample, augmentation: Augmentation, seed: Sequence[int]) -> StoredSample:
    """The sample cropped and flipped with its regions and texts; a pure function of the arguments.

    A crop holds every region whole. The sample stays as it is drawn where a change would make a text false: it is not
    mirrored where its texts cannot be (`ImageTexts.mirrored`), nor turned upside down where one names a height, nor
    cropped where one names a place in the picture. What a text of the source speaks of without a box may be cropped.
    """
    if augmentation == Augmentation():
        return sample
    has_area = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(axis=1)
    drawn = draw_augmentation(
        seed,
        flip_x=augmentation.flip_x,
        flip_y=augmentation.flip_y,
        min_side=augmentation.min_side,
        kept_boxes=sample.boxes[has_area],
    )
    texts = sample.texts
    is_cropped = drawn.crop != FrameAugmentation().crop and not (texts and texts.names_place_in_frame())
    is_upside_down = drawn.flip_y and texts is not None and not texts.names_height()
    change = FrameAugmentation(drawn.crop if is_cropped else FrameAugmentation().crop, flip_y=is_upside_down)
    if change != FrameAugmentation():
        boxes, _ = change.boxes(sample.boxes)
        sample = replace(sample, frame=change.frames(sample.frame), boxes=boxes)
    mirrored = sample.mirrored() if drawn.flip_x else None
    return sample if mirrored is None else mirrored


def draw_negatives(
    sample: StoredSample, num_negatives: int, generator: np.random.Generator
) -> tuple[tuple[NegativeText, ...], ...]:
    """For each region at most so many of its negatives, the kinds of change in turn, each time in another order.

    One that means the same as a text of its own image is left out.
    """
    own_keys = {sample.caption_key, *sample.region_keys}
    return tuple(
        _take_turns([negative for negative in negatives if negative.key not in own_keys], num_negatives, generator)
        for negatives in sample.region_negatives
    )


def _take_turns(
    negatives: Sequence[NegativeText], number: int, generator: np.random.Generator
) -> tuple[NegativeText, ...]:
    """At most `number` of the negatives in an order of chance; no kind of change comes again before all have come."""
    shuffled = [negatives[index] for index in generator.permutation(len(negatives))]
    num_of_kind: dict[str, int] = {}
    turns = []
    for negative in shuffled:
        turns.append(num_of_kind.setdefault(negative.changed, 0))
        num_of_kind[negative.changed] += 1
    by_turn = sorted(range(len(shuffled)), key=turns.__getitem__)  # stable: by chance within a turn
    return tuple(shuffled[index] for index in by_turn[:number])
