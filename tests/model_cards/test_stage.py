"""The flat folder: complete, free of local paths, and equal to the model in a process without our packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from regionmed_clip.eval.results import read_results
from regionmed_clip.model_cards import stage
from regionmed_clip.model_cards.stage import stage_flat_folder

BOXES = [[(3, 5, 20, 22), (10, 2, 39, 30)]]
TEXTS = ["chest radiograph with a nodule", "a cyst"]

REHEARSAL = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

folder, picture, out = sys.argv[1:]
torch.set_num_threads(1)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(picture)
with torch.inference_mode():
    inputs = processor(images=image, text=TEXTS, boxes=BOXES, region_text=TEXTS)
    output = model(**inputs)
assert torch.equal(image_processor(images=image, return_tensors="pt")["pixel_values"], inputs["pixel_values"])
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
answer = classify(image, candidate_labels=["nodule", "cyst"], hypothesis_template="chest radiograph with a {}")
names = ("image_embeds", "text_embeds", "region_embeds", "fused_image_embeds", "logits_per_image", "logits_per_region")
torch.save({**{name: getattr(output, name) for name in names}, "model_type": config.model_type, "answer": answer}, out)
"""


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    """The tiny model staged without results."""
    return stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


def test_the_folder_is_flat_and_holds_no_pickle(folder):
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir() if not path.is_file()} <= {"samples"}
    expected = "config.json model.safetensors processor_config.json preprocessor_config.json tokenizer.json"
    code = "modeling_regionmed_clip.py configuration_regionmed_clip.py roi_processor.py region_boxes.py"
    beside = "README.md results.json card_facts.json golden.safetensors handler.py requirements.txt LICENSE"
    checks = "golden_outputs.py check_installation.py"
    assert set(f"{expected} {code} {beside} {checks}".split()) <= names
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".py", ".md", ".txt", ".png", ""}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert [path.name for path in folder.parent.iterdir()] == ["final"]  # no temporary folder stays


def test_every_auto_class_finds_its_code(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    model_class = "modeling_regionmed_clip.RegionMedClipModel"
    assert auto_map["AutoModel"] == auto_map["AutoModelForZeroShotImageClassification"] == model_class
    assert auto_map["AutoConfig"] == "configuration_regionmed_clip.RegionMedClipConfig"
    processor_map = json.loads((folder / "processor_config.json").read_text())["auto_map"]
    assert processor_map["AutoProcessor"] == "processing_regionmed_clip.RegionMedClipProcessor"
    image_map = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
    assert image_map["AutoImageProcessor"] == "image_processing_regionmed_clip.RegionMedClipImageProcessor"


def test_no_local_path_is_left(folder):
    for path in folder.glob("*.json"):
        assert str(folder.parent.parent) not in path.read_text()
        assert "name_or_path" not in path.read_text()


def test_staging_leaves_the_model_as_it_was(model, processor, folder):
    assert not hasattr(model.config, "auto_map") or model.config.auto_map is None
    assert type(model)._auto_class is None
    assert type(processor)._auto_class is None


def test_the_folder_answers_bit_for_bit_in_a_process_without_our_packages(model, processor, folder, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(picture)
    script = tmp_path / "rehearsal.py"
    script.write_text(REHEARSAL.replace("TEXTS", repr(TEXTS)).replace("BOXES", repr(BOXES)))
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**keep, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), str(folder), str(picture), str(tmp_path / "out.pt")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.inference_mode():
        inputs = processor(images=Image.open(picture), text=TEXTS, boxes=BOXES, region_text=TEXTS)
        expected = model(**inputs)
    for name in ("image_embeds", "text_embeds", "region_embeds", "fused_image_embeds", "logits_per_image"):
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found["logits_per_region"], expected.logits_per_region)
    assert found["model_type"] == "regionmed_clip"
    assert {answer["label"] for answer in found["answer"]} == {"nodule", "cyst"}
    assert sum(answer["score"] for answer in found["answer"]) == pytest.approx(1, abs=1e-5)


def test_results_and_card_ship_with_the_weights(model, processor, results, tmp_path):
    folder = stage_flat_folder(model, processor, tmp_path / "final", results=results)
    assert read_results(folder / "results.json") == results
    assert "0.812 [0.789, 0.834]" in (folder / "README.md").read_text()


def test_what_it_was_trained_on_travels_with_the_weights(model, processor, tmp_path):
    said = {"format": 1, "data": [], "start": None, "images": {"sha256": "0" * 64, "num_images": 3}}
    folder = stage_flat_folder(model, processor, tmp_path / "final", results=[], training_data=said)
    assert json.loads((folder / "training_data.json").read_text()) == said
    folder = stage_flat_folder(model, processor, tmp_path / "other", results=[])
    assert not (folder / "training_data.json").exists()
    told = {**said, "start": {"name": "/data/private/clip"}}
    with pytest.raises(ValueError, match="holds the local path"):
        stage_flat_folder(model, processor, tmp_path / "final", results=[], training_data=told)


def test_staging_again_replaces_the_folder_whole(model, processor, tmp_path):
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "stale.txt").write_text("old")
    stage_flat_folder(model, processor, folder, results=[])
    assert not (folder / "stale.txt").exists()
    assert (folder / "model.safetensors").exists()


def test_a_failure_leaves_the_old_folder_and_no_rubbish(model, processor, tmp_path, monkeypatch):
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "old.txt").write_text("old")

    def fail(*_):
        raise ValueError("the card is unsound")

    monkeypatch.setattr(stage, "check_card", fail)
    with pytest.raises(ValueError, match="the card is unsound"):
        stage_flat_folder(model, processor, folder, results=[])
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (folder / "old.txt").read_text() == "old"


@pytest.mark.parametrize(("name", "content"), [("weights.bin", b"x"), ("config.json", b'{"a": ["/home/me/data/x"]}')])
def test_pickles_and_local_paths_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"not published|local path"):
        stage.check_files(tmp_path)
