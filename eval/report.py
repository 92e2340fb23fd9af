"""The report of a run: pictures as PNG and an index.md that shows them under the table of results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.eval.grounding_pictures import draw_grounding_of
from regionmed_clip.eval.overlays import (
    draw_heat_maps,
    draw_image_to_text,
    draw_region_overlays,
    draw_text_to_image,
    nearest_images,
)
from regionmed_clip.eval.pictures import draw_results
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.selection import Shown, choose_rows, collect, data_note
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.embedding import evaluating
from regionmed_clip.eval.training_pictures import draw_loss_curves, draw_training_state, draw_validation

__all__ = ["format_table", "write_report"]

NUM_OVERLAYS, NUM_HEAT_MAPS, NUM_QUERIES = 8, 4, 4
CAPTIONS = {
    "results.png": "Results with 95 % intervals.",
    "region_overlays.png": "Regions with their best texts among all region texts of the split; yellow: the truth.",
    "heat_maps.png": "Cosine of every patch with a text, without a box; yellow: the boxes that the text describes.",
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
) -> Path:
    """The path of index.md in `folder`, written with its pictures; the images shown are the first of each stratum.

    Args:
        metrics_rows: of metrics.jsonl; empty where there was no training.
        examples: of the split that `embedded` holds; one pass is made over them.
        validation_rows: of validation.jsonl; empty where there was none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    overlays = choose_rows(embedded, NUM_OVERLAYS, min_meanings=2)
    heat_maps = choose_rows(embedded, NUM_HEAT_MAPS, min_meanings=2)
    queries = choose_rows(embedded, NUM_QUERIES)
    query_texts = [int(embedded.image_caption[row]) for row in queries]
    wanted = {*overlays, *heat_maps, *queries, *(row for text in query_texts for row in nearest_images(embedded, text))}
    shown = collect(examples, embedded, wanted)
    note = data_note(embedded, shown.values())
    heat_shown = [shown[row] for row in heat_maps]
    with evaluating(model):
        drawn = {
            "results.png": draw_results(folder / "results.png", results, note),
            "region_overlays.png": draw_region_overlays(
                folder / "region_overlays.png", model, processor, [shown[row] for row in overlays], embedded, note
            ),
            "heat_maps.png": draw_heat_maps(
                folder / "heat_maps.png",
                model,
                processor,
                heat_shown,
                [_texts_to_find(one, embedded) for one in heat_shown],
                note,
            ),
            "text_to_image.png": draw_text_to_image(folder / "text_to_image.png", query_texts, shown, embedded, note),
            "image_to_text.png": draw_image_to_text(
                folder / "image_to_text.png", [shown[row] for row in queries], embedded, note
            ),
            "validation.png": draw_validation(folder / "validation.png", validation_rows, note),
            "loss_curves.png": draw_loss_curves(folder / "loss_curves.png", metrics_rows, note),
            "training_state.png": draw_training_state(folder / "training_state.png", metrics_rows, note),
        }
        if any(result.metric == "proposal_recall" and result.value is not None for result in results):
            path = folder / "grounding.png"
            drawn["grounding.png"] = draw_grounding_of(path, model, processor, heat_shown, note)
    return _write_index(folder, [name for name, is_drawn in drawn.items() if is_drawn], results, note)


def _texts_to_find(shown: Shown, embedded: EmbeddedSplit) -> list[str]:
    """Two texts for the heat maps of an image: of its own regions, filled up by one of another image of its stratum."""
    texts = list(dict.fromkeys(region["description"] for region in shown.regions))[:2]
    own_keys = set(embedded.region_keys[embedded.region_image == shown.row].tolist())
    region_images = embedded.region_image
    is_kin = embedded.image_sources[region_images] == embedded.image_sources[shown.row]
    is_kin &= embedded.image_modalities[region_images] == embedded.image_modalities[shown.row]
    for row in np.flatnonzero(is_kin):
        if len(texts) >= 2 or not texts:
            break
        if int(embedded.region_keys[row]) not in own_keys:
            texts.append(embedded.region_texts[embedded.region_text[row]])
    return texts


def _write_index(folder: Path, pictures: Sequence[str], results: Sequence[Result], note: str) -> Path:
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
