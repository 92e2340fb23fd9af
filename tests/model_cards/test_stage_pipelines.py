"""The pipelines of a flat folder in a process without our packages: each task gives there what it gives here.

One process for both kinds of folders and one for a card: about 10 s each, most of it torch's import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from modeling_regionmed_clip.region_pipelines import RegionClassificationPipeline, RegionGroundingPipeline
from regionmed_clip.model_cards.golden_outputs import check_golden
from regionmed_clip.model_cards.stage import stage_flat_folder
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

BOXES, LABELS = [[3, 5, 20, 22], [10, 2, 39, 30]], ["nodule", "cyst", "chest radiograph"]
GROUNDING = {"source": "heat", "threshold": -1.0}
BARE = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import torch
from transformers import pipeline

torch.set_num_threads(1)
picture, out, *folders = sys.argv[1:]
told = []
for folder in folders:
    make = lambda task: pipeline(task, model=folder, trust_remote_code=True)
    told.append({
        "region-classification": make("region-classification")(picture, LABELS, boxes=BOXES),
        "region-grounding": make("region-grounding")(picture, LABELS, **GROUNDING),
        "zero-shot-image-classification": make("zero-shot-image-classification")(picture, candidate_labels=LABELS),
    })
told.append(make("visual-question-answering")(image=picture, question="a nodule?"))
json.dump(told, open(out, "w"))
"""
BARE_CARD = (
    BARE.partition("import torch")[0]
    + """
import os, torch

torch.set_num_threads(1)
os.chdir(sys.argv[1])
for program in open("README.md").read().split("```python")[1:]:
    exec(program.partition("```")[0])
"""
)


def _answering(model) -> RegionMedClipForVisualQuestionAnswering:
    """The encoder with a head that answers yes or no."""
    torch.manual_seed(1)
    config = type(model.config).from_dict(model.config.to_dict() | {"id2label": {0: "yes", 1: "no"}})
    config.label2id = {"yes": 0, "no": 1}
    answering = RegionMedClipForVisualQuestionAnswering(config).eval()
    answering.regionmed_clip.load_state_dict(model.state_dict())
    return answering


@pytest.fixture(scope="module")
def folders(model, processor, tmp_path_factory):
    """An encoder's folder, and one of the same encoder with a head that answers."""
    answering = _answering(model)
    run = tmp_path_factory.mktemp("run")
    return [
        stage_flat_folder(whole, processor, run / name, results=[])
        for name, whole in (("encoder", model), ("answering", answering))
    ]


def test_config_json_leads_to_every_pipeline_of_the_folder(folders):
    encoder, answering = (json.loads((folder / "config.json").read_text())["custom_pipelines"] for folder in folders)
    for task, name in (("classification", "Classification"), ("grounding", "Grounding")):
        impl = f"region_pipelines.Region{name}Pipeline"
        assert encoder[f"region-{task}"] == {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}
    assert set(answering) - set(encoder) == {"visual-question-answering"}
    assert all((folder / "pipeline_inputs.py").is_file() for folder in folders)


def test_every_task_works_in_a_process_without_our_packages(folders, model, processor, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(picture)
    settings = f"BOXES, LABELS, GROUNDING = {BOXES!r}, {LABELS!r}, {GROUNDING!r}\n"
    _run_bare(settings + BARE, picture, tmp_path / "out.json", *folders, home=tmp_path)
    *told, answers = json.loads((tmp_path / "out.json").read_text())
    own = {"model": model, "processor": processor, "device": -1}
    for found in told:
        expected = RegionClassificationPipeline(**own)(str(picture), LABELS, boxes=BOXES)
        assert found["region-classification"] == expected
        assert found["region-grounding"] == RegionGroundingPipeline(**own)(str(picture), LABELS, **GROUNDING)
        assert {one["label"] for one in found["zero-shot-image-classification"]} == set(LABELS)
    assert {one["answer"] for one in answers} == {"yes", "no"}


def _run_bare(program: str, *arguments, home) -> str:
    """What the program printed, in a process that has nothing but what `home` and the installed libraries hold."""
    script = home / "bare.py"
    script.write_text(program)
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**keep, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    run = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


def test_a_model_whose_processor_has_a_window_of_ct_is_staged_whole_and_its_card_runs(model, processor, tmp_path):
    windowed = RegionMedClipImageProcessor(size={"height": 32, "width": 32}, patch_size=8, window="lung")
    own = RegionMedClipProcessor(windowed, processor.tokenizer)
    folder = stage_flat_folder(_answering(model), own, tmp_path / "final", results=[])
    again = RegionMedClipProcessor.from_pretrained(folder, trust_remote_code=False)
    assert again.image_processor.window == "lung"
    card = (folder / "README.md").read_text()
    assert "It reads measured values through the window lung" in card
    assert card.count("window=None") == 1 + 5  # said once, and in every call with a picture but the zero-shot one
    printed = _run_bare(BARE_CARD, folder, home=tmp_path)
    assert printed.count("'score'") >= 5
    assert "greatest difference 0, of pixel values 0" in check_golden(folder)
