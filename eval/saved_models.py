"""Saved folders as models and processors, by the installed code and none of the folder's own."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from modeling_regionmed_clip.configuration_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor


def load_model(path: str | Path, device: str = "cpu") -> tuple[RegionMedClipModel, RegionMedClipProcessor]:
    """The model in evaluation mode and the processor of a saved folder; no code of the folder is run."""
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"model {str(path)!r} has no config.json; give the folder that a run left in OUTPUT_DIR/final."
        )
    AutoConfig.register(RegionMedClipConfig.model_type, RegionMedClipConfig, exist_ok=True)  # the tokenizer asks for it
    model = RegionMedClipModel.from_pretrained(path, local_files_only=True).eval().to(device)
    return model, RegionMedClipProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
