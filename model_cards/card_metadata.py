"""The YAML block of a model card, and what can be checked of one without the Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from regionmed_clip.eval.results import Result
from regionmed_clip.model_cards.model_index import eval_results

LIBRARY = "transformers"
REQUIRED = ("library_name", "pipeline_tag", "license", "tags")
ENCODER_TASK, ANSWER_TASK = "zero-shot-image-classification", "visual-question-answering"
MAX_SCORE_GAP = 2e-3  # between 1 and the sum of scores rounded to four digits
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_NAMES_FILE = Path(__file__).resolve().parent / "facts" / "hub_names.yaml"


def model_metadata(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The YAML block without its dashes; results of `facts["evaluated_as"]` become the `model-index`."""
    found = eval_results(results, facts["evaluated_as"])
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=ANSWER_TASK if facts["num_answers"] else ENCODER_TASK,
        license=facts["license"],
        license_name=facts["license_name"],
        license_link=facts["license_link"],
        language=facts["language"],
        tags=list(facts["tags"]),
        base_model=facts["base_model"],
        widget=list(facts["widget"]) or None,
        model_name=facts["model_name"] if found else None,
        eval_results=found or None,
    )
    return data.to_yaml()


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """(metadata, Markdown) of a card; ValueError where the YAML block is absent or does not parse."""
    block = REGEX_YAML_BLOCK.match(card)  # as the Hub's own client cuts it
    if block is None:
        raise ValueError("the card does not begin with a YAML block between two lines of ---; the Hub needs one.")
    try:
        metadata = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        raise ValueError(f"the card's YAML does not parse ({error}); repair the template or the facts.") from error
    return metadata if isinstance(metadata, dict) else {}, card[block.end() :]


def check_metadata(metadata: Mapping[str, Any], required: Sequence[str] = REQUIRED) -> None:
    """None for a YAML block that the Hub would take, as far as that can be told without it.

    Names of tasks and licences are compared with facts/hub_names.yaml, ids by huggingface_hub's own rule, the
    model-index by its reader. What the Hub alone knows - whether a data set or base model exists - is not checked.

    Raises:
        ValueError: names the entry, its value, the rule and the way out.
    """
    missing = [key for key in required if not metadata.get(key)]
    if missing:
        raise ValueError(f"the card's YAML lacks {missing}; the Hub reads them. Add them to the template or the facts.")
    names = yaml.safe_load(_NAMES_FILE.read_text(encoding="utf-8"))
    tags = [metadata["pipeline_tag"]] if "pipeline_tag" in metadata else []
    for key, values, known in (
        ("pipeline_tag", tags, names["pipeline_tags"]),
        ("task_categories", _listed(metadata.get("task_categories")), names["pipeline_tags"]),
        ("license", _listed(metadata.get("license")), names["licenses"]),
    ):
        for value in values:
            if value not in known:
                raise ValueError(
                    f"the card's {key} is {value!r}, which is no name of the Hub that {_NAMES_FILE.name} lists; "
                    "correct it, or add it there if the Hub has it by now."
                )
    if "other" in _listed(metadata.get("license")) and not metadata.get("license_name"):
        raise ValueError("the card's license is 'other'; then license_name must name it. Add it to the facts.")
    for value in _listed(metadata.get("language")):
        if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
            raise ValueError(f"the card's language is {value!r}; it must be a code such as en. Quote it in YAML.")
    wrong = [tag for tag in _listed(metadata.get("tags")) if not isinstance(tag, str) or not tag.strip()]
    if wrong:
        raise ValueError(f"the card's tags hold {wrong}; tags are texts. Correct them.")
    for key in ("base_model", "datasets"):
        for value in _listed(metadata.get(key)):
            _check_repo_id(key, value)
    _check_model_index(metadata)
    for entry in metadata.get("widget") or ():
        _check_widget(entry, metadata.get("pipeline_tag"))


def _listed(value: Any) -> list[Any]:
    """A value that may stand alone or in a list, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_repo_id(key: str, value: Any) -> None:
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"the card's {key} is {value!r}, no id of the Hub ({error}); give ORG/NAME.") from error


def _check_model_index(metadata: Mapping[str, Any]) -> None:
    """None; ValueError where huggingface_hub does not read the model-index, or a figure in it is no finite number."""
    if "model-index" not in metadata:
        return
    try:
        found = ModelCardData(**{"model-index": metadata["model-index"]}).eval_results or []
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the card's model-index is none ({error}); render the card again.") from error
    for entry in found:
        value = entry.metric_value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"the card's model-index has {value!r} for {entry.metric_type}; it must be a number.")


def _check_widget(entry: Any, task: str | None) -> None:
    """None for a widget example of one of our two tasks; ValueError else."""
    name = f"widget example {entry!r:.80}"
    if not isinstance(entry, Mapping) or not entry.get("src") or not entry.get("example_title"):
        raise ValueError(f"{name}: it must have src and example_title. Write it by `widget_examples`.")
    src = str(entry["src"])
    if not src.startswith("https://") and (Path(src).is_absolute() or ".." in Path(src).parts):
        raise ValueError(f"{name}: src must be a path within the folder or an https address. Correct it.")
    output = entry.get("output")
    if task == ANSWER_TASK:
        if not entry.get("text") or not isinstance(output, Mapping) or set(output) != {"answer", "score"}:
            raise ValueError(f"{name}: it must have text, and output with answer and score. Write it again.")
        return
    labels = str(entry.get("candidate_labels", "")).split(", ")
    if not isinstance(output, list) or sorted(one.get("label", "") for one in output) != sorted(labels):
        raise ValueError(f"{name}: output must have each of the {len(labels)} candidate labels. Write it again.")
    total = sum(one["score"] for one in output)
    if abs(total - 1) > MAX_SCORE_GAP:
        raise ValueError(f"{name}: its scores sum to {total:.4f}; a softmax sums to 1. Write it again.")
