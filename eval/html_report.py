"""The page of an evaluation: one HTML file that needs nothing else, with every figure's interval, n and protocol."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from regionmed_clip.eval.model_report import ModelReport
from regionmed_clip.eval.report_charts import NUM_MODEL_COLOURS, curve_families, curve_note, draw_curve
from regionmed_clip.eval.report_details import Block, format_plain, is_plain, make_blocks
from regionmed_clip.eval.report_figures import Figure, build_figures, format_number, slug
from regionmed_clip.eval.report_gallery import Card, Picture, Sheet
from regionmed_clip.eval.report_summary import HEADLINES, provenance, summarise, warnings_of
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import is_difference, model_names

PAGE_FOLDER = Path(__file__).resolve().parent / "page"
TASK_TITLES = {
    "retrieval": (
        "Image and text retrieval",
        "Which text belongs to an image, and which image to a text, without boxes.",
    ),
    "zero_shot": ("Zero-shot classification", "Whether an image shows a finding, from prompts alone."),
    "region": ("Regions", "What a given box shows, and where a text is."),
    "grounding": ("Grounding", "Where a phrase is in an image: heat maps and boxes, none given."),
    "counterfactual": ("Counterfactual texts", "The true text against one that is wrong in one respect."),
    "probe": ("Probes", "A logistic regression on frozen embeddings, with all or a few labelled images."),
    "vqa": ("Visual questions", "How many questions are answered right, with and without regions, beside controls."),
    "calibration": ("Calibration", "Whether a confidence of 0.8 is right in 8 of 10 cases."),
    "proposals": ("Proposals", "Boxes that the model finds by itself."),
    "robustness": ("Robustness", "What noise, contrast, resolution, window and careless boxes do."),
}
NUM_OPEN_FIGURES = 4  # of a section; the others are one tap away
SHEET_PICTURES = {  # pictures that the sheets show better, and one that the figures do
    "region_overlays.png": "regions",
    "heat_maps.png": "heat_maps",
    "grounding.png": "grounding",
    "text_to_image.png": "text_to_image",
    "image_to_text.png": "image_to_text",
}


@dataclass(frozen=True)
class Section:
    """A task: charts with a line beneath, its first figures, the others, those that a chart shows, those that were not
    computed with the reason, and by model what else it tells.
    """

    anchor: str
    title: str
    lead: str
    charts: list[tuple[Markup, str]]
    figures: list[Figure]
    others: list[Figure]
    charted: list[Figure]
    skipped: list[tuple[str, str]]
    details: list[tuple[str, list[Block]]]


@dataclass(frozen=True)
class SharedCard:
    """A card of several models on the same picture: for each heading of the card the answers of every model."""

    card: Card
    answers: list[list[tuple[str, Sequence[Any]]]]


@dataclass(frozen=True)
class SharedSheet:
    """A sheet with the models that it is of, side by side where their cards are of the same pictures."""

    sheet: Sheet
    models: list[str]
    rows: list[list[SharedCard]]


def write_page(
    path: str | Path,
    results: Sequence[Result],
    *,
    reports: Mapping[str, ModelReport] | None = None,
    details: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    title: str = "Evaluation report",
) -> Path:
    """The path of the page, written whole: one HTML file without scripts that loads nothing from anywhere.

    Args:
        results: of all models and differences.
        reports: model -> what `write_report` gathered of it.
        details: model -> task -> name -> JSON values, `TaskFindings.details`; those of `reports` are added.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render_page(results, reports=reports, details=details, title=title), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render_page(
    results: Sequence[Result],
    *,
    reports: Mapping[str, ModelReport] | None = None,
    details: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    title: str = "Evaluation report",
) -> str:
    """The page as text; see `write_page`."""
    reports = reports or {}
    slots = model_slots(results, [*reports, *(details or {})])
    sheets = share_sheets({model: report.sheets for model, report in reports.items()})
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            notes=list(dict.fromkeys(report.note for report in reports.values() if report.note)),
            warnings=warnings_of(results),
            slots=slots,
            models=[name for name in slots if not is_difference(name)],
            summary=summarise(results),
            sections=_sections(results, slots, _all_details(reports, details or {})),
            sheets=sheets,
            pictures=_pictures(reports),
            symbols=_symbols(sheets),
            provenance=provenance(results),
        )
    )


def model_slots(results: Sequence[Result], others: Sequence[str] = ()) -> dict[str, int]:
    """Model -> number of its colour; a difference has the colour of its first model."""
    names = model_names(results)
    models = list(dict.fromkeys([*(name for name in names if not is_difference(name)), *others]))
    slots = {name: place % NUM_MODEL_COLOURS for place, name in enumerate(models)}
    return slots | {name: slots.get(name.partition(" minus ")[0], 0) for name in names if is_difference(name)}


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Templates that escape everything and know no undefined names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": format_plain, "number": format_number}
    environment.tests["plain"] = is_plain
    return environment


def _all_details(
    reports: Mapping[str, ModelReport], details: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> model -> name -> value, from both places."""
    joined: dict[str, dict[str, dict[str, Any]]] = {}
    for of_model in ({model: report.details for model, report in reports.items()}, details):
        for model, by_task in of_model.items():
            for task, by_name in by_task.items():
                joined.setdefault(task, {}).setdefault(model, {}).update(by_name)
    return joined


def _sections(
    results: Sequence[Result], slots: Mapping[str, int], details: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[Section]:
    """A section for each task that has results or details, in the order of TASK_TITLES, others after."""
    present = list(dict.fromkeys([*(result.task for result in results), *details]))
    order = list(TASK_TITLES)
    present.sort(key=lambda name: order.index(name) if name in order else len(order))
    return [_section(task, [r for r in results if r.task == task], slots, details.get(task, {})) for task in present]


def _section(
    task: str, results: Sequence[Result], slots: Mapping[str, int], details: Mapping[str, Mapping[str, Any]]
) -> Section:
    """The section of one task; charts of all models stand together."""
    title, lead = TASK_TITLES.get(task, (task.replace("_", " ").capitalize(), ""))
    families = curve_families(results)
    charts = [(draw_curve(base, rows, slots), curve_note(rows)) for base, rows in families.items()]
    by_model = []
    for model, by_name in details.items():
        blocks = [block for name, value in by_name.items() for block in make_blocks(name, value, model)]
        charts += [(block.svg, block.note) for block in blocks if block.kind == "chart"]
        tables = [block for block in blocks if block.kind != "chart"]
        by_model += [(model, tables)] if tables else []
    figures = build_figures(results, slots)
    skipped = [(figure.title, figure.whole[0].skipped) for figure in figures if figure.is_skipped]
    arranged = _arrange([figure for figure in figures if not figure.is_skipped], set(families))
    return Section(slug(f"task {task}"), title, lead, charts, *arranged, skipped, by_model)


def _arrange(figures: Sequence[Figure], families: Set[str]) -> tuple[list[Figure], list[Figure], list[Figure]]:
    """(the first figures: the headlines and a few more, the others, those that are points of charted families)."""
    charted = [figure for figure in figures if "@" in figure.metric and figure.metric.partition("@")[0] in families]
    rest = [figure for figure in figures if figure not in charted]
    headlines = [figure for figure in rest if figure.metric in HEADLINES]
    fillers = [figure for figure in rest if figure not in headlines][: max(0, NUM_OPEN_FIGURES - len(headlines))]
    first = [figure for figure in rest if figure in headlines or figure in fillers]
    return first, [figure for figure in rest if figure not in first], charted


def share_sheets(sheets: Mapping[str, Sequence[Sheet]]) -> list[SharedSheet]:
    """The sheets of all models in their order; equal ones are one.

    Sheets of single cards are equal when pictures, boxes and headings are: the models' answers stand side by side.
    Strips are equal when all of them is, as where two readings of one model are looked at without boxes.
    """
    names = list(dict.fromkeys(sheet.name for of_model in sheets.values() for sheet in of_model))
    shared = []
    for name in names:
        alike: dict[str, dict[str, Sheet]] = {}
        for model, of_model in sheets.items():
            for sheet in of_model:
                if sheet.name == name:
                    alike.setdefault(_outline(sheet), {})[model] = sheet
        shared += [_join(having) for having in alike.values()]
    return shared


def _is_strips(sheet: Sheet) -> bool:
    """Whether any row of the sheet has several cards."""
    return any(len(row) > 1 for row in sheet.rows)


def _outline(sheet: Sheet) -> str:
    """What sheets have in common when they can be shown as one."""
    takes_answers = _is_strips(sheet)
    return repr(
        [
            (card.title, card.picture and card.picture.key, card.boxes, card.groups if takes_answers else headings)
            for row in sheet.rows
            for card in row
            for headings in [[group.heading for group in card.groups]]
        ]
    )


def _join(having: Mapping[str, Sheet]) -> SharedSheet:
    """One sheet of the models' equal ones; strips take the answers of the first, which all share."""
    first = next(iter(having.values()))
    of = dict(list(having.items())[:1]) if _is_strips(first) else having
    rows = [
        [
            SharedCard(
                card,
                [
                    [(model, sheet.rows[r][c].groups[g].answers) for model, sheet in of.items()]
                    for g in range(len(card.groups))
                ],
            )
            for c, card in enumerate(row)
        ]
        for r, row in enumerate(first.rows)
    ]
    return SharedSheet(first, list(having), rows)


def _symbols(sheets: Sequence[SharedSheet]) -> list[Picture]:
    """Every small picture of the page once."""
    cards = [shared.card for sheet in sheets for row in sheet.rows for shared in row]
    return list({card.picture.key: card.picture for card in cards if card.picture is not None}.values())


def _pictures(reports: Mapping[str, ModelReport]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Model -> (caption, data URI) of the PNGs that nothing else on the page shows."""
    shown = []
    for model, report in reports.items():
        names = {sheet.name for sheet in report.sheets}
        left = [
            (caption, _data_uri(report.index.parent / name))
            for name, caption in report.pictures.items()
            if name != "results.png" and SHEET_PICTURES.get(name) not in names
        ]
        if left:
            shown.append((model, left))
    return shown


def _data_uri(path: Path) -> str:
    """The PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


__all__ = ["model_slots", "render_page", "share_sheets", "write_page"]
