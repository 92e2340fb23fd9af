"""A tiny untrained model with its processor, and results to show in a card."""

from __future__ import annotations

import pytest
import torch

from modeling_regionmed_clip.configuration_regionmed_clip import RegionMedClipConfig
from modeling_regionmed_clip.modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.eval.results import Result
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def processor() -> RegionMedClipProcessor:
    """A processor of 32-pixel frames and 8-pixel patches with a tokenizer of a few words."""
    image_processor = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8)
    tokenizer = train_tokenizer(["chest radiograph with a nodule"], vocab_size=280, max_length=64)
    return RegionMedClipProcessor(image_processor, tokenizer)


@pytest.fixture(scope="session")
def model(processor) -> RegionMedClipModel:
    """An untrained model of 16 channels, the same in every run."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **tower}
    text = {"model_type": "bert", "vocab_size": len(processor.tokenizer), "max_position_embeddings": 64, **tower}
    text["pad_token_id"] = processor.tokenizer.pad_token_id
    return RegionMedClipModel(RegionMedClipConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()


def _result(**changes) -> Result:
    protocol = {
        "gallery": 48,
        "unique_texts": 48,
        "split": "test",
        "split_sha256": "a" * 64,
        "prompts_sha256": "b" * 64,
    }
    values = {
        "model": "regionmed-clip",
        "task": "region",
        "metric": "region_to_text_accuracy",
        "value": 0.8125,
        "low": 0.7891,
        "high": 0.8342,
        "n": 1534,
        "protocol": {**protocol, **changes.pop("protocol", {})},
        "model_revision": "step-1250",
        "data_revision": "phantom@1:difficulty=0.5",
        "seed": 7,
        "hardware": "a CPU, 2 cores, 2 threads",
        "command": "accelerate launch train/pretrain.py",
    }
    return Result(**{**values, **changes})


@pytest.fixture
def make_result():
    """The function that builds a sound Result with some fields changed."""
    return _result


@pytest.fixture
def results(make_result) -> list[Result]:
    """A small table: the model, the baseline with its two readings, the control, a skipped figure."""
    plain = {"reading": "crop", "readings": {"dense_mean": 0.3011, "crop": 0.4123}}
    return [
        make_result(),
        make_result(source="phantom", stratum="fundus photograph", value=0.7, low=0.65, high=0.75, n=400),
        make_result(model="plain-clip", value=0.4123, low=0.39, high=0.43, protocol=plain),
        make_result(model="colour-size-probe", value=0.21, low=0.19, high=0.23),
        make_result(
            metric="region_balanced_accuracy",
            source="phantom",
            value=0.75,
            low=0.7,
            high=0.8,
            protocol={"chance": 1 / 14, "gallery": 14},
        ),
        make_result(
            task="retrieval",
            metric="image_to_text_recall@1",
            source="bccd",
            value=None,
            low=None,
            high=None,
            protocol={"skipped": "12 unique texts, fewer than 20"},
        ),
    ]
