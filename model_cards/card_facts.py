"""The facts of a card: what facts/model.yaml holds, and what is refused of those that are given over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

FOLDER = Path(__file__).resolve().parent
KINDS: dict[str, tuple[type, ...]] = {  # of facts that are null unless they are known
    **dict.fromkeys(("num_parameters", "image_size", "num_answers"), (int,)),
    **dict.fromkeys(("training_data", "citation"), (dict,)),
    **dict.fromkeys(("license_name", "license_link", "repo_id", "base_model"), (str,)),
    **dict.fromkeys(("data", "text_origin", "training_hardware", "recipe"), (str,)),
    "training_seconds": (int, float),
    "language": (str, list),
    "window": (str, list, tuple),
}
OF_OBJECTS = frozenset({"widget", "region_examples"})  # all other lists are of texts


def load_facts(name: str = "model") -> dict[str, Any]:
    """The facts of model_cards/facts/<name>.yaml; ValueError where the file is missing."""
    path = FOLDER / "facts" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"facts {name!r} have no file {path}; write it or name another.")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def all_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """All facts, those given over those of facts/model.yaml.

    Raises:
        ValueError: a fact that the file does not have or of another kind than there, a text of several lines, a
            repository that is no ORG/NAME.
    """
    defaults = load_facts()
    unknown = sorted(set(facts) - set(defaults))
    if unknown:
        raise ValueError(f"facts {unknown} are not known; entries of facts/model.yaml are {sorted(defaults)}.")
    for name, value in facts.items():
        if value is not None or defaults[name] is not None:
            _check_kind(name, value, defaults[name])
    if facts.get("citation") is not None:
        for part in defaults["citation"]:
            if not isinstance(facts["citation"].get(part), str):
                raise ValueError(
                    f"fact 'citation' is {facts['citation']!r}; it must have title and author, both texts."
                )
    repo_id = facts.get("repo_id")
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"fact 'repo_id' is {repo_id!r}; it must be ORG/NAME of the Hub ({error}).") from error
        if "/" not in repo_id:
            raise ValueError(f"fact 'repo_id' is {repo_id!r}; it must be ORG/NAME of the Hub.")
    return {**defaults, **facts}


def _check_kind(name: str, value: Any, default: Any) -> None:
    """None; ValueError for a fact that a card cannot show."""
    kinds = KINDS.get(name, (type(default),))
    if not isinstance(value, kinds) or isinstance(value, bool):
        named = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"fact {name!r} is {value!r}; it must be a {named}, as in facts/model.yaml.")
    if isinstance(value, str) and (not value.strip() or len(value.strip().splitlines()) > 1):
        raise ValueError(f"fact {name!r} is {value!r:.80}; it must be one line of text.")
    if isinstance(value, list) and name != "window":
        kind = dict if name in OF_OBJECTS else str
        for entry in value:
            if not isinstance(entry, kind):
                raise ValueError(f"fact {name!r} holds {entry!r:.80}; each entry must be a {kind.__name__}.")
