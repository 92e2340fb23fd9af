"""The part that fine-tuning on questions holds out of "train", where data have no test split: what may be tested there.

Which image is in which part is decided by question_parts.py, which training asks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from datasets import Dataset

from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.eval.tasks.split_examples import (
    MAX_TRAINING_IMAGES,
    MAX_TUNING_IMAGES,
    NUM_SMOKE_IMAGES,
    TRAINING_SPLIT,
    VALIDATION_SPLIT,
    write_examples,
)
from regionmed_clip.processing.corpus.data_spec import hash_images, parse_data_spec
from regionmed_clip.processing.corpus.question_parts import plan_of_data, stream_part

HELD_OUT_SPLIT = "held_out_test"  # as a command line calls it
_PART_OF_SPLIT = {HELD_OUT_SPLIT: "test", VALIDATION_SPLIT: "validation", TRAINING_SPLIT: "train"}


class HeldOutExamples(Mapping[str, Dataset]):
    """ "held_out_test", "validation" and "train" -> the examples of the part, as `SplitExamples` gives them of splits.

    Of validation and train no more than about 1,000 images are taken, the first ones.

    Args:
        data: a data spec; of a mixture at least one term has no test split of its own.
        folder: where copies go; it must stay while the examples are used, and be one folder for all processes.
        share: only the main process copies.
        is_smoke: take no more than the first 24 images of every part.

    Raises:
        ValueError: a bad spec, data without a training split, or with a test split of its own.
    """

    def __init__(self, data: str, folder: Path, *, share: Share = ALONE, is_smoke: bool = False):
        self._spec, self._folder, self._share = parse_data_spec(data), folder, share
        if all("test" in plan_of_data(term) for term, _ in self._spec.terms()):
            raise ValueError(f"--split {HELD_OUT_SPLIT}: {data} has a test split of its own. Give --split test.")
        most = {VALIDATION_SPLIT: MAX_TUNING_IMAGES, TRAINING_SPLIT: MAX_TRAINING_IMAGES}
        self._most: Mapping[str, int] = dict.fromkeys(_PART_OF_SPLIT, NUM_SMOKE_IMAGES) if is_smoke else most
        self.tuning_split = VALIDATION_SPLIT
        self._examples: dict[str, Dataset] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(_PART_OF_SPLIT)

    def __len__(self) -> int:
        return len(_PART_OF_SPLIT)

    def __contains__(self, split: object) -> bool:
        return split in _PART_OF_SPLIT  # without opening it

    def __getitem__(self, split: str) -> Dataset:
        if split not in _PART_OF_SPLIT:
            raise KeyError(split)
        if split not in self._examples:
            path = self._folder / f"{split}.arrow"
            part, most = _PART_OF_SPLIT[split], self._most.get(split)
            self._share.from_main(lambda: write_examples(path, islice(stream_part(self._spec, part), most)))
            self._examples[split] = Dataset.from_file(str(path))
        return self._examples[split]

    def sha256(self) -> str:
        """The identity of the part under test, as `split_sha256` gives it."""
        tested = self[HELD_OUT_SPLIT]
        return hash_images(zip(tested["image_id"], tested["sha256"], strict=True))
