"""What a run trains on, kept beside it: fingerprints of its training images, and what data they are of.

The evaluation compares test images with them (eval/tasks/leaks.py); processing/corpus/training_images.py has the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.data_licences import data_licences
from regionmed_clip.processing.corpus.data_spec import DataSpec, data_revision, parse_data_spec
from regionmed_clip.processing.corpus.training_images import (
    FACTS_FILE,
    IMAGES_FILE,
    Block,
    find_training_images,
    read_blocks,
    write_training_images,
)
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor

from .arguments import Recipe
from .data_stores import SampleStore, open_data
from .stage_data import TRAINING_SPLIT, at_size
from .starts import START
from .whole_files import write_whole


def write_training_data(
    recipe: Recipe, cache: Path, image_processor: RegionMedClipImageProcessor, output_dir: Path
) -> None:
    """Writes training_images.parquet and training_data.json of a settled recipe, whose frames have been prepared.

    The images of a checkpoint that the run starts from count too, where its own files tell them.
    """
    parts = _open_parts(recipe, cache, image_processor)
    start = find_training_images(recipe.model[START]) if START in recipe.model else None

    def blocks() -> Iterator[Block]:
        for _, store in parts:
            yield from store.fingerprints()
        if start is not None and start.images is not None:
            yield from read_blocks(start.images)

    facts: dict[str, Any] = {
        "format": 1,
        "data": [
            {
                "kind": part.kind,
                "revision": data_revision(part),
                "split": TRAINING_SPLIT,
                "num_images": len(store),
                "sources": data_licences(part),
            }
            for part, store in parts
        ],
        "start": None,
        "images": write_training_images(output_dir / IMAGES_FILE, blocks()),
    }
    if start is not None:
        name = Path(recipe.model[START]).name
        facts["start"] = {"name": name, "unknown": f"start {name}: {start.unknown}" if start.unknown else ""}
        facts["start"] |= {"data": start.facts.get("data", [])}
    write_whole(output_dir / FACTS_FILE, json.dumps(facts, indent=2) + "\n")


def read_training_data(output_dir: Path) -> dict[str, Any]:
    """What `write_training_data` wrote to training_data.json."""
    return json.loads((output_dir / FACTS_FILE).read_text(encoding="utf-8"))


def _open_parts(
    recipe: Recipe, cache: Path, image_processor: RegionMedClipImageProcessor
) -> list[tuple[DataSpec, SampleStore]]:
    """Every part of the stages' data once, opened at the size of the first stage that shows it."""
    parts: dict[str, tuple[DataSpec, SampleStore]] = {}
    for stage in recipe.stages:
        for part, _ in parse_data_spec(stage.data).terms():
            if str(part) not in parts:
                images = at_size(image_processor, stage.image_size)
                parts[str(part)] = (part, open_data(part, TRAINING_SPLIT, cache, images))
    return list(parts.values())
