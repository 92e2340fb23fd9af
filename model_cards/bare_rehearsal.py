"""Uses a flat folder as a stranger would: started by path in `python -I`, with all hidden that a stranger may lack.

    python -I bare_rehearsal.py FOLDER

Hidden are our packages and every installed one that torch, transformers and Pillow do not require. Then: golden outputs
by the Auto classes, the zero-shot pipeline, the folder's own pipelines, the handler of an endpoint. Prints one line of
JSON; the exit status is 1 with the reason where something fails. Imports nothing of ours: it must work where only those
three are installed.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

OUR_PACKAGES = frozenset({"modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval", "model_cards"})
STRANGERS_PACKAGES = ("torch", "transformers", "pillow")
NAME = re.compile(r"[A-Za-z0-9._-]+")
HANDLER_FILE = "handler.py"


class Hidden:
    """A finder of modules that finds what another one does, but for some top-level names."""

    def __init__(self, finder: Any, names: frozenset[str]):
        self._finder = finder
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module's specification; None for a hidden one."""
        return None if name.partition(".")[0] in self._names else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def strangers_distributions() -> set[str]:
    """Names, in normal form, of the installed distributions that a stranger has: the three and what they require."""
    found: set[str] = set()
    waiting = list(STRANGERS_PACKAGES)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system than this one
        found.add(name)
        waiting += [NAME.match(text)[0] for text in required if "extra ==" not in text]
    return found


def names_to_hide() -> frozenset[str]:
    """Top-level names of our packages and of all that a stranger may lack."""
    allowed = strangers_distributions()
    others = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if not any(_normal(owner) in allowed for owner in owners)
    }
    return frozenset(others | OUR_PACKAGES) - set(sys.stdlib_module_names)


def load_file(path: Path, name: str) -> ModuleType:
    """The module of a single file, as the endpoint's container loads handler.py."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def rehearse(folder: Path) -> dict[str, Any]:
    """What was done: `golden`, a line; `pipelines`, the tasks; `handler`, what it answered or None without one."""
    hidden = names_to_hide()
    sys.meta_path[:] = [Hidden(finder, hidden) for finder in sys.meta_path]
    golden_outputs = load_file(Path(__file__).with_name("golden_outputs.py"), "golden_outputs")
    told = {"golden": golden_outputs.check_golden(folder), "num_hidden": len(hidden)}
    picture = golden_outputs.draw_picture()
    told["pipelines"] = use_pipelines(folder, picture, golden_outputs.TEXTS)
    told["handler"] = use_handler(folder, picture, golden_outputs.TEXTS)
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES)
    if loaded:
        raise ValueError(f"{loaded[:3]} of our packages were imported; the folder must stand alone.")
    return told


def use_pipelines(folder: Path, picture: Any, texts: tuple[str, ...]) -> list[str]:
    """The tasks that `pipeline` does with the folder; ValueError where zero-shot answers are not about the texts."""
    from transformers import pipeline

    remote = {"model": str(folder), "trust_remote_code": True}
    classify = pipeline("zero-shot-image-classification", **remote)
    answers = classify(picture, candidate_labels=list(texts), hypothesis_template="{}")
    if {answer["label"] for answer in answers} != set(texts):
        raise ValueError(f"zero-shot-image-classification answered {answers}; it was asked about {texts}.")
    own = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("custom_pipelines") or {}
    for task in own:
        pipeline(task, **remote)
    return ["zero-shot-image-classification", *own]


def use_handler(folder: Path, picture: Any, texts: tuple[str, ...]) -> Any:
    """The zero-shot answer of the folder's EndpointHandler; None where there is no handler.py."""
    if not (folder / HANDLER_FILE).is_file():
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    handler = load_file(folder / HANDLER_FILE, "handler").EndpointHandler(str(folder))
    data = {
        "inputs": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "parameters": {"task": "zero_shot", "candidate_labels": list(texts)},
    }
    answered = handler(data)
    json.dumps(answered)
    if isinstance(answered, dict) and "error" in answered:
        raise ValueError(f"{HANDLER_FILE} answered {answered['error']} to a sound request.")
    return answered


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(rehearse(Path(sys.argv[1]).absolute())) + "\n")
    except (ValueError, ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
