"""Renders the model card from a template, facts and Result records; no number is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml

from regionmed_clip.eval.report_summary import MARKS
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import format_cell, format_table
from regionmed_clip.model_cards.card_metadata import check_metadata, model_metadata, split_card
from regionmed_clip.model_cards.model_index import indexed_value, is_whole
from regionmed_clip.model_cards.training_sources import read_training_images
from regionmed_clip.model_cards.widget_examples import TRUE_ANSWER

FOLDER = Path(__file__).resolve().parent
RESULTS_HEADING = "## Evaluation"
COMPARED = {  # models of the tables that stand beside the published one
    "plain-clip": "the same recipe with the region terms off, its regions read without training",
    "colour-size-probe": "a linear control that sees only the mean colour and the size of a box",
    "question-only": "the same recipe without images: what the question alone gives away",
    "random-encoder": "the same recipe on an encoder that was never trained",
    "encoder-alone": "the encoder that the training started from, which ranks statements",
}
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
        results: of this model, under the name `facts["evaluated_as"]`, and of what it is compared with.
        facts: override single entries of facts/model.yaml.

    Raises:
        ValueError: a fact that the file does not have or of another kind than there, a repository that is no ORG/NAME.
    """
    told = _told(facts)
    whole = [result for result in results if is_whole(result)]
    strata = [result for result in results if not is_whole(result)]
    if not whole:  # such figures alone: they are the table
        whole, strata = strata, []
    return (
        card_environment()
        .get_template("model_card.md.jinja")
        .render(
            facts=told,
            metadata=model_metadata(results, told),
            version=version("regionmed-clip"),
            results=results,
            table=_table(whole),
            strata_table="\n".join(line for line in _table(strata).splitlines() if not line.startswith("- ")),
            provenance=_provenance(results),
            has_phantom=any("phantom" in (r.source or r.data_revision) for r in results),
            models=COMPARED,
            compared=[name for name in COMPARED if any(r.model == name for r in results)],
            smoke=next((r.protocol["smoke"] for r in results if r.protocol.get("smoke")), None),
            marks=_marks(results, told["evaluated_as"]),
            images=read_training_images(told["training_data"]) if told["training_data"] else None,
            sample=told["region_examples"][0] if told["region_examples"] else None,
            sentences=_sentences(told),
            examples=_examples(told),
            text_counts=", ".join(str(n) for n in dict.fromkeys(one["num_texts"] for one in told["region_examples"])),
            duration=_duration(told["training_seconds"] or 0),
        )
    )


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """All facts, those given over the file's; see `render_card` for what is refused."""
    defaults = load_facts()
    unknown = sorted(set(facts) - set(defaults))
    if unknown:
        raise ValueError(f"facts {unknown} are not known; entries of facts/model.yaml are {sorted(defaults)}.")
    for name, value in facts.items():
        default = defaults[name]
        kind = list if isinstance(default, list) else type(default)
        if default is not None and not isinstance(value, kind):
            raise ValueError(f"fact {name!r} is {value!r}; it must be a {kind.__name__}, as in facts/model.yaml.")
    if facts.get("repo_id") is not None and "/" not in str(facts["repo_id"]):
        raise ValueError(f"fact 'repo_id' is {facts['repo_id']!r}; it must be ORG/NAME of the Hub.")
    return {**defaults, **facts}


def card_environment() -> jinja2.Environment:
    """The environment of the card templates; `cell` makes a text of others safe to stand in a table or sentence."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["cell"] = markdown_cell
    return environment


def markdown_cell(text: str) -> str:
    """`text` on one line, without what would end a table cell or begin HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def check_card(card: str, results: Sequence[Result]) -> None:
    """None for a card that the Hub would take, whose numbers are all those of `results`.

    Raises:
        ValueError: the YAML is broken, lacks an entry or has one that the Hub would not know (`check_metadata`); a
            figure in the tables or the model-index is no result's.
    """
    metadata, body = split_card(card)
    check_metadata(metadata)
    known_values = {(r.metric, indexed_value(r)) for r in results if r.value is not None}
    for model in metadata.get("model-index") or ():
        for entry in model["results"]:
            for metric in entry["metrics"]:
                if (metric["type"], metric["value"]) not in known_values:
                    raise ValueError(
                        f"the card's model-index has {metric['type']} {metric['value']}, which no result holds. Render "
                        "it again."
                    )
    known = {number for r in results for number in _DECIMAL.findall(format_cell(r))}
    known |= {f"{r.protocol['chance']:.3f}" for r in results if r.protocol.get("chance") is not None}
    for line in body.partition(f"\n{RESULTS_HEADING}\n")[2].splitlines():
        cells = line.split("|")[3:] if line.startswith("|") else ()  # past the figure's title ("IoU 0.5") and its data
        for number in _DECIMAL.findall(" ".join(cells)):
            if number not in known:
                raise ValueError(f"the card's table shows {number}, which no result holds: {line!r}. Render it again.")


def _table(results: Sequence[Result]) -> str:
    """The table of results, headings of several data one level below those of the card; "" for none."""
    text = format_table(results) if results else ""
    return re.sub(r"^## ", "### ", text, flags=re.MULTILINE)


def _marks(results: Sequence[Result], evaluated_as: str) -> list[str]:
    """What a reader must see before the figures of this model: leaks, training data that are not known."""
    told = {
        f"{title}{result.protocol[key]}"
        for result in results
        if result.model == evaluated_as
        for key, title in MARKS.items()
        if key != "smoke" and result.protocol.get(key)
    }
    return sorted(told)


def _examples(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each picture of the widget: what is said of the whole, and of each of its boxes."""
    rows = []
    for entry in facts["widget"]:
        boxes = [_said_of_box(one) for one in facts["region_examples"] if one["src"] == entry["src"]]
        title = markdown_cell(entry["example_title"])
        rows.append({"src": entry["src"], "title": title, "whole": _said_of_whole(entry), "boxes": boxes})
    return rows


def _sentences(facts: Mapping[str, Any]) -> list[str]:
    """Texts of the whole image for the usage snippet: some candidate labels of the first widget example."""
    entry = next((entry for entry in facts["widget"] if "candidate_labels" in entry), None)
    if entry is None:
        return ["Chest radiograph with a pleural effusion.", "Normal chest radiograph without focal abnormality."]
    *of_findings, of_none = entry["candidate_labels"].split(", ")
    true = [label for label in of_findings if _is_drawn(label, entry)]
    return [*true, *[label for label in of_findings if label not in true][:1], of_none]


def _is_drawn(label: str, entry: Mapping[str, Any]) -> bool:
    """Whether a sentence of a widget entry names a finding that is drawn in its picture."""
    drawn = entry["example_title"].partition(": ")[2].split(", ")
    return any(label.rstrip(".").endswith(f" {finding}") for finding in drawn)


def _said_of_whole(entry: Mapping[str, Any]) -> str:
    """A picture in the table of examples: question and answer, or the best sentence and whether it names a finding."""
    output = entry["output"]
    if "text" in entry:
        mark = "✓" if entry["example_title"].endswith(f"{TRUE_ANSWER}{output['answer']}") else "✗"
        return f"{entry['text']} {mark} {output['answer']} ({output['score']:.3f})"
    best = output[0]["label"]
    mark = "✓" if _is_drawn(best, entry) else "✗"
    return f"{mark} {best} ({output[0]['score']:.3f})"


def _said_of_box(example: Mapping[str, Any]) -> str:
    """One box in the table of examples: whether the best text is the true one."""
    if example["best"] == example["truth"]:
        return f"✓ {example['truth']} ({example['score']:.3f})"
    return f"✗ {example['truth']}; said: {example['best']} ({example['score']:.3f})"


def _duration(seconds: float) -> str:
    """A time for people: "46 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
