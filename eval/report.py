"""The report of a run: pictures as PNG, an index.md that shows them under the table of results, and the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regionmed_clip.eval.grounding_pictures import draw_grounding_of
from regionmed_clip.eval.html_report import write_page
from regionmed_clip.eval.model_report import (
    Choice,
    ModelReport,
    choose,
    collect_choice,
    make_details,
    make_sheets,
    texts_to_find,
)
from regionmed_clip.eval.overlays import draw_heat_maps, draw_image_to_text, draw_region_overlays, draw_text_to_image
from regionmed_clip.eval.pictures import draw_results
from regionmed_clip.eval.question_sheet import draw_question_sheet
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.selection import Shown, data_note
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import evaluating
from regionmed_clip.eval.tasks.vqa_facts import Answering
from regionmed_clip.eval.tasks.vqa_questions import QuestionChoice
from regionmed_clip.eval.training_pictures import draw_loss_curves, draw_training_state, draw_validation

__all__ = ["format_table", "write_report"]

CAPTIONS = {
    "results.png": "Results with 95 % intervals.",
    "region_overlays.png": "Regions with their best texts among all region texts of the split; yellow: the truth.",
    "heat_maps.png": "Cosine of every patch with a text, without a box; yellow: the boxes that the text describes.",
    "questions.png": "Questions with the model's answers, and the attention to regions and patches that led to them.",
    "grounding.png": "Phrases grounded without a box (green), among images of which one shows each (yellow).",
    "text_to_image.png": "Text to image: the nearest images of the whole split.",
    "image_to_text.png": "Image to text: the nearest captions of the whole split.",
    "validation.png": "Figures of the validation split while the model trained, with 95 % intervals.",
    "loss_curves.png": "Training: losses by term and stage.",
    "training_state.png": "Training: temperatures, gate and fusion, gradients, learning rates, pairs and speed.",
}


def write_report(
    folder: str | Path,
    *,
    metrics_rows: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    model: Any,
    processor: Any,
    examples: Iterable[Mapping[str, Any]],
    embedded: EmbeddedSplit,
    validation_rows: Sequence[Mapping[str, Any]] = (),
    page: str | Path | None = None,
    answering: Answering | None = None,
    question_choice: QuestionChoice | None = None,
) -> ModelReport:
    """What was written to `folder`, index.md with its pictures, and what was gathered for the page.

    Images are the first of each stratum; the worst errors alone are chosen by their outcome.

    Args:
        metrics_rows: of metrics.jsonl; empty where there was no training.
        examples: of the split that `embedded` holds; one pass is made over them.
        validation_rows: of validation.jsonl; empty where there was none.
        page: where to write the page of this one model too; a page of several models is written by `write_page`.
        answering, question_choice: where the model answers questions, what answers, and which ones it is asked.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    choice = choose(embedded)
    shown = collect_choice(examples, embedded, choice)
    note = data_note(embedded, shown.values())
    grounds = any(_is_grounding(result) and result.value is not None for result in results)
    with evaluating(model):
        drawn = _draw_model(folder, model, processor, embedded, choice, shown, note)
        if grounds:
            grounded = [shown[row] for row in choice.heat_maps]
            drawn["grounding.png"] = draw_grounding_of(folder / "grounding.png", model, processor, grounded, note)
        if answering is not None:
            asked = [shown[row] for row in choice.overlays]
            choice_of = question_choice or answering.facts.choice
            path = folder / "questions.png"
            drawn["questions.png"] = draw_question_sheet(path, answering, processor, asked, choice_of, note)
        sheets = make_sheets(model, processor, embedded, choice, shown, grounds=grounds)
    drawn |= {
        "results.png": draw_results(folder / "results.png", results, note),
        "validation.png": draw_validation(folder / "validation.png", validation_rows, note),
        "loss_curves.png": draw_loss_curves(folder / "loss_curves.png", metrics_rows, note),
        "training_state.png": draw_training_state(folder / "training_state.png", metrics_rows, note),
    }
    pictures = {name: caption for name, caption in CAPTIONS.items() if drawn.get(name)}
    index = write_index(folder, list(pictures), results, note)
    report = ModelReport(index, pictures, note, sheets, make_details(embedded))
    if page is not None:
        own = next((result.model for result in results), "model")
        write_page(page, results, reports={own: report})
    return report


def _is_grounding(result: Result) -> bool:
    """Whether the result tells that the model finds boxes by itself."""
    return result.task == "grounding" or result.metric == "proposal_recall"


def _draw_model(
    folder: Path,
    model: Any,
    processor: Any,
    embedded: EmbeddedSplit,
    choice: Choice,
    shown: Mapping[int, Shown],
    note: str,
) -> dict[str, bool]:
    """Name of each picture of the model at work -> whether there was anything to draw."""
    overlays, heat_maps, queries = (
        [shown[row] for row in rows] for rows in (choice.overlays, choice.heat_maps, choice.queries)
    )
    texts = [texts_to_find(one, embedded) for one in heat_maps]
    paths = {
        name: folder / f"{name}.png" for name in ("region_overlays", "heat_maps", "text_to_image", "image_to_text")
    }
    drawn = {
        "region_overlays": draw_region_overlays(paths["region_overlays"], overlays, embedded, note),
        "heat_maps": draw_heat_maps(paths["heat_maps"], model, processor, heat_maps, texts, note),
        "text_to_image": draw_text_to_image(paths["text_to_image"], choice.query_texts, shown, embedded, note),
        "image_to_text": draw_image_to_text(paths["image_to_text"], queries, embedded, note),
    }
    return {f"{name}.png": is_drawn for name, is_drawn in drawn.items()}


def write_index(folder: Path, pictures: Sequence[str], results: Sequence[Result], note: str) -> Path:
    """The path of index.md: note, table, pictures; replaced whole."""
    parts = ["# Report", ""]
    if note:
        parts += [f"**{note[:1].upper()}{note[1:]}.**", ""]
    if results:
        parts += [format_table(results)]
    for name in pictures:
        parts += [f"## {CAPTIONS[name]}", "", f"![{CAPTIONS[name]}]({name})", ""]
    path = folder / "index.md"
    temporary = folder / ".index.md.tmp"
    temporary.write_text("\n".join(parts), encoding="utf-8")
    os.replace(temporary, path)
    return path
