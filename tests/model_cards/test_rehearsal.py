"""The rehearsal passes a whole folder, and stops one that a stranger could not use."""

from __future__ import annotations

import shutil
from importlib.machinery import PathFinder

import pytest
from safetensors.torch import load_file, save_file

from regionmed_clip.model_cards.bare_rehearsal import Hidden, names_to_hide, strangers_distributions
from regionmed_clip.model_cards.rehearsal import rehearse
from regionmed_clip.model_cards.stage import stage_flat_folder


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_whole_folder_loads_answers_alike_and_stays_as_it_was(folder):
    before = sorted(path.name for path in folder.rglob("*"))
    told = rehearse(folder).told
    assert "outputs alike; greatest difference 0" in told["golden"]
    assert told["pipelines"] == ["zero-shot-image-classification", "region-classification", "region-grounding"]
    assert {answer["label"] for answer in told["handler"]} == {
        "Chest radiograph with a nodule in the left lung.",
        "Normal chest radiograph.",
    }
    assert sorted(path.name for path in folder.rglob("*")) == before  # no byte code with local paths


def test_other_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "text_projection" in name)
    save_file(
        {**weights, name: weights[name].flip(0).contiguous()}, copied / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"the model's \w+ is up to .* Nothing was published"):
        rehearse(copied)


def test_code_that_needs_what_a_stranger_lacks_is_refused(copied):
    code = copied / "modeling_regionmed_clip.py"
    code.write_text(code.read_text().replace("import torch\n", "import torch\nimport regionmed_clip.processing\n", 1))
    with pytest.raises(ValueError, match="regionmed_clip"):
        rehearse(copied)


def test_what_is_no_interpreter_is_told(folder, tmp_path):
    with pytest.raises(ValueError, match="cannot be started"):
        rehearse(folder, str(tmp_path / "absent"))


def test_a_stranger_has_the_three_packages_and_what_they_require_alone():
    allowed = strangers_distributions()
    assert {"torch", "transformers", "pillow", "numpy", "huggingface-hub", "safetensors"} <= allowed
    assert not {"datasets", "accelerate", "peft", "pytest", "matplotlib"} & allowed
    hidden = names_to_hide()
    assert {"regionmed_clip", "modeling_regionmed_clip", "datasets", "accelerate", "pytest"} <= hidden
    assert not {"torch", "transformers", "PIL", "numpy", "json"} & hidden


def test_a_hidden_module_is_not_found_and_others_are():
    finder = Hidden(PathFinder, frozenset({"wave"}))
    assert finder.find_spec("wave") is None
    assert finder.find_spec("wave.part") is None
    assert PathFinder.find_spec("wave") is not None
    assert finder.find_spec("json").name == "json"
