"""The one adapter through which every model enters the harness: ours, a checkpoint of others, a reading of either."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from regionmed_clip.eval.baselines.model_entries import OWN_GEOMETRY, ModelEntry
from regionmed_clip.eval.saved_models import answers_questions, load_model, load_question_model
from regionmed_clip.eval.tasks.revision import weights_revision
from regionmed_clip.eval.tasks.vqa_facts import AnswerFacts, Answering


@dataclass(frozen=True)
class ImageTextModel:
    """A loaded model as tasks take it.

    Attributes:
        entry: its name, folder, kind, reading and geometry.
        model, processor: a RegionMedClipModel in evaluation mode and its RegionMedClipProcessor; of a checkpoint of
            others the global path is that checkpoint's own, see `load_model`.
        revision: of the weights, those of an answer head among them; see `weights_revision`.
        answering: the model that answers questions, of which `model` is the encoder; None: there is no answer head.
    """

    entry: ModelEntry
    model: Any
    processor: Any
    revision: str
    answering: Answering | None = None

    @classmethod
    def load(cls, entry: ModelEntry, device: str | torch.device = "cpu") -> ImageTextModel:
        """The model that the entry names; ValueError where its folder cannot be read."""
        if answers_questions(entry.folder):
            whole, processor = load_question_model(entry.folder, device)
            answering = Answering(whole, AnswerFacts.read(entry.folder))
            return cls(entry, whole.regionmed_clip, processor, weights_revision(whole), answering)
        geometry = {} if entry.geometry == OWN_GEOMETRY else {"geometry": entry.geometry}
        model, processor = load_model(entry.folder, device, **geometry)
        return cls(entry, model, processor, weights_revision(model))

    @property
    def name(self) -> str:
        """By which Results call it."""
        return self.entry.name

    @property
    def region_reading(self) -> str:
        """How it reads a region."""
        return self.entry.reading

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Number of distinct texts longer than the tokenizer's limit, of which the model sees the beginning alone."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(sorted(set(texts)), truncation=False, verbose=False)["input_ids"] if texts else []
        return sum(len(row) > tokenizer.model_max_length for row in ids)


def load_all(entries: Iterable[ModelEntry], device: str | torch.device = "cpu") -> Iterator[ImageTextModel]:
    """The models of the entries in their order; neighbours of one folder and geometry share their weights in memory."""
    last: ImageTextModel | None = None
    for entry in entries:
        place = (entry.folder, entry.geometry)
        if last is None or place != (last.entry.folder, last.entry.geometry):
            last = ImageTextModel.load(entry, device)
        last = replace(last, entry=entry)
        yield last
