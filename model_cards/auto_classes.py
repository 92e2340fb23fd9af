"""Which of our classes the Auto classes and `pipeline` of transformers find in a flat folder, by config.json."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering, RegionMedClipModel
from modeling_regionmed_clip.question_answering_pipeline import VisualQuestionAnsweringPipeline
from modeling_regionmed_clip.region_pipelines import RegionClassificationPipeline, RegionGroundingPipeline

AUTO_CLASSES_OF_ENCODER = ("AutoModel", "AutoModelForZeroShotImageClassification")
AUTO_CLASS_OF_ANSWERS = "AutoModelForVisualQuestionAnswering"
# task -> (its pipeline, the Auto class of its model); no other file of the folder names these classes
PIPELINES_OF_ENCODER: dict[str, tuple[type, str]] = {
    "region-classification": (RegionClassificationPipeline, "AutoModel"),
    "region-grounding": (RegionGroundingPipeline, "AutoModel"),
}
PIPELINES_OF_ANSWERS: dict[str, tuple[type, str]] = {
    "visual-question-answering": (VisualQuestionAnsweringPipeline, AUTO_CLASS_OF_ANSWERS),
}


def is_answering(model: Any) -> bool:
    """Whether the model answers questions."""
    return isinstance(model, RegionMedClipForVisualQuestionAnswering)


def pipelines_of(model: Any) -> dict[str, tuple[type, str]]:
    """task -> (pipeline class, Auto class) of the tasks that this model can do beside those that transformers knows."""
    return {**PIPELINES_OF_ENCODER, **(PIPELINES_OF_ANSWERS if is_answering(model) else {})}


def save_pipelines(model: Any, folder: Path) -> None:
    """None; copies the code of the model's own pipelines into the folder."""
    for pipeline_class, _ in pipelines_of(model).values():
        custom_object_save(pipeline_class, folder)


@contextmanager
def registered(model: Any, processor: Any) -> Iterator[None]:
    """Our classes registered for their Auto classes, so that saving copies their code; undone afterwards."""
    names = {
        type(model.config): "AutoConfig",
        type(model): AUTO_CLASS_OF_ANSWERS if is_answering(model) else "AutoModel",
        type(processor): "AutoProcessor",
        type(processor.image_processor): "AutoImageProcessor",
    }
    before = {cls: cls.__dict__.get("_auto_class") for cls in names}
    tasks = _custom_pipelines(model)
    said = {"auto_map": _auto_map(model)} | ({"custom_pipelines": tasks} if tasks else {})
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
    encoder = RegionMedClipModel if is_answering(model) else type(model)
    answers = {AUTO_CLASS_OF_ANSWERS: _name_in_folder(type(model))} if is_answering(model) else {}
    return {
        "AutoConfig": _name_in_folder(type(model.config)),
        **dict.fromkeys(AUTO_CLASSES_OF_ENCODER, _name_in_folder(encoder)),
        **answers,
    }


def _custom_pipelines(model: Any) -> dict[str, Any]:
    """config.json's table of tasks whose pipeline lies in the folder, as `Pipeline.save_pretrained` writes it."""
    return {
        task: {"impl": _name_in_folder(pipeline_class), "pt": [auto_class], "type": "multimodal"}
        for task, (pipeline_class, auto_class) in pipelines_of(model).items()
    }


def _name_in_folder(cls: type) -> str:
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"
