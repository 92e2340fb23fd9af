"""What a folder with an answer head says beside its weights: how it was asked in training, and what was answered most.

It is the file `answer_facts.json`, which train/finetune_vqa.py leaves in final/. It holds answers of the training split
and hashes of its question texts, never the texts: they may say more of a patient than may be published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice
from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.corpus.visual_questions import VisualQuestion

FACTS_FILE = "answer_facts.json"


def question_hash(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of a question's text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class AnswerFacts:
    """How a model was taught to answer.

    Attributes:
        has_images: False for a control that is asked without the image.
        is_derived, is_balanced: as in `QuestionChoice`, of its training questions.
        by_question, by_kind: `question_hash`, or kind -> the most frequent answer of the training questions.
    """

    has_images: bool = True
    is_derived: bool = True
    is_balanced: bool = False
    by_question: Mapping[str, str] = field(default_factory=dict)
    by_kind: Mapping[str, str] = field(default_factory=dict)

    @property
    def choice(self) -> QuestionChoice:
        """The choice of questions by which it was trained."""
        return QuestionChoice(self.is_derived, self.is_balanced)

    def majority(self, question: VisualQuestion) -> str | None:
        """What was answered most to this text in training; to this kind, where the text is new; None where both are."""
        return self.by_question.get(question_hash(question.question), self.by_kind.get(question.kind))

    def write(self, folder: Path) -> None:
        """None; `folder` then has the file."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / FACTS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> AnswerFacts:
        """What the folder says; of one without the file the defaults.

        Raises:
            ValueError: the file is not what `write` leaves.
        """
        path = folder / FACTS_FILE
        if not path.is_file():
            return cls()
        try:
            facts = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); take the folder as finetune_vqa.py left it.") from error
        if not (isinstance(facts.by_question, dict) and isinstance(facts.by_kind, dict)):
            raise ValueError(f"{path}: by_question and by_kind must be objects; take the folder as it was left.")
        return facts


@dataclass(frozen=True)
class Answering:
    """A RegionMedClipForVisualQuestionAnswering in evaluation mode, with what its folder says of it."""

    model: Any
    facts: AnswerFacts

    @property
    def vocabulary(self) -> AnswerVocabulary:
        """The answers that it can give, in the order of its outputs."""
        return AnswerVocabulary.from_id2label(self.model.config.id2label)
