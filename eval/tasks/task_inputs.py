"""What every task is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import embed_examples, embed_texts
from regionmed_clip.eval.tasks.measured import Measured
from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice

Examples = Iterable[Mapping[str, Any]]


def _no_examples_of(split: str) -> Examples:
    """Never anything: without other splits' examples there is a ValueError."""
    raise ValueError(f"the examples of split {split!r} were not given to this run. Pass `examples_of` to TaskInputs.")


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """A model and the split it is measured on, embedded once for all tasks.

    Attributes:
        model, processor: a RegionMedClipModel in evaluation mode and its RegionMedClipProcessor, of any starting point.
        region_reading: how this model reads a region; see `region_readings.READINGS`.
        embedded: the split under test, its regions read so.
        examples: the same split, which may be gone through again and again.
        embed_split: name of another split -> that split embedded; kept, so that asking twice costs nothing. ValueError
            for a split that the data lacks.
        splits: names of the splits that the data has.
        tuning_split: the split on which thresholds and hyper-parameters are chosen: "validation", or, where some source
            has none, "tuning", which has a tenth of that source's training images; see `SplitExamples`. `embed_split`
            raises where the data has neither.
        examples_of: name of another split -> its examples, for tasks that look at its images anew; may be gone through
            again and again.
        seed: of the bootstrap and of everything that is drawn.
        batch_size, device, is_shown: images in a pass, where to compute, and whether progress is shown.
        share: the part of the passes that is this process's; every process goes through all tasks.
        is_brief: for a look while a model trains; a task then leaves out figures that need a pass of their own beside
            those that are its core.
        answering: the model that answers questions, of which `model` is the encoder; None: there is no answer head.
        question_choice: which questions are asked of the examples; the same for models that are compared.
    """

    model: Any
    processor: Any
    region_reading: str
    embedded: EmbeddedSplit
    examples: Examples
    embed_split: Callable[[str], EmbeddedSplit]
    splits: Sequence[str]
    tuning_split: str
    examples_of: Callable[[str], Examples] = _no_examples_of
    seed: int = 0
    batch_size: int = 64
    device: Any = "cpu"
    is_shown: bool = True
    share: Share = ALONE
    is_brief: bool = False
    answering: Answering | None = None
    question_choice: QuestionChoice = field(default_factory=QuestionChoice)

    @property
    def pass_options(self) -> dict[str, Any]:
        """The options of a pass over examples, by the names that everything that makes one gives them."""
        return {
            "batch_size": self.batch_size,
            "device": self.device,
            "progress": self.is_shown,
            "share": self.share,
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 unit embeddings of the texts; each distinct one is encoded once."""
        return embed_texts(self.model, self.processor, texts, device=self.device)

    def embed(self, examples: Examples) -> EmbeddedSplit:
        """Other examples, or changed ones, embedded as the split was; nothing of it is kept."""
        reading = self.region_reading
        return embed_examples(self.model, self.processor, examples, region_reading=reading, **self.pass_options)


@dataclass(frozen=True, kw_only=True)
class TaskFindings:
    """Figures of a task, and what a report shows beside them.

    Attributes:
        measured: the figures.
        details: name -> JSON values for one kind of picture or table of the report: bins of a reliability diagram,
            counts of a confusion matrix, rows of the worst errors.
    """

    measured: list[Measured]
    details: dict[str, Any] = field(default_factory=dict)


Task = Callable[[TaskInputs], TaskFindings]
