"""Answers without an answer head: every candidate is made a statement, and the one nearest to what is seen is said.

What is seen is the marked region's embedding, or the image's, as the encoder gives them to every task; so this costs no
pass over the images. The candidates of a question are the answers to the questions of its kind in the split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.vqa_questions import AskedSplit

MAX_ASKED_CANDIDATES = 64  # of a kind; with more, the question is left out of the statement, or texts would be millions
_SHOWN = re.compile(r"(?:does|do) (?:this|the|these) .*?(?:show|contain|have) (?P<what>.+?)\??", re.IGNORECASE)
_THERE = re.compile(r"(?:is|are|was|were) there (?P<what>.+?)\??", re.IGNORECASE)
_COUNT = re.compile(r"how many (?P<what>.+?) (?:are|is|does|do|can|were) .*", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the|any|some) ", re.IGNORECASE)
_SHOW = re.compile(r"what (?:does|do|is|are) .*(?:show|marked region|seen|shown)\??", re.IGNORECASE)


def statement_of(question: str, answer: str) -> str:
    """What holds where `answer` is the answer: "Is there a cyst?" and "no" give "no cyst".

    A question of no known form is followed by its answer.
    """
    text = question.strip()
    presence = _SHOWN.fullmatch(text) or _THERE.fullmatch(text)
    if presence and answer in ("yes", "no"):
        what = presence["what"]
        return what if answer == "yes" else f"no {_ARTICLE.sub('', what)}"
    if count := _COUNT.fullmatch(text):
        return f"{answer} {count['what']}"
    return answer if _SHOW.fullmatch(text) else f"{text} {answer}"


@dataclass(frozen=True)
class RankedAnswers:
    """What the nearest statements say of Q questions.

    Attributes:
        answers: (Q,) str. num_candidates: (Q,) int64. num_statements: distinct ones, of all questions.
    """

    answers: np.ndarray
    num_candidates: np.ndarray
    num_statements: int


def rank_statements(
    asked: AskedSplit, seen: Sequence[np.ndarray], encode: Callable[[Sequence[str]], np.ndarray]
) -> list[RankedAnswers]:
    """The answers by each of `seen`, (Q, D) float32 unit embeddings of what is seen; of equals the first by letters.

    Args:
        encode: texts -> (T, D) float32 unit embeddings.
    """
    candidates = {kind: sorted(set(asked.answers[asked.kinds == kind].tolist())) for kind in set(asked.kinds.tolist())}
    statements: dict[str, int] = {}
    rows_of: dict[tuple[str, str], np.ndarray] = {}
    for text, kind in zip(asked.texts, asked.kinds.tolist(), strict=True):
        if (text, kind) not in rows_of:
            own = candidates[kind]
            said = own if len(own) > MAX_ASKED_CANDIDATES else [statement_of(text, answer) for answer in own]
            rows_of[text, kind] = np.array([statements.setdefault(one, len(statements)) for one in said])
    embeds = encode(list(statements))
    ranked = []
    for of_view in seen:
        answers = []
        for place, (text, kind) in enumerate(zip(asked.texts, asked.kinds.tolist(), strict=True)):
            scores = embeds[rows_of[text, kind]] @ of_view[place]
            answers.append(candidates[kind][int(scores.argmax())])
        numbers = np.array([len(candidates[kind]) for kind in asked.kinds.tolist()], dtype=np.int64)
        ranked.append(RankedAnswers(np.array(answers, dtype=str), numbers, len(statements)))
    return ranked


def see_images(asked: AskedSplit, embedded: EmbeddedSplit) -> np.ndarray:
    """(Q, D) float32: the embedding of each question's image."""
    return embedded.image_embeds[asked.images]


def see_marked(
    asked: AskedSplit, embedded: EmbeddedSplit, marked_boxes: Sequence[tuple[float, ...] | None]
) -> np.ndarray:
    """(Q, D) float32: the embedding of each question's marked region; of its image where none is in the frame.

    Args:
        marked_boxes: Q boxes of the marked regions in original pixels; None without a mark.
    """
    rows = {
        (int(image), *box): row
        for row, (image, box) in enumerate(
            zip(embedded.region_image, embedded.region_boxes_pixel_xyxy.tolist(), strict=True)
        )
    }
    seen = see_images(asked, embedded).copy()
    for place, (image, box) in enumerate(zip(asked.images.tolist(), marked_boxes, strict=True)):
        if box is not None:
            row = rows.get((image, *np.asarray(box, dtype=np.float32).tolist()))
            if row is not None:
                seen[place] = embedded.region_embeds[row]
    return seen
