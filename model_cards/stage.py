"""Stages the flat folder that the Hub serves: weights, configs, remote code, tokenizer, results and the card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering, RegionMedClipModel
from modeling_regionmed_clip.question_answering_pipeline import VisualQuestionAnsweringPipeline
from regionmed_clip.eval.results import Result, write_results
from regionmed_clip.model_cards.render import check_card, render_card
from regionmed_clip.processing.corpus.training_images import FACTS_FILE as TRAINING_DATA_FILE

AUTO_CLASSES_OF_ENCODER = ("AutoModel", "AutoModelForZeroShotImageClassification")
AUTO_CLASS_OF_ANSWERS = "AutoModelForVisualQuestionAnswering"
QUESTION_TASK = "visual-question-answering"
ALLOWED_SUFFIXES = frozenset({".json", ".safetensors", ".py", ".md", ".txt", ".jinja", ".model"})
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

    Args:
        results: shown in the card and saved as results.json.
        facts: what the card says of this model beside its numbers; see `render_card`.
        training_data: what training_data.json says of the images it was trained on; None: there is no such file.

    Raises:
        ValueError: the tokenizer does not fit the text tower (the processor's `check_text_tower`); a file that must not
            be published (pickle, unknown kind) or a local path got in.
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
        answers = {"num_answers": model.config.num_labels} if _is_answering(model) else {}
        card = render_card(results, {**answers, **(facts or {})})
        check_card(card, results)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_results(temporary / "results.json", results)
        if training_data is not None:
            (temporary / TRAINING_DATA_FILE).write_text(json.dumps(training_data, indent=2) + "\n", encoding="utf-8")
        _check_files(temporary)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _save(model: Any, processor: Any, folder: Path) -> None:
    """None; writes weights, configs, code, tokenizer and processor, and the image processor alone for old clients."""
    with _auto_classes(model, processor):
        model.save_pretrained(folder)
        if _is_answering(model):
            custom_object_save(VisualQuestionAnsweringPipeline, folder)  # no other file names it
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)


@contextmanager
def _auto_classes(model: Any, processor: Any) -> Iterator[None]:
    """Our classes registered for their Auto classes, so that saving copies their code; undone afterwards."""
    is_answering = _is_answering(model)
    names = {
        type(model.config): "AutoConfig",
        type(model): AUTO_CLASS_OF_ANSWERS if is_answering else "AutoModel",
        type(processor): "AutoProcessor",
        type(processor.image_processor): "AutoImageProcessor",
    }
    before = {cls: cls.__dict__.get("_auto_class") for cls in names}
    said = {"auto_map": _auto_map(model)} | ({"custom_pipelines": _custom_pipelines()} if is_answering else {})
    said_before = {name: getattr(model.config, name) for name in said if hasattr(model.config, name)}
    try:
        for cls, name in names.items():
            cls.register_for_auto_class(name)
        for name, value in said.items():
            setattr(model.config, name, value)
        yield
    finally:
        for cls, value in before.items():
            cls._auto_class = value
        for name in said:
            if name in said_before:
                setattr(model.config, name, said_before[name])
            else:
                delattr(model.config, name)


def _auto_map(model: Any) -> dict[str, str]:
    """config.json's table from Auto class to our class, by file stem: the files lie flat in the folder."""
    is_answering = _is_answering(model)
    encoder = RegionMedClipModel if is_answering else type(model)
    answers = {AUTO_CLASS_OF_ANSWERS: _name_in_folder(type(model))} if is_answering else {}
    return {
        "AutoConfig": _name_in_folder(type(model.config)),
        **dict.fromkeys(AUTO_CLASSES_OF_ENCODER, _name_in_folder(encoder)),
        **answers,
    }


def _is_answering(model: Any) -> bool:
    return isinstance(model, RegionMedClipForVisualQuestionAnswering)


def _custom_pipelines() -> dict[str, Any]:
    """config.json's table of tasks whose pipeline lies in the folder, as `Pipeline.save_pretrained` writes it."""
    name = _name_in_folder(VisualQuestionAnsweringPipeline)
    return {QUESTION_TASK: {"impl": name, "pt": [AUTO_CLASS_OF_ANSWERS], "type": "multimodal"}}


def _name_in_folder(cls: type) -> str:
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


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


def _check_files(folder: Path) -> None:
    """None, every file then readable by all; ValueError for a file of an unknown kind or an absolute path in JSON."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            raise ValueError(
                f"{path}: a sub-folder; the published folder is flat. Keep code in the two shipped folders."
            )
        if path.suffix not in ALLOWED_SUFFIXES:
            raise ValueError(f"{path}: files of this kind are not published; allowed are {sorted(ALLOWED_SUFFIXES)}.")
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


def _put_in_place(temporary: Path, folder: Path) -> None:
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
