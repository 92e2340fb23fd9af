"""The answers that a model can give: taken from the training questions, never from those it is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from regionmed_clip.processing.corpus.visual_questions import VisualQuestion, most_frequent, normalize_answer


@dataclass(frozen=True)
class AnswerVocabulary:
    """Normalised answers in the order of a classifier's outputs.

    Raises:
        ValueError: no answer, an answer twice, or one that is not normalised.
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("The vocabulary has 0 answers; it needs at least one. Give training questions.")
        counts = Counter(self.answers)
        for answer in self.answers:
            if answer != normalize_answer(answer) or not answer or counts[answer] > 1:
                raise ValueError(
                    f"Answer {answer!r} occurs {counts[answer]} times; answers must be normalised and each be there "
                    "once. Write them with `normalize_answer`."
                )

    @classmethod
    def from_questions(
        cls, questions: Iterable[VisualQuestion], min_count: int = 1, max_answers: int | None = None
    ) -> AnswerVocabulary:
        """The answers to these questions, the most frequent first, equally frequent ones by their letters.

        Args:
            questions: of the training split alone; their answers are the vocabulary.
            min_count: answers that occur less often are left out; at least 1.
            max_answers: at most so many; None: all.

        Raises:
            ValueError: no answer is left, or a number is below 1.
        """
        if min_count < 1 or (max_answers is not None and max_answers < 1):
            raise ValueError(
                f"min_count is {min_count} and max_answers {max_answers}; both must be at least 1. Use min_count=1 and "
                "max_answers=None for all answers."
            )
        counts = Counter(question.answer for question in questions)
        answers = [answer for answer in most_frequent(counts) if counts[answer] >= min_count][:max_answers]
        if not answers:
            raise ValueError(
                f"Of {counts.total()} training questions no answer occurs {min_count} times; the vocabulary needs at "
                "least one. Lower min_count, or give training data with questions."
            )
        return cls(tuple(answers))

    @classmethod
    def from_id2label(cls, id2label: Mapping[int | str, str]) -> AnswerVocabulary:
        """The vocabulary that a model's configuration holds; JSON has made texts of its numbers.

        Raises:
            ValueError: the numbers are not 0, 1, ... without a gap.
        """
        by_index = {int(index): answer for index, answer in id2label.items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError(
                f"id2label numbers {sorted(by_index)[:5]} ...; answers must be numbered from 0 without a gap. Take the "
                "configuration of a model that was trained on questions."
            )
        return cls(tuple(by_index[index] for index in range(len(by_index))))

    def __len__(self) -> int:
        return len(self.answers)

    def __contains__(self, answer: object) -> bool:
        return answer in self._indices

    def index(self, answer: str) -> int | None:
        """The output that stands for a normalised answer; None where the training questions do not have it."""
        return self._indices.get(answer)

    @property
    def id2label(self) -> dict[int, str]:
        """Output -> answer, for the model's configuration."""
        return dict(enumerate(self.answers))

    @property
    def label2id(self) -> dict[str, int]:
        """Answer -> output, for the model's configuration."""
        return dict(self._indices)

    def coverage(self, questions: Iterable[VisualQuestion]) -> float:
        """The share of questions whose answer the vocabulary holds: no model that uses it can be right more often.

        NaN where there are no questions.
        """
        is_known = [question.answer in self for question in questions]
        return sum(is_known) / len(is_known) if is_known else float("nan")

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {answer: index for index, answer in enumerate(self.answers)}
