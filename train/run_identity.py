"""What decides a run's weights: the recipe's decisive values, the data's revisions, the checkpoint it started from.

It is kept in every checkpoint as plain values, so that a resume under other ones can say which differ. Data and start
count by what they hold, not by where they lie: a run goes on after its folders have been moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.data_spec import data_revision, num_examples, parse_data_spec

from .arguments import Recipe
from .precision import resolve_precision
from .stage_data import TRAINING_SPLIT
from .starts import START

MAX_LINES = 20  # differences that are told one by one
NOTHING = "nothing"


def run_identity(recipe: Recipe, start_revision: str | None = None) -> dict[str, Any]:
    """Plain values that decide the weights: recipe keys, with what its data hold for their names, `start_revision`.

    Epochs stay epochs: their steps follow from the data.
    """
    fields = recipe.decisive()
    held = {data: _describe_data(data) for data in {fields["data"], *(stage["data"] for stage in fields["stages"])}}
    model = {key: value for key, value in fields["model"].items() if key != START}
    stages = [{**stage, "data": held[stage["data"]]} for stage in fields["stages"]]
    return {
        **fields,
        "precision": resolve_precision(recipe.precision),  # "auto" may be another one on another machine
        "data": held[fields["data"]],  # whatever the stages', for a tokenizer may be trained on it
        "model": model,
        "stages": stages,
        "start_revision": start_revision,
    }


def _describe_data(data: str) -> str:
    """Revision and number of training images of `data`, of a mixture those of every part with its weight."""
    terms = parse_data_spec(data).terms()
    described = [f"{data_revision(part)} of {num_examples(part, TRAINING_SPLIT)} images" for part, _ in terms]
    if len(terms) == 1:
        return described[0]
    return " + ".join(f"({part}) * {weight!r}" for part, (_, weight) in zip(described, terms))


def identity_hash(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal for equal identities."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_identity(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises a ValueError with a line for each differing value if a checkpoint at `path` is that of another run."""
    lines = differences(before, now)
    if not lines:
        return
    shown = lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        shown.append(f"and {len(lines) - MAX_LINES} more")
    text = "\n".join(f"  {line}" for line in shown)
    raise ValueError(
        f"{path} is a checkpoint of another recipe or other data:\n{text}\nResume with the recipe.yaml and the data of "
        "that run, or train into another --output_dir."
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line "stages.joint.learning_rate: 0.001 in the checkpoint, 0.0005 now" for each value that differs.

    A stage that differs only in what it has from the recipe is not told beside the recipe.
    """
    theirs, ours = dict(_leaves(before, "")), dict(_leaves(now, ""))
    names = [*theirs, *(name for name in ours if name not in theirs)]
    lines: dict[str, str] = {}
    for name in names:
        pair = f"{_shown(theirs, name)} in the checkpoint, {_shown(ours, name)} now"
        if _shown(theirs, name) != _shown(ours, name):
            lines[name] = pair
    inherited = {name for name in lines if name.startswith("stages.") and lines[name] == lines.get(_in_recipe(name))}
    return [f"{name}: {line}" for name, line in lines.items() if name not in inherited]


def _in_recipe(name: str) -> str:
    """The recipe's key for a stage's: `image_size` for `stages.joint.image_size`."""
    return name.split(".", 2)[-1]


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else NOTHING


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all values within; stages go by their names, and their order is a value too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        yield f"{name} (order)", [item["name"] for item in value]
        for item in value:
            yield from _leaves({key: inner for key, inner in item.items() if key != "name"}, f"{name}.{item['name']}")
    else:
        yield name, value
