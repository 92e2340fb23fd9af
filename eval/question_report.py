"""The report of a model that was taught to answer: its curves, its question sheet, the table, and one page of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regionmed_clip.eval.html_report import write_page
from regionmed_clip.eval.model_report import ModelReport
from regionmed_clip.eval.question_sheet import NUM_IMAGES, draw_question_sheet
from regionmed_clip.eval.report import CAPTIONS, write_index
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.selection import choose_rows, collect, data_note
from regionmed_clip.eval.tasks.runner import TaskOutcome
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.training_pictures import draw_loss_curves, draw_training_state, draw_validation


def write_question_report(
    folder: Path,
    page: Path,
    *,
    answering: Answering,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    outcomes: Sequence[TaskOutcome],
    results: Sequence[Result],
    metrics_rows: Sequence[Mapping[str, Any]],
    validation_rows: Sequence[Mapping[str, Any]],
) -> Path:
    """The path of the page; `folder` then has the pictures and an index with the table.

    Args:
        answering: the model that was taught, the first of `outcomes`; the others are its controls.
        examples: of the split that was measured.
        results: of all models, and of their differences.
        metrics_rows, validation_rows: of its metrics.jsonl and validation.jsonl.
    """
    folder.mkdir(exist_ok=True)
    embedded = outcomes[0].embedded
    shown = collect(examples, embedded, choose_rows(embedded, NUM_IMAGES))
    note = data_note(embedded, shown.values())
    sheet, choice = folder / "questions.png", answering.facts.choice
    drawn = {
        sheet.name: draw_question_sheet(sheet, answering, processor, list(shown.values()), choice, note),
        "validation.png": draw_validation(folder / "validation.png", validation_rows, note),
        "loss_curves.png": draw_loss_curves(folder / "loss_curves.png", metrics_rows, note),
        "training_state.png": draw_training_state(folder / "training_state.png", metrics_rows, note),
    }
    pictures = {name: caption for name, caption in CAPTIONS.items() if drawn.get(name)}
    index = write_index(folder, list(pictures), results, note)
    reports = {outcomes[0].model_name: ModelReport(index, pictures, note, [], {})}
    details = {outcome.model_name: outcome.details for outcome in outcomes}
    return write_page(page, results, reports=reports, details=details, title="Answers to questions")
