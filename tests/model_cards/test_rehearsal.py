"""The rehearsal passes a whole folder or Space, and stops one that a stranger could not use.

It takes about a minute: each of a dozen rehearsals is a process of its own.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import sys
from importlib.machinery import PathFinder

import pytest
from safetensors.torch import load_file, save_file

from regionmed_clip.model_cards.bare_rehearsal import Hidden, names_to_hide, strangers_distributions
from regionmed_clip.model_cards.rehearsal import rehearse, rehearse_space
from regionmed_clip.model_cards.space import stage_space
from regionmed_clip.model_cards.stage import stage_flat_folder

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="pip install -e '.[demo]'")


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


def test_an_interpreter_is_found_from_where_the_command_was_given(folder, tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert "outputs alike" in rehearse(folder, "bin/python").line()
    with pytest.raises(ValueError, match=r"^bin/none cannot be started"):
        rehearse(folder, "bin/none")


def test_a_model_that_was_saved_with_a_window_is_asked_by_every_pipeline(model, processor, tmp_path):
    windowed = copy.deepcopy(processor)
    windowed.image_processor.window = "lung"
    folder = stage_flat_folder(model, windowed, tmp_path / "final", results=[])
    told = rehearse(folder).told
    assert told["pipelines"][0] == "zero-shot-image-classification"
    assert told["pipelines"][1:] == ["region-classification", "region-grounding"]
    assert len(told["handler"]) == 2
    for name in ("processor_config.json", "preprocessor_config.json"):
        text = (folder / name).read_text()
        assert '"lung"' in text
        (folder / name).write_text(text.replace('"lung"', '"bone"'))
    with pytest.raises(
        ValueError, match="the window of this model: 'bone'; where the golden outputs were made: 'lung'"
    ):
        rehearse(folder)


def test_an_image_processor_that_reads_otherwise_alone_is_refused(copied):
    path = copied / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0, 0, 0]}))
    with pytest.raises(ValueError, match=r"image_mean is \[0, 0, 0\] in preprocessor_config\.json and "):
        rehearse(copied)


@pytest.mark.parametrize(
    ("name", "line", "wrong", "reason"),
    [
        ("region_pipelines.py", '"logits_per_region": logits.float()', '"logits_per_region": logits.cumsum(-1)',
         "by the golden outputs"),
        ("region_pipelines.py", '{"score": score, "label": label, "box"', '{"score": score, "label": "a", "box"',
         "region-grounding answered"),
        ("handler.py", "logits_per_region.softmax", "logits_per_region.cumsum(-1).softmax",
         "handler.py classify_regions answered"),
        ("handler.py", '"label": label, "box"', '"label": "a", "box"', "handler.py ground answered"),
        ("handler.py", "output.text_embeds.tolist()", "(-output.text_embeds).tolist()",
         "handler.py embed_text answered"),
    ],
    ids=["classifying", "grounding", "handler classifying", "handler grounding", "handler embedding"],
)  # fmt: skip
def test_pipelines_and_a_handler_that_answer_nonsense_are_refused(name, line, wrong, reason, copied):
    code = copied / name
    assert code.read_text().count(line) == 1
    code.write_text(code.read_text().replace(line, wrong))
    with pytest.raises(ValueError, match=reason):
        rehearse(copied)


@pytest.fixture(scope="module")
def space(folder, tmp_path_factory):
    return stage_space(folder, tmp_path_factory.mktemp("out") / "space", num_index_images=2)


@needs_gradio
def test_a_whole_space_reads_finds_and_searches_and_stays_as_it_was(space):
    before = sorted(path.name for path in space.rglob("*"))
    assert re.fullmatch(r"rehearsed without our packages: the page reads '.+ \d+ %', .*searches", rehearse_space(space))
    assert sorted(path.name for path in space.rglob("*")) == before


@needs_gradio
@pytest.mark.parametrize(
    ("file", "line", "wrong", "reason"),
    [
        ("answers.py", "from PIL import Image\n", "from PIL import Image\nimport datasets\n", "datasets"),
        ("space.json", '"model_id": null', '"model_id": "lab/absent"', "couldn't connect"),
    ],
)
def test_a_space_that_would_not_start_is_refused(file, line, wrong, reason, space, tmp_path):
    broken = shutil.copytree(space, tmp_path / "broken")
    text = (broken / file).read_text()
    assert line in text
    (broken / file).write_text(text.replace(line, wrong, 1))
    with pytest.raises(ValueError, match=reason):
        rehearse_space(broken)


@needs_gradio
def test_a_space_without_a_copy_is_rehearsed_with_the_given_model(folder, copied, tmp_path):
    space = stage_space(folder, tmp_path / "space", model_id="lab/a", num_index_images=1)
    assert "searches" in rehearse_space(space, folder)
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "text_projection" in name)
    save_file({**weights, name: -weights[name]}, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the index of the Space is of another model"):
        rehearse_space(space, copied)


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
