"""The demo's modules as the Space imports them, and a small staged Space."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_regionmed_clip.configuration_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.model_cards.space import stage_space
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "demo"


def _import_demo(*names: str) -> SimpleNamespace:
    """The modules of demo/, imported by their bare names as in the flat folder."""
    sys.path.insert(0, str(DEMO))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradio's own imports
            return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(DEMO))


@pytest.fixture(scope="session")
def demo():
    """The modules that need no gradio."""
    return _import_demo("pages", "region_model", "settings", "uploads")


@pytest.fixture(scope="session")
def page():
    """The modules of the page itself."""
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'regionmed-clip[demo]')")
    return _import_demo("answers", "app")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny untrained model of 32-pixel frames and 8-pixel patches, staged as for the Hub."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["chest radiograph with a nodule"], vocab_size=280, max_length=64)
    image_processor = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **tower}
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 64, **tower}
    text["pad_token_id"] = tokenizer.pad_token_id
    model = RegionMedClipModel(RegionMedClipConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()
    processor = RegionMedClipProcessor(image_processor, tokenizer)
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("model") / "final", results=[])


@pytest.fixture(scope="session")
def space(model_folder, tmp_path_factory):
    """The Space of the tiny model with an index of eight phantoms."""
    return stage_space(model_folder, tmp_path_factory.mktemp("space") / "demo", num_index_images=8)


@pytest.fixture(scope="session")
def region_model(demo, model_folder):
    """The tiny model as the demo loads it: by its own remote code."""
    return demo.region_model.RegionModel(str(model_folder))
