"""A saved folder loads whole or not at all: nothing of a published model is drawn at random."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from regionmed_clip.eval.saved_models import load_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "final")
    processor.save_pretrained(tmp_path / "final")
    return tmp_path / "final"


def save_weights(folder, weights):
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def test_weights_that_lack_tensors_are_refused_by_name(copied):
    weights = load_file(copied / WEIGHTS)
    lacking = {name for name in weights if "text_projection" in name or name.startswith("vision_model.encoder")}
    assert len(lacking) > 3
    save_weights(copied, {name: tensor for name, tensor in weights.items() if name not in lacking})
    with pytest.raises(ValueError, match=rf"lack text_projection.*, \.\.\. \({len(lacking)} tensors\); take the whole"):
        load_model(copied)


def test_weights_of_a_part_that_the_model_has_not_are_refused_by_name(copied):
    weights = load_file(copied / WEIGHTS)
    save_weights(copied, {**weights, "third_tower.weight": weights["text_projection.weight"].clone()})
    with pytest.raises(ValueError, match=r"hold, though the model has no such part, third_tower\.weight \(1 tensors\)"):
        load_model(copied)


def half_the_weights(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def other_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 8}))


def half_the_tokenizer(folder):
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:200])


@pytest.mark.parametrize(
    ("spoil", "files"),
    [
        (half_the_weights, "config.json and model.safetensors"),
        (other_sizes, "config.json and model.safetensors"),
        (half_the_tokenizer, "tokenizer.json and processor_config.json"),
    ],
)
def test_files_that_are_not_whole_or_of_another_model_are_named_with_the_way_out(spoil, files, copied):
    spoil(copied)
    with pytest.raises(
        ValueError, match=rf"{files} in '.*final' are not whole or not of one model .*; take the folder"
    ):
        load_model(copied)
