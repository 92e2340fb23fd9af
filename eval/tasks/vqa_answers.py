"""A model with an answer head asked all questions of a split, with and without regions, with and without its images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionmed_clip.eval.tasks.embedding import evaluating
from regionmed_clip.eval.tasks.prepared import KeptExample, keep_prepared
from regionmed_clip.eval.tasks.region_readings import normalized
from regionmed_clip.eval.tasks.sharing import ALONE, Share
from regionmed_clip.eval.tasks.vqa_questions import AskedSplit

REGIONS = ("given", "proposed", "off")
IMAGES = ("as_is", "blank", "shuffled", "none")
QUESTIONS_PER_PASS = 256  # of one image all are asked, however many


@dataclass(frozen=True)
class View:
    """What a model gets beside the question.

    Attributes:
        regions: "given" is the marked region alone where the question marks one, else all that are annotated in the
            image; "proposed" those that the model finds; "off" none.
        image: "as_is"; "blank", black; "shuffled", that of another patient; "none", the question alone.
    """

    regions: str = "off"
    image: str = "as_is"

    def __post_init__(self) -> None:
        if self.regions not in REGIONS or self.image not in IMAGES:
            raise ValueError(
                f"a view has regions {self.regions!r} and image {self.image!r}; choose from {', '.join(REGIONS)} and "
                f"{', '.join(IMAGES)}."
            )
        if self.image == "none" and self.regions != "off":
            raise ValueError(f"regions are {self.regions!r} and there is no image; without one they must be 'off'.")


def answer_questions(
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    asked: AskedSplit,
    views: Sequence[View],
    *,
    clusters: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
    share: Share = ALONE,
) -> list[np.ndarray]:
    """(Q, A) float32 logits under each of the views; every image is decoded once.

    Args:
        model: a RegionMedClipForVisualQuestionAnswering.
        examples: of which `asked` are the questions.
        clusters: (N,) int64, equal for images of one patient; None: each image has its own.
        seed: of the exchange of images where they are shuffled.
        batch_size: most images in a pass.
        share: the passes that this process makes; all get the whole.

    Raises:
        ValueError: no question, or images to shuffle that are all of one patient.
    """
    if not len(asked):
        raise ValueError("the split has no questions; there is nothing to answer. Give data with questions.")
    with tempfile.TemporaryDirectory(prefix="regionmed-vqa-") as folder:
        path = Path(folder) / "frames"
        kept = keep_prepared(examples, processor.image_processor, path, has_images=False)
        partners = None
        if any(view.image == "shuffled" for view in views):
            partners = exchange_images(np.arange(len(kept)) if clusters is None else clusters, seed)
        asker = _Asker(model, processor, kept, asked, partners, device)
        found = []
        for view in views:
            title = f"answer questions, image {view.image}, regions {view.regions}"
            bar = tqdm(desc=title, unit="q", total=len(asked), disable=not (progress and share.is_main) or None)
            parts: list[tuple[int, np.ndarray]] = []
            with evaluating(model), bar:
                for number, images in enumerate(_passes(asked, batch_size)):
                    if share.is_own(number):
                        parts.append((number, asker.ask(images, view)))
                    own = asked.questions_of(images.start, images.stop)
                    bar.update(own.stop - own.start)
            found.append(np.concatenate(share.join(parts)))
    return found


def exchange_images(clusters: np.ndarray, seed: int) -> np.ndarray:
    """(N,) int64: for every image the row of an image of another patient, drawn by `seed`.

    Args:
        clusters: (N,) int64, equal for images of one patient.

    Raises:
        ValueError: all images are of one patient.
    """
    generator = np.random.default_rng(seed)
    partners = generator.permutation(len(clusters))
    while (is_own := clusters[partners] == clusters).any():
        places = np.flatnonzero(is_own)
        if (clusters == clusters[0]).all():
            raise ValueError("all images are of one patient; images are shuffled between patients. Give more of them.")
        partners[places] = generator.integers(0, len(clusters), size=len(places))
    return partners


def _passes(asked: AskedSplit, batch_size: int) -> Iterator[range]:
    """Rows of the images of each pass: at most `batch_size`, or as many as have QUESTIONS_PER_PASS questions."""
    numbers = np.bincount(asked.images, minlength=len(asked.has_regions))
    first, num_questions = 0, 0
    for row, number in enumerate(numbers.tolist()):
        if num_questions and (row - first >= batch_size or num_questions + number > QUESTIONS_PER_PASS):
            yield range(first, row)
            first, num_questions = row, 0
        num_questions += number
    if num_questions:
        yield range(first, len(numbers))


@dataclass(frozen=True)
class _Asker:
    """A model with the split that it is asked about; partners (N,): see `exchange_images`."""

    model: Any
    processor: Any
    kept: Sequence[KeptExample]
    asked: AskedSplit
    partners: np.ndarray | None
    device: Any

    def ask(self, images: range, view: View) -> np.ndarray:
        """(q, A) float32 logits of the questions on the images at these rows."""
        own = self.asked.questions_of(images.start, images.stop)
        encoded = self.processor.encode_texts(self.asked.texts[own])
        inputs: dict[str, Any] = {name: value.to(self.device) for name, value in encoded.items()}
        if view.image != "none":
            rows = self.asked.images[own]
            asked_of, image_index = np.unique(rows, return_inverse=True)
            inputs["pixel_values"] = self._pixels(asked_of, view.image)
            inputs["image_index"] = torch.from_numpy(image_index.astype(np.int64)).to(self.device)
            if view.regions == "proposed":
                inputs["regions"] = "proposed"
            elif view.regions == "given":
                inputs |= self._given(own)
        return self.model(**inputs).logits.float().cpu().numpy()

    def _pixels(self, rows: np.ndarray, image: str) -> torch.Tensor:
        """(B, 3, H, W) of the images at `rows`, or of what stands in their place."""
        if image == "shuffled":
            assert self.partners is not None
            rows = self.partners[rows]
        frames = np.stack([self.kept[row].prepared.frame for row in rows])
        if image == "blank":
            frames = np.zeros_like(frames)
        return normalized(self.processor.image_processor, frames, self.device)

    def _given(self, own: slice) -> dict[str, torch.Tensor]:
        """`region_boxes` (q, R, 4) and `region_mask` (q, R) of these questions; R is at least 1."""
        pairs = zip(self.asked.images[own].tolist(), self.asked.marked[own].tolist(), strict=True)
        given = [boxes_given(self.kept[row].prepared, marked) for row, marked in pairs]
        most = max(1, *(len(boxes) for boxes in given))
        boxes = torch.zeros(len(given), most, 4)
        mask = torch.zeros(len(given), most, dtype=torch.bool)
        for place, of_question in enumerate(given):
            boxes[place, : len(of_question)] = torch.from_numpy(of_question)
            mask[place, : len(of_question)] = True
        return {"region_boxes": boxes.to(self.device), "region_mask": mask.to(self.device)}


def boxes_given(prepared: Any, marked: int) -> np.ndarray:
    """(R, 4) float32 boxes in the frame that a question is given; none where the marked region is outside the frame.

    Args:
        prepared: the PreparedExample of the question's image.
        marked: as in `AskedSplit.marked`.
    """
    if marked < 0:
        return prepared.boxes
    if not prepared.is_visible[marked]:
        return prepared.boxes[:0]
    place = int(prepared.is_visible[:marked].sum())
    return prepared.boxes[place : place + 1]
