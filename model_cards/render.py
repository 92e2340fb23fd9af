"""Renders the model card from a template, facts and Result records; no number is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jinja2
import yaml

from regionmed_clip.eval.report_summary import MARKS
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import format_cell, format_table
from regionmed_clip.model_cards.card_facts import FOLDER, all_facts
from regionmed_clip.model_cards.card_metadata import check_metadata, model_metadata, split_card
from regionmed_clip.model_cards.model_index import is_whole
from regionmed_clip.model_cards.shipped_files import CODE_LICENSE, code_license_file
from regionmed_clip.model_cards.training_sources import read_training_images
from regionmed_clip.model_cards.widget_examples import TRUE_ANSWER

RESULTS_HEADING = "## Evaluation"
COMPARED = {  # models of the tables that stand beside the published one
    "plain-clip": "the same recipe with the region terms off, its regions read without training",
    "colour-size-probe": "a linear control that sees only the mean colour and the size of a box",
    "question-only": "the same recipe without images: what the question alone gives away",
    "random-encoder": "the same recipe on an encoder that was never trained",
    "encoder-alone": "the encoder that the training started from, which ranks statements",
}
STATEMENTS = (  # of every card, whoever wrote it
    "Not a medical device",
    "arXiv:2508.05244, which its authors withdrew",
)
WAY_OUT = "Take the card as it was rendered: delete README.md, and give what it shall say by --facts."
AS_THEY_ARE = frozenset({"widget", "region_examples", "custom_tasks"})  # of our own making, and shown in code
SHOWN_IN_TABLES = ("model", "metric", "source", "stratum", "protocol", "data_revision")
_DECIMAL = re.compile(r"[+-]?\d+\.\d+")


def render_card(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The card (README.md) as text: YAML metadata, statements, usage, results with n, interval, revision and seed.

    Args:
        results: of this model, under the name `facts["evaluated_as"]`, and of what it is compared with.
        facts: override single entries of facts/model.yaml.

    Raises:
        ValueError: facts that `all_facts` refuses; results of which none is of the model `evaluated_as`.
    """
    told = all_facts(facts)
    models = sorted({result.model for result in results})
    if models and told["evaluated_as"] not in models:
        raise ValueError(
            f"fact 'evaluated_as' is {told['evaluated_as']!r}, of which there are no results; the results are of "
            f"{', '.join(models)}. Say by this fact which of them is the model of this card."
        )
    table, strata_table = _tables(results)
    return (
        card_environment()
        .get_template("model_card.md.jinja")
        .render(
            facts={name: value if name in AS_THEY_ARE else _shown(value) for name, value in told.items()},
            metadata=model_metadata(results, told),
            version=version("regionmed-clip"),
            results=results,
            table=table,
            strata_table=strata_table,
            code_license=CODE_LICENSE,
            code_license_file=code_license_file(told["license"]),
            provenance=_provenance(results),
            has_phantom=any("phantom" in (r.source or r.data_revision) for r in results),
            models=COMPARED,
            compared=[name for name in COMPARED if any(r.model == name for r in results)],
            smoke=next((one_line(r.protocol["smoke"]) for r in results if r.protocol.get("smoke")), None),
            marks=_marks(results, told["evaluated_as"]),
            images=read_training_images(told["training_data"]) if told["training_data"] else None,
            sample=told["region_examples"][0] if told["region_examples"] else None,
            sentences=_sentences(told),
            examples=_examples(told),
            text_counts=", ".join(str(n) for n in dict.fromkeys(one["num_texts"] for one in told["region_examples"])),
            duration=_duration(told["training_seconds"] or 0),
        )
    )


def card_environment() -> jinja2.Environment:
    """The environment of the card templates; `cell` makes a text of others safe to stand in a table or sentence."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["foreign"] = foreign_markdown
    return environment


def one_line(text: Any) -> str:
    """`text` on one line, in which no HTML begins."""
    return " ".join(str(text).split()).replace("<", "&lt;")


def markdown_cell(text: Any) -> str:
    """`one_line` without what would end a table cell."""
    return one_line(text).replace("|", "\\|")


def code_line(text: Any) -> str:
    """`text` on one line, to stand between two backticks."""
    return " ".join(str(text).split()).replace("`", "'")


def foreign_markdown(text: str) -> str:
    """A Markdown text of others, which begins no HTML and leaves no block of code open behind it."""
    text = re.sub(r"<(?!https?://)", "&lt;", text)
    return f"{text}\n```" if len(re.findall(r"^ {0,3}```", text, re.MULTILINE)) % 2 else text


def _shown(value: Any, harmless: Callable[[str], str] = one_line) -> Any:
    """A value of a fact or result as the card may show it: every text in it by `harmless`."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict):
        return {key: _shown(item, harmless) for key, item in value.items()}
    return [_shown(item, harmless) for item in value] if isinstance(value, (list, tuple)) else value


def check_card(card: str, results: Sequence[Result], facts: Mapping[str, Any] | None = None) -> None:
    """None for a card that the Hub would take, that says what it must, and whose figures are those of `results`.

    Compared are the model-index as a whole, the rows of the tables under "Evaluation" as a whole, and numbers with a
    decimal point in the tables behind these. Numbers in sentences, and in tables before "Evaluation", are not.

    Args:
        facts: over facts/model.yaml; the results of `evaluated_as` are those of this model.

    Raises:
        ValueError: the YAML is broken, lacks an entry or has one that the Hub would not know (`check_metadata`); a
            statement of STATEMENTS is not there; a figure in the tables or the model-index is no result's.
    """
    told = all_facts(facts or {})
    metadata, body = split_card(card)
    check_metadata(metadata)
    words = " ".join(body.split())
    for statement in STATEMENTS:
        if statement not in words:
            raise ValueError(f"the card does not say {statement!r}, which every card must. {WAY_OUT}")
    _check_index(metadata, yaml.safe_load(model_metadata(results, told)))
    known = {number for r in results for number in _DECIMAL.findall(format_cell(r))}
    known |= {f"{r.protocol['chance']:.3f}" for r in results if r.protocol.get("chance") is not None}
    behind = body.partition(f"\n{RESULTS_HEADING}\n")[2]
    for line in behind.splitlines():
        cells = line.split("|")[3:] if line.startswith("|") else ()  # past the figure's title ("IoU 0.5") and its data
        for number in _DECIMAL.findall(" ".join(cells)):
            if number not in known:
                raise ValueError(f"the card's table shows {number}, which no result holds: {line!r}. {WAY_OUT}")
    rows = {line for table in _tables(results) for line in table.splitlines()}
    for line in behind.partition("\n## ")[0].splitlines():
        if line.startswith("|") and line not in rows:
            raise ValueError(f"the card's table has a row that is no row of the results: {line!r}. {WAY_OUT}")


def _check_index(metadata: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """None; ValueError where the entries of the model-index are not all those of the results; names are free."""
    found, wanted = ([one["results"] for one in part.get("model-index") or ()] for part in (metadata, expected))
    if found == wanted:
        return
    known = {(m["type"], m["value"]) for results in wanted for entry in results for m in entry["metrics"]}
    for metric in (m for results in found for entry in results for m in entry["metrics"]):
        if (metric["type"], metric["value"]) not in known:
            figure = f"{metric['type']} {metric['value']}"
            raise ValueError(f"the card's model-index has {figure}, which no result holds. {WAY_OUT}")
    raise ValueError(f"the card's model-index is not that of the results: an entry lacks or says more. {WAY_OUT}")


def _tables(results: Sequence[Result]) -> tuple[str, str]:
    """The table of the whole splits, and that of sources and strata; "" for none."""
    shown = [replace(r, **{n: _shown(getattr(r, n), markdown_cell) for n in SHOWN_IN_TABLES}) for r in results]
    whole = [result for result in shown if is_whole(result)]
    strata = [result for result in shown if not is_whole(result)]
    if not whole:  # such figures alone: they are the table
        whole, strata = strata, []
    return _table(whole), "\n".join(line for line in _table(strata).splitlines() if not line.startswith("- "))


def _table(results: Sequence[Result]) -> str:
    """The table of results, headings of several data one level below those of the card; "" for none."""
    text = format_table(results) if results else ""
    return re.sub(r"^## ", "### ", text, flags=re.MULTILINE)


def _marks(results: Sequence[Result], evaluated_as: str) -> list[str]:
    """What a reader must see before the figures of this model: leaks, training data that are not known."""
    told = {
        f"{title}{one_line(result.protocol[key])}"
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
        split = f"split `{code_line(r.protocol['split'])}` (sha256 `{str(r.protocol['split_sha256'])[:12]}`)"
        lines[
            f"data `{code_line(r.data_revision)}`, {split}, model revision `{code_line(r.model_revision)}`, seed "
            f"{r.seed}, on {one_line(r.hardware)}, by `{code_line(r.command)}`"
        ] = None
    return list(lines)
