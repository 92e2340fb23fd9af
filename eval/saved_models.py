"""Saved folders as models and processors, by the installed code and none of the folder's own; offline.

A folder holds a RegionMedClipModel, one with a head that answers questions, or a checkpoint of others that one can
start from (docs/starts.md): a CLIPModel, a SiglipModel (SigLIP2 of fixed resolution too), a VisionTextDualEncoderModel,
or one in open_clip's format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from modeling_regionmed_clip.configuration_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering, RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

OWN_KIND = RegionMedClipConfig.model_type
OPEN_CLIP_KIND = "open_clip"
GEOMETRIES = ("source", "pad")
_OPEN_CLIP_CONFIG = "open_clip_config.json"


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, geometry: str = "source"
) -> tuple[RegionMedClipModel, RegionMedClipProcessor]:
    """The model in evaluation mode and the processor of a saved folder; no code of the folder is run.

    Of a folder that answers questions it is the encoder; see `load_question_model`.

    The region path of a checkpoint of others is new, and the same in every call: it begins near the checkpoint's dense
    features (docs/starts.md) and has learnt nothing.

    Args:
        geometry: of a checkpoint of others: "source" repeats its own pixels, crops included; "pad" shows whole images.

    Raises:
        ValueError: for a folder that holds neither, one whose files are not whole or cannot be read, and weights that
            lack a tensor of the model or hold one of another.
    """
    kind = kind_of_folder(path)
    if kind != OWN_KIND:
        return _load_foreign(Path(path), device, geometry)
    return _load_own(RegionMedClipModel, path, device)


def load_question_model(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[RegionMedClipForVisualQuestionAnswering, RegionMedClipProcessor]:
    """The model that answers questions, in evaluation mode, and the processor of its folder; no code of it is run.

    Raises:
        ValueError: for a folder without an answer head; see `answers_questions`.
    """
    if not answers_questions(path):
        raise ValueError(
            f"model {str(path)!r} has no answer head; give the folder that train/finetune_vqa.py left in "
            "OUTPUT_DIR/final, or train one that starts from this model."
        )
    return _load_own(RegionMedClipForVisualQuestionAnswering, path, device)


def answers_questions(path: str | Path) -> bool:
    """Whether the folder holds a RegionMedClipForVisualQuestionAnswering; a ValueError where it holds no model."""
    if kind_of_folder(path) != OWN_KIND:
        return False
    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return RegionMedClipForVisualQuestionAnswering.__name__ in (config.get("architectures") or [])


def _load_own(model_class: type, path: str | Path, device: str | torch.device) -> tuple[Any, RegionMedClipProcessor]:
    """A model of our own in evaluation mode, and its processor."""
    AutoConfig.register(OWN_KIND, RegionMedClipConfig, exist_ok=True)  # the tokenizer asks for it
    with _named(path, "config.json and model.safetensors"):
        model, told = model_class.from_pretrained(path, local_files_only=True, output_loading_info=True)
    _refuse_other_weights(path, told["missing_keys"], told["unexpected_keys"])
    with _named(path, "tokenizer.json and processor_config.json"):
        processor = RegionMedClipProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return model.eval().to(device), processor


def _refuse_other_weights(path: str | Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """None; ValueError where the weights are not those of the model: what is missing would be drawn at random."""
    for names, what in ((sorted(missing), "lack"), (sorted(unexpected), "hold, though the model has no such part,")):
        if names:
            raise ValueError(
                f"the weights in {str(path)!r} {what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} "
                f"({len(names)} tensors); take the whole folder from the run that saved it, with its own config.json."
            )


@contextmanager
def _named(path: str | Path, files: str) -> Iterator[None]:
    """Turns whatever the libraries raise of broken files into a ValueError that names the folder and the files."""
    try:
        yield
    except Exception as error:  # tokenizers raises no narrower one
        if isinstance(error, (ValueError, OSError)) and not isinstance(error, json.JSONDecodeError):
            raise  # these say what is wrong
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{files} in {str(path)!r} are not whole or not of one model ({type(error).__name__}: {reason}); take the "
            "folder from the run again."
        ) from error


def kind_of_folder(path: str | Path) -> str:
    """What the folder holds: the model_type of its config.json ("regionmed_clip", "clip", ...), or "open_clip"."""
    config = Path(path) / "config.json"
    if config.is_file():
        try:
            return str(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{config} is not a JSON object ({error}); a model's config.json is one.") from error
    if (Path(path) / _OPEN_CLIP_CONFIG).is_file():
        return OPEN_CLIP_KIND
    raise ValueError(f"model {str(path)!r} has no config.json; {_way_out(Path(path))}")


def _way_out(path: Path) -> str:
    """What a folder that holds no model may have been meant for."""
    if (path / "final" / "config.json").is_file():
        return f"a run's model lies in its final/: give {path / 'final'}."
    if (path / "adapter_config.json").is_file():
        return "it holds adapters alone; the merged model lies in final/ beside it."
    asked = (
        "give the folder that a run left in OUTPUT_DIR/final, or one with a checkpoint of CLIP, SigLIP, a dual encoder"
    )
    if path.is_dir():
        return f"{asked} or open_clip."
    return f"{asked} or open_clip. There is no such folder, and nothing is fetched from the Hub."


def _load_foreign(
    folder: Path, device: str | torch.device, geometry: str
) -> tuple[RegionMedClipModel, RegionMedClipProcessor]:
    """Model and processor of a checkpoint of others; its new parts are drawn by a fixed seed."""
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry is {geometry!r}; it must be one of {', '.join(GEOMETRIES)}. Correct it.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = RegionMedClipModel.from_clip_pretrained(folder)
        processor = RegionMedClipProcessor.from_clip_pretrained(folder, geometry=geometry)
        processor.check_text_tower(model.config.to_dict())
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"model {str(folder)!r} cannot be read: {reason} Are all its files there?") from error
    return model.eval().to(device), processor
