"""The questions of a split as arrays: what is asked of which image, how it is to be answered, of whom the image is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.visual_questions import VisualQuestion, balance_questions, questions_of_example

NOT_MARKED = -1


@dataclass(frozen=True)
class QuestionChoice:
    """Which questions are asked of the examples.

    Attributes:
        is_derived: those that regions answer by rule too (region_questions.py), not the stored ones alone.
        is_balanced: as many of them are left out as `balance_questions` leaves out of a training split.
    """

    is_derived: bool = True
    is_balanced: bool = False

    def protocol(self) -> dict[str, Any]:
        """What a protocol says of it."""
        return {"derived_questions": self.is_derived, "balanced_questions": self.is_balanced}


@dataclass(frozen=True)
class AskedSplit:
    """Q questions asked of the N images of a split, those of an image one after the other, images in order.

    Attributes:
        questions: Q.
        images: (Q,) int64 row of the image of each question, ascending.
        has_regions: (N,) bool; whether anything is annotated in the image.
        num_left_out: questions that the balance has cost.
    """

    questions: Sequence[VisualQuestion]
    images: np.ndarray
    has_regions: np.ndarray
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def texts(self) -> list[str]:
        """Q question texts."""
        return [question.question for question in self.questions]

    @cached_property
    def answers(self) -> np.ndarray:
        """(Q,) str right answers, normalised."""
        return np.array([question.answer for question in self.questions], dtype=str)

    @cached_property
    def kinds(self) -> np.ndarray:
        """(Q,) str."""
        return np.array([question.kind for question in self.questions], dtype=str)

    @cached_property
    def is_closed(self) -> np.ndarray:
        """(Q,) bool; the others are open."""
        return np.array([question.answer_type == "closed" for question in self.questions], dtype=bool)

    @cached_property
    def marked(self) -> np.ndarray:
        """(Q,) int64 place, among all regions of the image's example, of the marked one; NOT_MARKED without a mark."""
        places = (NOT_MARKED if question.marked is None else question.marked for question in self.questions)
        return np.fromiter(places, dtype=np.int64, count=len(self.questions))

    @property
    def is_marked(self) -> np.ndarray:
        """(Q,) bool; whether the question marks a region."""
        return self.marked != NOT_MARKED

    def questions_of(self, first: int, stop: int) -> slice:
        """The questions asked of the images at rows `first` to `stop`."""
        start, end = np.searchsorted(self.images, [first, stop])
        return slice(int(start), int(end))


def ask_split(examples: Iterable[Mapping[str, Any]], choice: QuestionChoice) -> AskedSplit:
    """The questions of `examples`, whose images are not looked at."""
    rows: list[int] = []
    questions: list[VisualQuestion] = []
    has_regions = []
    for row, example in enumerate(examples):
        own = questions_of_example(example, derived=choice.is_derived)
        questions += own
        rows += [row] * len(own)
        has_regions.append(bool(example["regions"]))
    images, num_asked = np.array(rows, dtype=np.int64), len(questions)
    if choice.is_balanced:
        wanted = Counter(balance_questions(questions))
        kept = [place for place, question in enumerate(questions) if _take(wanted, question)]
        questions, images = [questions[place] for place in kept], images[kept]
    return AskedSplit(questions, images, np.array(has_regions, dtype=bool), num_asked - len(questions))


def _take(wanted: Counter[VisualQuestion], question: VisualQuestion) -> bool:
    """Whether one more of this question is wanted; it is then no longer."""
    wanted[question] -= 1
    return wanted[question] >= 0
