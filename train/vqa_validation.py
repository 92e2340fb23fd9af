"""Accuracy on the validation questions while a model trains, in every way of having regions that it trains for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .question_set import PROPOSED, QuestionSet, all_batches
from .validation import keeping_modes
from .vqa_model import AnsweringModel, to_device
from .vqa_recipe import REGION_MODES, STAGE_NAME, VqaRecipe

METRIC = "vqa_accuracy"  # the mean over the modes, by which the best weights are kept
MARKED, OTHERS = "vqa_marked_accuracy", "vqa_unmarked_accuracy"
Z_95 = 1.959964


@torch.no_grad()
def predict_answers(
    model: AnsweringModel,
    questions: QuestionSet,
    mode: str,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """(M,) int64 the class that the model scores highest for every question, regions by `mode` of `REGION_MODES`."""
    place = REGION_MODES.index(mode)
    found = np.zeros(len(questions.questions), dtype=np.int64)
    for indices, batch in all_batches(questions, place, batch_size):
        output = model(to_device(batch, device), has_proposed=place == PROPOSED)
        found[indices] = output.logits.float().argmax(dim=-1).cpu().numpy()
    return found


class QuestionValidator:
    """Measures a model in training on the validation questions; it draws no random number. For the main process."""

    def __init__(self, recipe: VqaRecipe, questions: QuestionSet, device: torch.device):
        self._recipe = recipe
        self._questions = questions
        self._device = device

    def measure(self, model: AnsweringModel, step: int) -> list[dict[str, Any]]:
        """Rows of validation.jsonl: the mean accuracy, then that of each mode, of all questions and by marks.

        An answer outside the vocabulary counts as wrong. Modes are those with a share in training, each weighing as
        much as it has; a model that sees no image has no mode. Intervals take questions for independent.
        """
        recipe, questions = self._recipe, self._questions
        shares = recipe.regions.by_mode() if recipe.has_images else {"off": 1.0}
        is_right: dict[str, np.ndarray] = {}
        with keeping_modes(model):
            model.eval()
            for mode in shares:
                options = recipe.validation.batch_size, self._device
                is_right[mode] = predict_answers(model, questions, mode, *options) == questions.answers
        mean = np.average(np.stack(list(is_right.values())), axis=0, weights=list(shares.values()))  # (M,)
        rows = [_row(step, METRIC, mean)]
        is_marked = questions.marked >= 0
        for mode, right in is_right.items() if recipe.has_images else ():
            parts = {METRIC: right, MARKED: right[is_marked], OTHERS: right[~is_marked]}
            rows += [_row(step, f"{metric}@{mode}", part) for metric, part in parts.items() if len(part)]
        return rows


def _row(step: int, metric: str, outcomes: np.ndarray) -> dict[str, Any]:
    """A row of validation.jsonl of outcomes (M,) in [0, 1], with the interval of the normal approximation."""
    value, number = float(outcomes.mean()), len(outcomes)
    half = Z_95 * math.sqrt(float(outcomes.astype(np.float64).var()) / number)
    interval = {"low": max(0.0, value - half), "high": min(1.0, value + half)}
    return {"step": step, "stage": STAGE_NAME, "task": "vqa", "metric": metric, "value": value, **interval, "n": number}
