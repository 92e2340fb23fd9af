"""What the demo shows and where its model comes from: the files beside it and two environment variables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MODEL_VARIABLE, REVISION_VARIABLE = "REGIONMED_MODEL", "REGIONMED_REVISION"


@dataclass(frozen=True)
class Example:
    """One drawn picture that came with the demo: its file, what it is, the texts to compare, and what was drawn."""

    file: Path
    title: str
    texts: tuple[str, ...]
    regions: tuple[dict[str, Any], ...]


def model_source(folder: Path = FOLDER) -> tuple[str, str | None]:
    """(folder or Hub id, revision) of the model: of the environment, else of space.json, else model/ beside the demo.

    Raises:
        ValueError: there is none of these.
    """
    if os.environ.get(MODEL_VARIABLE):
        return os.environ[MODEL_VARIABLE], os.environ.get(REVISION_VARIABLE) or None
    facts = read_json(folder / "space.json")
    if facts.get("model_id"):
        return facts["model_id"], facts.get("revision")
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model"), None
    raise ValueError(
        f"The demo has no model. Set {MODEL_VARIABLE} to a model folder or Hub id, or stage the Space with "
        "regionmed-publish --what space, which brings one along."
    )


def read_examples(folder: Path = FOLDER) -> list[Example]:
    """The examples of examples.json, in order; none where the file is absent."""
    return [
        Example(folder / item["file"], item["title"], tuple(item["texts"]), tuple(item["regions"]))
        for item in read_json(folder / "examples.json").get("examples", [])
    ]


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where it is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
