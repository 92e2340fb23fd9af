"""Uses a flat folder as a stranger would: started by path in `python -I`, with all hidden that a stranger may lack.

    python -I bare_rehearsal.py model|space FOLDER

Hidden are our packages and every installed one that is not required: of a model by torch, transformers and Pillow, of a
Space by its requirements.txt. Of a model: golden outputs by the Auto classes, the zero-shot pipeline, the folder's own
pipelines, the tasks of an endpoint's handler that people ask for. Of a Space: the page with its first example read, a
heat map, a search. Prints one line of JSON; the exit status is 1 with the reason where something fails. Imports nothing
of ours: it must work where only what is required is installed.
"""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import importlib.util
import io
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

OUR_PACKAGES = frozenset({"modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval", "model_cards"})
STRANGERS_PACKAGES = ("torch", "transformers", "pillow")
NAME = re.compile(r"[A-Za-z0-9._-]+")
HANDLER_FILE = "handler.py"
ZERO_SHOT = "zero-shot-image-classification"
EVERY_COSINE = {"source": "heat", "threshold": -1.0}  # of grounding: nothing is too unlike
NUM_CASES = 3  # that are looked at
SHARE_ATOL = 2e-2  # of a share: weights may be of half precision


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


def strangers_distributions(needed: tuple[str, ...] = STRANGERS_PACKAGES) -> set[str]:
    """Names, in normal form, of the installed distributions that a stranger has: the needed and what they require."""
    found: set[str] = set()
    waiting = list(needed)
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


def names_to_hide(needed: tuple[str, ...] = STRANGERS_PACKAGES) -> frozenset[str]:
    """Top-level names of our packages and of all that a stranger may lack."""
    allowed = strangers_distributions(needed)
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
    told: dict[str, Any] = {"num_hidden": hide(STRANGERS_PACKAGES)}
    golden_outputs = load_file(Path(__file__).with_name("golden_outputs.py"), "golden_outputs")
    told["golden"] = golden_outputs.check_golden(folder)
    golden = golden_outputs.read_golden(folder / golden_outputs.GOLDEN_FILE)
    picture = golden_outputs.draw_picture()
    told["pipelines"] = use_pipelines(folder, picture, golden)
    told["handler"] = use_handler(folder, picture, golden)
    refuse_our_packages()
    return told


def rehearse_space(folder: Path) -> dict[str, Any]:
    """What the page says of the first example: `labels` of its boxes, `scores` of the cases like its first box."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    hide(tuple(match[0] for line in lines if (match := NAME.match(line))))
    sys.path.insert(0, str(folder))
    names = ("app", "answers", "region_model", "settings")
    app, answers, region_model, settings = (importlib.import_module(name) for name in names)
    model, index = region_model.RegionModel(*settings.model_source()), region_model.RegionIndex(folder)
    if not index.belongs_to(model):
        raise ValueError("the index of the Space is of another model than the one it loads; stage it for this one.")
    given = answers.Answers(model, index, settings.read_examples())
    app.build_app(given)
    visit, canvas, _, _, cards, text = given.open_example(0)[:6]
    chosen = {"boxes": canvas["boxes"], "selected": 0}
    shown = {"reading": cards, "heat map": given.find(visit, text)[0], "search": given.search_box(chosen, visit)[0]}
    for what, part in shown.items():
        if "<" not in part:
            raise ValueError(f"the {what} of the first example is {part[:80]!r}; it must be a part of the page.")
    scores = [case.score for case in index.nearest(model.embed_box(visit.picture, canvas["boxes"][0]), NUM_CASES)]
    if not all(map(math.isfinite, scores)) or any(label.endswith("nan %") for label in canvas["labels"]):
        raise ValueError(f"the first example reads {canvas['labels']}, cases like it {scores}; all must be finite.")
    refuse_our_packages()
    return {"labels": canvas["labels"], "scores": scores}


def hide(needed: tuple[str, ...]) -> int:
    """How many names cannot be imported any more: of our packages, and of all that a stranger may lack."""
    hidden = names_to_hide(needed)
    sys.meta_path[:] = [Hidden(finder, hidden) for finder in sys.meta_path]
    return len(hidden)


def refuse_our_packages() -> None:
    """None; ValueError where one of our packages was imported all the same."""
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES)
    if loaded:
        raise ValueError(f"{loaded[:3]} of our packages were imported; the folder must stand alone.")


def use_pipelines(folder: Path, picture: Any, golden: Any) -> list[str]:
    """The tasks that `pipeline` does with the folder; ValueError where an answer is not about what was asked.

    Args:
        golden: what golden_outputs.py reads from the folder.
    """
    from transformers import pipeline

    remote = {"model": str(folder), "trust_remote_code": True}
    classify = pipeline(ZERO_SHOT, **remote)
    classify.image_processor.window = None  # the picture is of 8 bits; this pipeline has no such argument
    answers = classify(picture, candidate_labels=list(golden.texts), hypothesis_template="{}")
    check_shares(ZERO_SHOT, answers, golden.texts)
    own = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("custom_pipelines") or {}
    for task in own:
        if task not in ASKED:
            raise ValueError(f"no rehearsal knows how to ask the pipeline {task!r}; known are {sorted(ASKED)}.")
        ASKED[task](pipeline(task, **remote), picture, golden)
    return [ZERO_SHOT, *own]


def check_shares(task: str, answers: list[dict[str, Any]], texts: tuple[str, ...]) -> None:
    """None; ValueError where the answers are not shares, summing to 1, of the texts that were asked about."""
    is_sum = math.isclose(sum(answer["score"] for answer in answers), 1.0, abs_tol=SHARE_ATOL)
    if not is_sum or sorted(answer["label"] for answer in answers) != sorted(texts):
        raise ValueError(f"{task} answered {answers}; it was asked for shares of {texts}.")


def classify_regions(pipe: Any, picture: Any, golden: Any) -> None:
    """None; ValueError where the golden boxes are read otherwise than by the golden outputs."""
    asked = {"candidate_labels": list(golden.region_texts), "boxes": golden.boxes.tolist(), "window": None}
    check_regions("region-classification", pipe(picture, **asked), golden)


def check_regions(task: str, regions: list[dict[str, Any]], golden: Any) -> None:
    """None; ValueError where regions are not the golden boxes, their labels read as by the golden outputs."""
    expected = golden.outputs["logits_per_region"][0].float().softmax(dim=-1).tolist()
    if len(regions) != len(expected):
        raise ValueError(f"{task} answered {len(regions)} regions; it was asked about {len(expected)}.")
    for region, shares in zip(regions, expected):
        check_shares(task, region["labels"], golden.region_texts)
        found = {label["label"]: label["score"] for label in region["labels"]}
        if any(abs(found[text] - share) > SHARE_ATOL for text, share in zip(golden.region_texts, shares)):
            raise ValueError(f"{task} answered {found}; by the golden outputs it is {shares}.")


def ground_regions(pipe: Any, picture: Any, golden: Any) -> None:
    """None; ValueError where what is found is not of the texts, or not in the picture."""
    found = pipe(picture, candidate_labels=list(golden.region_texts), **EVERY_COSINE, window=None)
    check_grounding("region-grounding", found, picture, golden.region_texts)


def check_grounding(task: str, found: list[dict[str, Any]], picture: Any, texts: tuple[str, ...]) -> None:
    """None; ValueError where nothing was found, or what is not of the texts, or not in the picture."""
    for one in found:
        box, (width, height) = one["box"], picture.size
        is_inside = 0 <= box["xmin"] < box["xmax"] <= width + 1 and 0 <= box["ymin"] < box["ymax"] <= height + 1
        if one["label"] not in texts or not is_inside or not abs(one["score"]) <= 1 + SHARE_ATOL:
            raise ValueError(f"{task} answered {one} about {texts} in a picture of {width} x {height} pixels.")
    if not found:
        raise ValueError(f"{task} found nothing of {texts}, though every cosine was enough.")


def ask_question(pipe: Any, picture: Any, golden: Any) -> None:
    """None; ValueError where the answer to the golden question about a golden box is none that the model knows."""
    answers = pipe(image=picture, question=golden.question, boxes=golden.boxes.tolist(), top_k=1, window=None)
    check_answers("visual-question-answering", answers, pipe.model.config.id2label.values())


def check_answers(task: str, answers: list[dict[str, Any]], known: Any) -> None:
    """None; ValueError where the answers are not one of the known."""
    if len(answers) != 1 or answers[0]["answer"] not in known or not 0 <= answers[0]["score"] <= 1:
        raise ValueError(f"{task} answered {answers}; it must be one answer that the model knows.")


ASKED = {
    "region-classification": classify_regions,
    "region-grounding": ground_regions,
    "visual-question-answering": ask_question,
}


def use_handler(folder: Path, picture: Any, golden: Any) -> Any:
    """The zero-shot answer of the folder's EndpointHandler; None where there is no handler.py.

    ValueError where it, or what the handler says of boxes, of texts, of grounding or of a question, is not about what
    was asked.
    """
    if not (folder / HANDLER_FILE).is_file():
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    boxed = {"image": image, "boxes": golden.boxes.tolist()}
    handler = load_file(folder / HANDLER_FILE, "handler").EndpointHandler(str(folder))

    def ask(task: str, inputs: Any, **settings: Any) -> Any:
        answered = handler({"inputs": inputs, "parameters": {"task": task, **settings}})
        json.dumps(answered)
        if isinstance(answered, dict) and "error" in answered:
            raise ValueError(f"{HANDLER_FILE} answered {answered['error']} to a sound request for {task}.")
        return answered

    plain = {"window": None}  # the picture is of 8 bits
    of_regions = {"candidate_labels": list(golden.region_texts), **plain}
    answered = ask("zero_shot", image, candidate_labels=list(golden.texts), **plain)
    check_shares(HANDLER_FILE, answered, golden.texts)
    check_regions(f"{HANDLER_FILE} classify_regions", ask("classify_regions", boxed, **of_regions), golden)
    found = ask("ground", image, **of_regions, **EVERY_COSINE)
    check_grounding(f"{HANDLER_FILE} ground", found, picture, golden.region_texts)
    check_embeddings(f"{HANDLER_FILE} embed_text", ask("embed_text", list(golden.texts)), golden)
    if golden.question is not None:
        told = ask("answer", {**boxed, "question": golden.question}, top_k=1, **plain)
        check_answers(f"{HANDLER_FILE} answer", told, handler.answering.config.id2label.values())
    return answered


def check_embeddings(task: str, answers: list[dict[str, Any]], golden: Any) -> None:
    """None; ValueError where the embeddings of the golden texts are not the golden ones."""
    expected = golden.outputs["text_embeds"].float().tolist()
    found = [one["embedding"] for one in answers]
    if [len(row) for row in found] != [len(row) for row in expected]:
        raise ValueError(f"{task} answered {len(found)} embeddings of another size; {len(expected)} were asked for.")
    gap = max(abs(a - b) for row, other in zip(found, expected) for a, b in zip(row, other))
    if not gap <= SHARE_ATOL:
        raise ValueError(f"{task} answered embeddings up to {gap:.3g} from the golden outputs.")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        use = {"model": rehearse, "space": rehearse_space}[sys.argv[1]]
        sys.stdout.write(json.dumps(use(Path(sys.argv[2]).absolute())) + "\n")
    except (ValueError, ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")  # in one line, which is told
