"""The flat folder without our packages: every Auto class, the pipeline, and saved again from what was loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compat.bare_load import compare

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

BARE_LOAD = Path(__file__).with_name("bare_load.py")
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A staged tiny model whose fusion changes something."""
    tokenizer = train_tokenizer(["chest radiograph with a nodule"], vocab_size=280, max_length=64)
    image_processor = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8)
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 64, **TOWER}
    vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, **TOWER}
    text["pad_token_id"] = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = RegionMedClipModel(RegionMedClipConfig(vision_config=vision, text_config=text, projection_dim=16))
    torch.nn.init.constant_(model.region_fusion.alpha, 0.5)
    processor = RegionMedClipProcessor(image_processor, tokenizer)
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


def bare_load(command: str, folder: Path, answers: Path) -> subprocess.CompletedProcess:
    isolated = [] if command == "write" else ["-I"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(answers.parent / "modules")}
    return subprocess.run(
        [sys.executable, *isolated, str(BARE_LOAD), command, str(folder), str(answers)],
        cwd=answers.parent, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240,
    )  # fmt: skip


def test_the_folder_and_what_is_saved_from_it_answer_as_our_classes_do(folder, tmp_path):
    answers = tmp_path / "answers.json"
    assert (written := bare_load("write", folder, answers)).returncode == 0, written.stderr[-3000:]
    assert (checked := bare_load("check", folder, answers)).returncode == 0, checked.stderr[-3000:]
    assert "answers alike" in checked.stdout


def test_another_answer_is_told_by_name_and_distance():
    with pytest.raises(ValueError, match=r"region_embeds is 0\.5\d* from what our own class answers"):
        compare({"dense": [1.0], "region_embeds": [1.0]}, {"dense": [1.00001], "region_embeds": [1.5]})
