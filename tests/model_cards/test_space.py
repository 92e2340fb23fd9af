"""The staged Space: all files of the demo, drawn examples, an index that is this model's own; whole or not at all."""

from __future__ import annotations

import json
import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from hub_clients import a_hub, talking_to
from PIL import Image
from safetensors.numpy import load_file

from regionmed_clip.model_cards import publish
from regionmed_clip.model_cards import space as space_module
from regionmed_clip.model_cards.space import DEMO_FOLDER, check_model_is_that, stage_space
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.corpus.hub_push import Upload, push
from regionmed_clip.processing.corpus.phantoms.study import draw_phantom

# huggingface_hub's own way of sending a large file without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def model_folder(model, processor, tmp_path_factory):
    """The tiny model staged as for the Hub."""
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


@pytest.fixture(scope="module")
def space(model_folder, tmp_path_factory):
    """A Space that brings its model along, with an index of four phantoms."""
    return stage_space(model_folder, tmp_path_factory.mktemp("out") / "space", num_index_images=4)


def test_it_holds_the_demo_the_model_and_nothing_that_runs_on_reading(space, model_folder):
    names = {path.name for path in space.iterdir()}
    shipped = {path.name for path in DEMO_FOLDER.iterdir() if path.is_file() and path.name != "__init__.py"}
    assert shipped <= names
    assert {path.name for path in (space / "model").iterdir()} == {path.name for path in model_folder.iterdir()}
    kinds = {path.suffix for path in space.rglob("*") if path.is_file()}
    assert kinds <= {".py", ".js", ".css", ".md", ".txt", ".png", ".webp", ".json", ".safetensors", ".jinja", ""}


def test_its_metadata_name_an_app_and_a_version_that_the_requirements_allow(space):
    head = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    assert len(head["short_description"]) <= 60  # the Hub's limit
    required = (space / "requirements.txt").read_text().splitlines()
    assert f"gradio>={head['sdk_version'].rsplit('.', 1)[0]},<7" in required


def test_with_an_id_it_names_the_model_and_leaves_its_weights_on_the_hub(model_folder, tmp_path):
    folder = stage_space(model_folder, tmp_path / "s", model_id="org/name", revision="v1", num_index_images=1)
    assert json.loads((folder / "space.json").read_text()) == {"model_id": "org/name", "revision": "v1"}
    assert not (folder / "model").exists()
    assert yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])["models"] == [
        "org/name"
    ]


def test_the_examples_are_the_first_with_two_findings_one_of_each_modality(space):
    examples = json.loads((space / "examples.json").read_text())["examples"]
    assert [example["title"] for example in examples] == ["Chest radiograph", "CT", "Fundus photograph", "Blood smear"]
    for example in examples:
        assert len({region["finding"] for region in example["regions"]}) >= 2
        assert {region["finding"] for region in example["regions"]} <= set(example["texts"])
        with Image.open(space / example["file"]) as picture:
            assert all(region["box"][2] <= picture.width for region in example["regions"])


def test_the_index_holds_what_the_model_says_of_the_regions(space, model, processor):
    tensors = load_file(space / "index.safetensors")
    texts = json.loads((space / "index.json").read_text())["texts"]
    studies = [draw_phantom(0, index, split="validation") for index in range(4)]
    assert texts == [region.description for study in studies for region in study.regions]
    first = next(study for study in studies if study.regions)
    inputs = processor(images=Image.open(BytesIO(first.image)), boxes=[[region.box for region in first.regions]])
    with torch.inference_mode():
        embeds = torch.nn.functional.normalize(model.get_region_features(**inputs).pooler_output[0], dim=-1)
    np.testing.assert_allclose(tensors["region_embeds"][: len(embeds)], embeds.numpy(), atol=1e-3)  # float16


def test_another_kind_of_model_and_senseless_options_are_refused(model_folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="a model of another kind"):
        stage_space(tmp_path, tmp_path / "s")
    for name, revision, reason in (("a], sdk: [docker", None, "no ORG/NAME"), ("a/b", "x/../y", "'x/../y' of a/b")):
        with pytest.raises(ValueError, match=reason):
            stage_space(model_folder, tmp_path / "s", model_id=name, revision=revision)
    with pytest.raises(ValueError, match="without a model_id"):
        stage_space(model_folder, tmp_path / "s", revision="v1")
    with pytest.raises(ValueError, match="at least 1"):
        stage_space(model_folder, tmp_path / "s", num_index_images=0)


def test_a_failure_leaves_the_older_space_untouched(model_folder, tmp_path, monkeypatch):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "old").write_text("old")

    def fail(*_):
        raise ValueError("no index")

    monkeypatch.setattr(space_module, "_write_index", fail)
    with pytest.raises(ValueError, match="no index"):
        stage_space(model_folder, tmp_path / "s", num_index_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["old"]


@pytest.fixture
def published(model_folder, repository):
    """The model as lab/a, private, tagged v1; this process talks to the tests' own Hub, where it is."""
    files = {path.relative_to(model_folder).as_posix(): path for path in model_folder.rglob("*") if path.is_file()}
    with a_hub("own", repository) as hub, talking_to(hub):
        push(Upload(repo_id="lab/a", repo_type="model", files=files, message="m", tag="v1"))
        yield hub


def test_a_model_on_the_hub_must_be_there_and_the_one_of_the_index(published, model_folder, tmp_path):
    told = check_model_is_that("lab/a", "v1", model_folder, is_public=False)
    assert told.startswith("the Hub has this very model as lab/a at v1; it is private: give the Space a secret HF_TO")
    for model_id, revision in (("lab/absent", None), ("lab/a", "v9")):
        with pytest.raises(ValueError, match=f"the Hub has no model {model_id} at"):
            check_model_is_that(model_id, revision, model_folder, is_public=False)
    with pytest.raises(ValueError, match="lab/a is private and the Space would be public"):
        check_model_is_that("lab/a", "v1", model_folder, is_public=True)
    other = shutil.copytree(model_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    check_model_is_that("lab/a", None, other, is_public=False)
    (other / "config.json").write_text(json.dumps({**config, "roi_mode": "maskpool"}))
    with pytest.raises(ValueError, match=r"is not the model lab/a at main: config\.json differ"):
        check_model_is_that("lab/a", None, other, is_public=False)
    with (other / "model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"is not the model lab/a at main: model\.safetensors differ"):
        check_model_is_that("lab/a", None, other, is_public=False)


def test_the_command_asks_for_the_model_before_it_stages_or_makes_anything(published, model_folder, capsys):
    arguments = ["--what", "space", "--model", str(model_folder), "--repo-id", "lab/demo", "--model-id", "lab/absent"]
    with pytest.raises(SystemExit) as stop:
        publish.main(arguments)
    assert stop.value.code == 2
    assert "the Hub has no model lab/absent at main" in capsys.readouterr().err
    assert set(published.own.hub.repositories) == {("model", "lab/a")}
