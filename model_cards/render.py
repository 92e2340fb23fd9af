"""Renders the model card from a template, facts and Result records; no number is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import format_cell, format_table

FOLDER = Path(__file__).resolve().parent
REQUIRED_METADATA = ("library_name", "pipeline_tag", "license", "tags")
_DECIMAL = re.compile(r"[+-]?\d+\.\d+")


def load_facts(name: str = "model") -> dict[str, Any]:
    """The facts of model_cards/facts/<name>.yaml; ValueError where the file is missing."""
    path = FOLDER / "facts" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"facts {name!r} have no file {path}; write it or name another.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def render_card(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The card (README.md) as text: YAML metadata, statements, usage, results with n, interval, revision and seed.

    Args:
        facts: override single entries of facts/model.yaml; ValueError for an entry that the file does not have.
    """
    defaults = load_facts()
    unknown = sorted(set(facts) - set(defaults))
    if unknown:
        raise ValueError(f"facts {unknown} are not known; entries of facts/model.yaml are {sorted(defaults)}.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    return environment.get_template("model_card.md.jinja").render(
        facts={**defaults, **facts},
        results=results,
        table=format_table(results) if results else "",
        provenance=_provenance(results),
        has_phantom=any("phantom" in (r.source or r.data_revision) for r in results),
    )


def check_card(card: str, results: Sequence[Result]) -> None:
    """None for a sound card; ValueError when its YAML is broken or lacks an entry, or a table number is no result's."""
    parts = card.split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise ValueError("the card does not begin with a YAML block between two lines of ---; the Hub needs one.")
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the card's YAML does not parse ({error}); repair the template or the facts.") from error
    missing = [key for key in REQUIRED_METADATA if not (isinstance(metadata, dict) and metadata.get(key))]
    if missing:
        raise ValueError(f"the card's YAML lacks {missing}; the Hub reads them. Add them to the template.")
    known = {number for r in results for number in _DECIMAL.findall(format_cell(r))}
    known |= {f"{r.protocol['chance']:.3f}" for r in results if r.protocol.get("chance") is not None}
    for line in parts[2].splitlines():
        cells = line.split("|")[3:] if line.startswith("|") else ()  # past the figure's title ("IoU 0.5") and its data
        for number in _DECIMAL.findall(" ".join(cells)):
            if number not in known:
                raise ValueError(f"the card's table shows {number}, which no result holds: {line!r}. Render it again.")


def _provenance(results: Sequence[Result]) -> list[str]:
    """Lines on where the numbers come from, equal ones once: data, split, model revision, seed, hardware, command."""
    lines = {}
    for r in results:
        split = f"split `{r.protocol['split']}` (sha256 `{str(r.protocol['split_sha256'])[:12]}`)"
        lines[
            f"data `{r.data_revision}`, {split}, model revision `{r.model_revision}`, seed {r.seed}, on {r.hardware}, "
            f"by `{r.command}`"
        ] = None
    return list(lines)
