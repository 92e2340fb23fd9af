"""Ways to ask presence questions of embeddings: which prompts stand for a finding, and the scores that they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionmed_clip.eval.prompts import absence_prompts, ensemble_prompts, presence_prompts
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.measured import hash_texts
from regionmed_clip.eval.tasks.questions import PresenceQuestion, study_of

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> (T, D) float32 unit embeddings


@dataclass(frozen=True)
class Prompting:
    """One way to ask Q presence questions.

    Attributes:
        suffix: what it adds to the names of metrics.
        description: for the protocol.
        groups: the prompts of each question.
        classifiers: (Q, D) float32, what they come to; the score of an image is its inner product with that.
    """

    suffix: str
    description: str
    groups: list[tuple[str, ...]]
    classifiers: np.ndarray

    def scores(self, image_embeds: np.ndarray, questions: Sequence[PresenceQuestion]) -> list[np.ndarray]:
        """For each of the questions, in the same order as here, (n,) float32 scores of its images; higher says shown.

        Args:
            image_embeds: (N, D) of the split whose rows the questions name, which may be another than was asked first.
        """
        pairs = zip(questions, self.classifiers, strict=True)
        return [image_embeds[question.images] @ classifier for question, classifier in pairs]

    @property
    def protocol(self) -> dict[str, Any]:
        """What was said: how many texts, their hash and the description."""
        texts = {text for group in self.groups for text in group}
        return {"unique_texts": len(texts), "prompts_sha256": hash_texts(texts), "prompts": self.description}


def prompt_presence(embedded: EmbeddedSplit, questions: Sequence[PresenceQuestion], encode: Encode) -> Prompting:
    """Presence alone, the mean of its prompts: what every published `macro_auroc` was taken with."""
    groups = [presence_prompts(*words) for words in _words(embedded, questions)]
    description = "presence only; negatives are images of the same source and modality"
    return Prompting("", description, groups, mean_embeddings(groups, encode))


def prompt_against_absence(embedded: EmbeddedSplit, questions: Sequence[PresenceQuestion], encode: Encode) -> Prompting:
    """Presence against absence: the score is cosine(image, presence) - cosine(image, absence).

    The softmax over the two, at any temperature, ranks images in the same way.
    """
    words = _words(embedded, questions)
    present, absent = [presence_prompts(*said) for said in words], [absence_prompts(*said) for said in words]
    means = unit(mean_embeddings([*present, *absent], encode))
    groups = [first + second for first, second in zip(present, absent, strict=True)]
    description = "presence against absence in the same templates; negatives are images of the same source and modality"
    return Prompting("_pos_neg", description, groups, means[: len(words)] - means[len(words) :])


def prompt_ensemble(embedded: EmbeddedSplit, questions: Sequence[PresenceQuestion], encode: Encode) -> Prompting:
    """Presence in more templates, under every synonym, and as a description of what is seen."""
    groups = [tuple(w.text for w in ensemble_prompts(*words)) for words in _words(embedded, questions)]
    description = "presence in all templates, synonyms and descriptions of eval/prompts.py; same negatives"
    return Prompting("_ensemble", description, groups, unit(mean_embeddings(groups, encode)))


def mean_embeddings(groups: Sequence[Sequence[str]], encode: Encode) -> np.ndarray:
    """(G, D) float32: the mean embedding of each group of texts, of which none is empty; one call of `encode`."""
    if not groups:
        return np.zeros((0, 1), dtype=np.float32)
    flat = encode([text for group in groups for text in group])
    ends = np.cumsum([len(group) for group in groups])
    return np.stack([flat[end - len(group) : end].mean(axis=0) for group, end in zip(groups, ends, strict=True)])


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows (G, D) at unit length; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _words(embedded: EmbeddedSplit, questions: Sequence[PresenceQuestion]) -> list[tuple[str, str]]:
    """(what the images are, the finding) of each question."""
    return [(study_of(embedded, question.source, question.modality), question.finding) for question in questions]
