"""The questions of a split as numbers: texts tokenised once, answers as classes, drawn by position for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.corpus.box_noise import jitter_boxes
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .question_store import QuestionStore
from .sample_order import QUESTION_STREAM, SampleOrder
from .vqa_recipe import REGION_MODES

GIVEN, PROPOSED, OFF = range(len(REGION_MODES))
NO_ANSWER = -1  # class of an answer that is not in the vocabulary
LENGTH_MULTIPLE = 8  # of tokens: each new shape costs the CPU's matrix kernels a compilation
QuestionBatch = dict[str, Any]


@dataclass(frozen=True)
class AskedTexts:
    """Distinct question texts: `input_ids`, `attention_mask` (U, L) int64; `num_cut` were too long and were cut."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    row_of_text: dict[str, int]
    num_cut: int

    @classmethod
    def encode(cls, texts: Sequence[str], processor: RegionMedClipProcessor) -> AskedTexts:
        """The texts, each once, as the text tower takes them."""
        unique = list(dict.fromkeys(texts))
        encoded = processor.encode_texts(unique)
        lengths = processor.tokenizer(unique, truncation=False, padding=False, verbose=False)["input_ids"]
        num_cut = sum(len(ids) > processor.tokenizer.model_max_length for ids in lengths)
        rows = {text: row for row, text in enumerate(unique)}
        return cls(encoded["input_ids"], encoded["attention_mask"], rows, num_cut)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (Q, L) of the texts at `rows`, padding that none of them needs cut off."""
        index = torch.from_numpy(rows)
        ids, mask = self.input_ids[index], self.attention_mask[index]
        longest = int(mask.sum(dim=1).max())
        is_behind = bool(mask[:, 0].all())  # padding; a tower that pads to the full length has a mask of ones
        length = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, ids.shape[1]) if is_behind else ids.shape[1]
        return {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}


class QuestionSet:
    """The questions of the images of a store that have one.

    Per image, N of them: `rows` in the store, and questions `ends[i - 1]` to `ends[i]`. Per question, M of them:
    `texts` (row of its text), `answers` (class, or `NO_ANSWER`), `marked` (index of the region, -1: none).

    Args:
        by_row: (row of an image in the store, its questions); images without a question are passed over.
    """

    def __init__(
        self,
        store: QuestionStore,
        by_row: Sequence[tuple[int, Sequence[VisualQuestion]]],
        vocabulary: AnswerVocabulary,
        processor: RegionMedClipProcessor,
    ):
        self.store = store
        asked = [(row, questions) for row, questions in by_row if questions]
        self.questions = [question for _, questions in asked for question in questions]
        if not self.questions:
            raise ValueError("the split has no questions; give data with questions (`qa`), or derived_questions=true.")
        self.rows = np.asarray([row for row, _ in asked], dtype=np.int64)
        self.ends = np.cumsum([len(questions) for _, questions in asked])
        self.encoded = AskedTexts.encode([question.question for question in self.questions], processor)
        classes = (vocabulary.index(question.answer) for question in self.questions)
        self.answers = np.asarray([NO_ANSWER if found is None else found for found in classes], dtype=np.int64)
        self.texts = np.asarray([self.encoded.row_of_text[question.question] for question in self.questions])
        marked = (question.marked for question in self.questions)
        self.marked = np.asarray([-1 if region is None else region for region in marked], dtype=np.int64)
        self.processor = processor

    def __len__(self) -> int:
        return len(self.rows)

    def questions_of(self, image: int) -> np.ndarray:
        """Indices of the questions of image 0 ... N - 1."""
        return np.arange(self.ends[image - 1] if image else 0, self.ends[image])

    def assemble(
        self,
        images: Sequence[int],
        chosen: Sequence[np.ndarray],
        modes: Sequence[np.ndarray],
        boxes: Sequence[Sequence[np.ndarray]],
    ) -> QuestionBatch:
        """The tensors of a batch.

        `pixel_values` (B, 3, H, W); `input_ids`, `attention_mask` (Q, L); `image_index`, `answer` (Q,) int64;
        `region_boxes` (Q, R, 4) and `region_mask` (Q, R) of the given regions, R at least 1; `is_proposed` (Q,) bool;
        and `sample_id`.

        Args:
            images: B of 0 ... N - 1.
            chosen: for each of them the indices of its questions.
            modes: for each of them the place of every question's mode in `REGION_MODES`.
            boxes: for each of them every question's given boxes (R, 4).
        """
        questions = np.concatenate(chosen)
        flat_boxes = [given for of_image in boxes for given in of_image]
        num_regions = max(1, max(map(len, flat_boxes)))
        region_boxes = torch.zeros(len(questions), num_regions, 4)
        region_mask = torch.zeros(len(questions), num_regions, dtype=torch.bool)
        for place, given in enumerate(flat_boxes):
            region_boxes[place, : len(given)] = torch.from_numpy(given)
            region_mask[place, : len(given)] = True
        rows = self.rows[list(images)]
        frames = torch.from_numpy(self.store.frames(rows))
        image_index = np.repeat(np.arange(len(images)), [len(of_image) for of_image in chosen])
        return {
            "sample_id": [self.store.image_ids[row] for row in rows],
            "pixel_values": self.processor.image_processor.normalize_frames(frames),
            **self.encoded.batch(self.texts[questions]),
            "image_index": torch.from_numpy(image_index),
            "region_boxes": region_boxes,
            "region_mask": region_mask,
            "is_proposed": torch.from_numpy(np.concatenate(modes) == PROPOSED),
            "answer": torch.from_numpy(self.answers[questions]),
        }

    def boxes_given(self, image: int, question: int, mode: int) -> np.ndarray:
        """(R, 4) float32 boxes that a question is given: the marked one, else all in the frame; none if not given."""
        all_boxes = self.store.boxes[self.rows[image]]
        if mode != GIVEN:
            return all_boxes[:0]
        marked = self.marked[question]
        boxes = all_boxes if marked < 0 else all_boxes[marked : marked + 1]
        return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


@dataclass(frozen=True)
class DrawSettings:
    """How training draws at a position: at most so many questions and regions, the shares of the modes, noise."""

    seed: int
    questions_per_image: int
    shares: tuple[float, ...]  # in the order of REGION_MODES
    max_regions: int
    box_noise: float


class DrawnQuestions:
    """Training batches by global position: a pure function of (seed, position), whatever the number of processes."""

    def __init__(self, questions: QuestionSet, settings: DrawSettings):
        self.questions = questions
        self.settings = settings
        self.order = SampleOrder(len(questions), settings.seed)
        shares = np.asarray(settings.shares)
        self._shares = shares / shares.sum()

    def num_questions(self, positions: range) -> int:
        """How many questions take part at these positions, without drawing them."""
        images = self.order.indices(positions.start, positions.stop)
        numbers = np.diff(self.questions.ends, prepend=0)[images]
        return int(np.minimum(numbers, self.settings.questions_per_image).sum())

    def batch(self, positions: range) -> QuestionBatch:
        """The batch of the images at these positions; see `QuestionSet.assemble`."""
        images = self.order.indices(positions.start, positions.stop).tolist()
        drawn = [self._draw(image, position) for image, position in zip(images, positions)]
        chosen, modes, boxes = zip(*drawn)
        return self.questions.assemble(images, chosen, modes, boxes)

    def _draw(self, image: int, position: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The questions of an image that are asked at a position, their modes, and their boxes."""
        settings = self.settings
        generator = np.random.default_rng([settings.seed, QUESTION_STREAM, position])
        of_image = self.questions.questions_of(image)
        number = min(len(of_image), settings.questions_per_image)
        chosen = generator.choice(of_image, size=number, replace=False)
        modes = generator.choice(len(REGION_MODES), size=number, p=self._shares)
        boxes = []
        for question, mode in zip(chosen, modes):
            given = self.questions.boxes_given(image, question, mode)
            if len(given) > settings.max_regions:
                given = given[np.sort(generator.choice(len(given), size=settings.max_regions, replace=False))]
            if settings.box_noise and len(given):
                limits = {"frame_size": (1.0, 1.0), "min_side": 1 / self.questions.store.image_size}
                given = jitter_boxes(given, settings.box_noise, generator, **limits).astype(np.float32)
            boxes.append(given)
        return chosen, modes, boxes


def all_batches(questions: QuestionSet, mode: int, max_questions: int) -> Iterator[tuple[np.ndarray, QuestionBatch]]:
    """(indices of the questions, batch) of all images in order, every question once and in one mode.

    Args:
        mode: place in `REGION_MODES`.
        max_questions: of a batch, unless one image has more.
    """
    starts = [0]
    for image in range(len(questions)):
        first = questions.ends[starts[-1] - 1] if starts[-1] else 0
        if image > starts[-1] and questions.ends[image] - first > max_questions:
            starts.append(image)
    for start, stop in pairwise([*starts, len(questions)]):
        images = range(start, stop)
        chosen = [questions.questions_of(image) for image in images]
        modes = [np.full(len(own), mode) for own in chosen]
        boxes = [
            [questions.boxes_given(image, question, mode) for question in own] for image, own in zip(images, chosen)
        ]
        yield np.concatenate(chosen), questions.assemble(images, chosen, modes, boxes)
