"""Visual questions: what may be asked of an image, with the answer in the form in which answers are compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from regionmed_clip.processing.corpus.phantoms.study import MODALITIES, SOURCE_NAME
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.region_questions import derive_questions

ANSWER_TYPES = ("open", "closed")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11))))
_PUNCTUATION = " .,;:!?'\"`"
_ATTRIBUTES = ("finding", "anatomy", "laterality", "place", "size", "severity", "certainty", "is_negated")


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """A question asked of one image.

    Attributes:
        image_id: of the image.
        question: as it is asked.
        answer: as `normalize_answer` writes it.
        kind: "open", "closed" or a finer name, such as "closed-presence" or "region-finding".
        marked: index of the region of the image's record that the question marks; None marks none.
    """

    image_id: str
    question: str
    answer: str
    kind: str
    marked: int | None = None

    @property
    def answer_type(self) -> str:
        """ "closed" where the kind begins with this word in upper or lower case, else "open"."""
        return "closed" if self.kind.strip().lower().startswith("closed") else "open"


def normalize_answer(answer: str) -> str:
    """The answer in lower case, with single spaces, without articles, full stop or quotes, small numbers as digits.

    Source: the rule by which answers are compared in Antol et al., VQA: Visual Question Answering, arXiv:1505.00468,
    sec. 3, for medical answers: punctuation goes at the ends only ("t2-weighted", "3.5 cm" and "(right)" stay), and
    "none" is not 0. An answer of nothing else stays as it is: "a" is "a".
    """
    text = " ".join(answer.lower().split())
    while (shorter := _without_fillers(text)) not in ("", text):
        text = shorter
    return " ".join(_NUMBERS.get(word, word) for word in text.split())


def questions_of_example(example: Mapping[str, Any], derived: bool = True, seed: int = 0) -> list[VisualQuestion]:
    """The questions of one streamed example: the stored ones, each once, then those that follow from its regions.

    Args:
        example: `image_id`, `qa` and, for derived ones, `regions`, `source` and `modality`; its image is not read.
        derived: add the questions of region_questions.py.
        seed: of the choices among those.
    """
    image_id = example["image_id"]
    asked = [(pair["question"], pair["answer"], pair["kind"], None) for pair in example["qa"]]
    if derived and example["regions"]:
        regions = [_region(region) for region in example["regions"]]
        found = derive_questions(regions, image_id, looked_for=_looked_for(example), seed=seed)
        asked += [(question.question, question.answer, question.kind, marked) for question, marked in found]
    questions: dict[tuple[str, str, int | None], VisualQuestion] = {}
    for question, answer, kind, marked in asked:
        text, said = " ".join(question.split()), normalize_answer(answer)
        questions.setdefault((text, said, marked), VisualQuestion(image_id, text, said, kind.strip().lower(), marked))
    return list(questions.values())


def balance_questions(questions: Iterable[VisualQuestion], seed: int = 0) -> list[VisualQuestion]:
    """Those of the questions of a split that remain once their texts tell little of their answers, in their order.

    Of each question text no answer stays more often than the second most frequent one, or than once where there is no
    other; which ones stay is decided by a hash of image, question and `seed`. So the most frequent answer to a question
    with two answers is right for one of two. Meant for questions by template on many images: of questions that are
    asked once only, nothing goes.
    """
    kept = list(questions)
    places: dict[str, dict[str, list[int]]] = {}
    for place, question in enumerate(kept):
        places.setdefault(question.question, {}).setdefault(question.answer, []).append(place)
    chosen: list[int] = []
    for by_answer in places.values():
        counts = sorted(map(len, by_answer.values()), reverse=True)
        most = counts[1] if len(counts) > 1 else 1
        for same in by_answer.values():
            chosen += sorted(same, key=lambda place: _ticket(kept[place], seed))[:most]
    return [kept[place] for place in sorted(chosen)]


def majority_answers(questions: Iterable[VisualQuestion]) -> dict[str, str]:
    """The most frequent answer to every question text; of equally frequent ones the first by its letters."""
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.question, Counter())[question.answer] += 1
    return {question: most_frequent(answers)[0] for question, answers in counts.items()}


def most_frequent(counts: Counter[str]) -> Sequence[str]:
    """The counted names, the most frequent first, equally frequent ones by their letters."""
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _ticket(question: VisualQuestion, seed: int) -> bytes:
    """What orders questions by chance, equal on every machine."""
    words = (str(seed), question.image_id, question.question, question.answer, str(question.marked))
    return hashlib.blake2b("\x1f".join(words).encode("utf-8", "backslashreplace"), digest_size=8).digest()


def _without_fillers(text: str) -> str:
    """The text without punctuation at its ends and without articles; "" where nothing is left."""
    return " ".join(word for word in text.strip(_PUNCTUATION).split() if word not in _ARTICLES)


def _region(region: Mapping[str, Any]) -> RegionRecord:
    """The region of an example without its mask, which no question asks for."""
    x0, y0, x1, y1 = region["box"]
    return RegionRecord(box=(x0, y0, x1, y1), **{name: region[name] for name in _ATTRIBUTES})


def _looked_for(example: Mapping[str, Any]) -> frozenset[str]:
    """The findings that this example surely does not show where it has no region of them: of a phantom its kind's."""
    return _findings_of(example["modality"]) if example["source"] == SOURCE_NAME else frozenset()


@lru_cache(maxsize=16)
def _findings_of(modality: str) -> frozenset[str]:
    """All findings that a phantom of this modality can show."""
    return frozenset(finding for kind in MODALITIES if kind.name == modality for finding in kind.findings)
