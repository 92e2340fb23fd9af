"""Recipes as a study reads them: plain values of a YAML file, and stages as an override on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml


def read_recipe(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file; a ValueError where it is none."""
    if not path.is_file():
        raise ValueError(f"--recipe {str(path)!r} is not a file; name one, for instance of train/recipes.")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
        raise ValueError(f"{path} is no recipe: it needs a mapping with a list of `stages`.")
    return values


def override_stages(stages: Sequence[dict[str, Any]]) -> str:
    """The `stages=[...]` that gives a training these stages, in one line."""
    values = [deepcopy(stage) for stage in stages]  # shared values would become YAML's anchors
    text = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=float("inf"))
    return f"stages={text.strip()}"


def refuse_stages(overrides: Sequence[str]) -> None:
    """None; a ValueError where the user overrides stages, which the arms of a study replace."""
    for override in overrides:
        if override.partition("=")[0].split(".")[0] == "stages":
            raise ValueError(f"{override!r}: the study makes its arms of the recipe's stages; give it a --recipe.")
