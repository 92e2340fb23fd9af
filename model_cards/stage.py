"""Stages the flat folder that the Hub serves: weights, configs, remote code, tokenizer, results, card and the rest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regionmed_clip.eval.results import Result, write_results
from regionmed_clip.eval.saved_models import answers_questions, load_model, load_question_model
from regionmed_clip.processing.corpus.training_images import FACTS_FILE as TRAINING_DATA_FILE

from .auto_classes import is_answering, pipelines_of, registered, save_pipelines
from .card_facts import all_facts
from .golden_outputs import GOLDEN_FILE, write_golden
from .render import check_card, render_card
from .shipped_files import add_shipped_files
from .widget_examples import SAMPLES_FOLDER, region_examples, widget_examples

CARD_FILE, CARD_FACTS_FILE = "README.md", "card_facts.json"
ALLOWED_SUFFIXES = frozenset({".json", ".safetensors", ".py", ".md", ".txt", ".jinja", ".model"})
ALLOWED_NAMES = frozenset({"LICENSE"})
SAMPLE_SUFFIXES = frozenset({".png"})
PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "_commit_hash")  # where libraries leave local paths


def stage_flat_folder(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    results: Iterable[Result],
    facts: Mapping[str, Any] | None = None,
    training_data: Mapping[str, Any] | None = None,
) -> Path:
    """The folder, complete or untouched: it is written beside under a temporary name and then renamed.

    It loads with AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor and AutoImageProcessor
    (`trust_remote_code=True`) in a process that has none of our packages. Of a model that answers questions AutoModel
    gives the encoder, AutoModelForVisualQuestionAnswering the whole, and pipeline("visual-question-answering") answers.
    `regionmed-publish` needs nothing else than this folder: golden.safetensors holds what the saved model answers about
    a drawn picture, card_facts.json what the card says beside its numbers.

    Args:
        results: shown in the card and saved as results.json.
        facts: what the card says of this model beside its numbers; see `render_card`.
        training_data: what training_data.json says of the images it was trained on; None: there is no such file.

    Raises:
        ValueError: the tokenizer does not fit the text tower (the processor's `check_text_tower`); weights that give
            answers that are not finite; a file that must not be published (pickle, unknown kind), or a local path.
    """
    processor.check_text_tower(model.config.to_dict())
    folder = Path(folder).absolute()
    results = list(results)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _save(model, processor, temporary)
        _drop_local_paths(temporary)
        answers = {"num_answers": model.config.num_labels} if is_answering(model) else {}
        images = {} if training_data is None else {"training_data": training_data}
        found = {**_add_examples(temporary), "custom_tasks": list(pipelines_of(model))}
        found["window"] = processor.image_processor.window
        facts = {**answers, **(facts or {}), **images, **found}
        add_shipped_files(temporary, all_facts(facts)["license"])
        _write_card(temporary, results, facts)
        write_results(temporary / "results.json", results)
        if training_data is not None:
            (temporary / TRAINING_DATA_FILE).write_text(json.dumps(training_data, indent=2) + "\n", encoding="utf-8")
        check_files(temporary)
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_card(folder: Path, results: list[Result], facts: Mapping[str, Any]) -> None:
    """None; writes README.md, and card_facts.json: the facts, and the sha256 that tells a card edited by hand."""
    card = render_card(results, facts)
    check_card(card, results, facts)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    told = {"card_sha256": hashlib.sha256(card.encode()).hexdigest(), "facts": facts}
    (folder / CARD_FACTS_FILE).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_examples(folder: Path) -> dict[str, Any]:
    """The card's facts on examples, after writing golden.safetensors and samples/: of the model as it was saved."""
    answering: Any = None
    if answers_questions(folder):
        answering, processor = load_question_model(folder)
        encoder = answering.regionmed_clip
    else:
        encoder, processor = load_model(folder)
    write_golden(folder / GOLDEN_FILE, encoder, processor, answering)
    model = encoder if answering is None else answering
    widget = widget_examples(model, processor, folder)
    return {"widget": widget, "region_examples": region_examples(model, processor)}


def _save(model: Any, processor: Any, folder: Path) -> None:
    """None; writes weights, configs, code, tokenizer and processor, and the image processor alone for old clients."""
    with registered(model, processor):
        model.save_pretrained(folder)
        save_pipelines(model, folder)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)


def _drop_local_paths(folder: Path) -> None:
    """None; removes from the JSON files the keys in which libraries remember where something was loaded from."""
    for path in sorted(folder.glob("*.json")):
        if path.name in ("tokenizer.json", "model.safetensors.index.json"):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        cleaned = _without_keys(content)
        if cleaned != content:
            path.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_keys(value: Any) -> Any:
    """The JSON value without the entries of PATH_KEYS, at any depth."""
    if isinstance(value, dict):
        return {key: _without_keys(item) for key, item in value.items() if key not in PATH_KEYS}
    if isinstance(value, list):
        return [_without_keys(item) for item in value]
    return value


def check_files(folder: Path) -> None:
    """None, every file then readable by all; ValueError for a file of an unknown kind or an absolute path in JSON."""
    for path in sorted(folder.rglob("*")):
        is_sample = path.parent != folder
        if path.is_symlink() or (path.is_dir() and (is_sample or path.name != SAMPLES_FOLDER)):
            raise ValueError(
                f"{path}: a link or a sub-folder; the published folder is flat but for {SAMPLES_FOLDER}/. Take it out."
            )
        if path.is_dir():
            continue
        allowed = SAMPLE_SUFFIXES if is_sample else ALLOWED_SUFFIXES
        if path.suffix not in allowed and (is_sample or path.name not in ALLOWED_NAMES):
            raise ValueError(f"{path}: files of this kind are not published; allowed are {sorted(allowed)}.")
        path.chmod(0o644)  # safetensors writes for the owner alone
        if path.suffix == ".json" and path.name not in ("tokenizer.json", "results.json"):
            for value in _strings(json.loads(path.read_text(encoding="utf-8"))):
                if Path(value).is_absolute() and len(Path(value).parts) > 2:
                    raise ValueError(f"{path}: holds the local path {value!r}; remove it from the configuration.")


def _strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def put_in_place(temporary: Path, folder: Path) -> None:
    """None; renames the finished folder to its name; an older one steps aside first and comes back on failure."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
