"""The flat folder of a model that answers questions: it answers alone, and serves as its encoder too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.eval.saved_models import answers_questions, load_model, load_question_model
from regionmed_clip.model_cards.golden_outputs import GOLDEN_FILE, read_golden
from regionmed_clip.model_cards.rehearsal import rehearse
from regionmed_clip.model_cards.stage import stage_flat_folder

ANSWERS = ("yes", "no", "left")
BOXES = [(3, 5, 20, 22), (10, 2, 39, 30)]
QUESTION = "a nodule?"

REHEARSAL = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import torch
from PIL import Image
from transformers import pipeline

folder, picture, out = sys.argv[1:]
torch.set_num_threads(1)
image = Image.open(picture)
answer = pipeline("visual-question-answering", model=folder, trust_remote_code=True)
told = answer(image=image, question=QUESTION, boxes=BOXES, top_k=2, return_attention=True)
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
labels = [one["label"] for one in classify(image, candidate_labels=["nodule", "cyst"])]
with torch.inference_mode():
    inputs = answer.processor(images=image, text=QUESTION, boxes=[BOXES])
    logits = answer.model(**inputs).logits
    image_embeds = classify.model(pixel_values=inputs["pixel_values"]).image_embeds
torch.save({"told": told, "labels": labels, "logits": logits, "image_embeds": image_embeds}, out)
"""


@pytest.fixture(scope="module")
def question_model(model):
    """The tiny encoder with a new head for three answers."""
    torch.manual_seed(1)
    config = type(model.config).from_dict(model.config.to_dict() | {"id2label": dict(enumerate(ANSWERS))})
    config.label2id = {answer: i for i, answer in enumerate(ANSWERS)}
    answering = RegionMedClipForVisualQuestionAnswering(config).eval()
    answering.regionmed_clip.load_state_dict(model.state_dict())
    return answering


@pytest.fixture(scope="module")
def folder(question_model, processor, tmp_path_factory):
    return stage_flat_folder(question_model, processor, tmp_path_factory.mktemp("run") / "final", results=[])


def test_every_auto_class_and_the_pipeline_find_their_code(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["RegionMedClipForVisualQuestionAnswering"]
    encoder = "modeling_regionmed_clip.RegionMedClipModel"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_regionmed_clip.RegionMedClipConfig",
        "AutoModel": encoder,
        "AutoModelForZeroShotImageClassification": encoder,
        "AutoModelForVisualQuestionAnswering": "modeling_regionmed_clip.RegionMedClipForVisualQuestionAnswering",
    }
    pipeline = config["custom_pipelines"]["visual-question-answering"]
    assert pipeline["impl"] == "question_answering_pipeline.VisualQuestionAnsweringPipeline"
    assert (folder / "question_answering_pipeline.py").is_file()
    assert config["id2label"] == {"0": "yes", "1": "no", "2": "left"}
    assert config["answer_num_layers"] == 2


def test_the_card_says_how_to_ask(folder):
    card = (folder / "README.md").read_text()
    assert "\npipeline_tag: visual-question-answering\n" in card
    assert "one of the 3 answers of `config.id2label`" in card
    assert 'pipeline("visual-question-answering", model=path, trust_remote_code=True)' in card


def test_an_encoder_says_nothing_of_answers(model, processor, tmp_path):
    folder = stage_flat_folder(model, processor, tmp_path / "final", results=[])
    config = json.loads((folder / "config.json").read_text())
    said = [name for name in config if name.startswith("answer_") or name == "id2label"]
    assert said == []
    assert set(config["custom_pipelines"]) == {"region-classification", "region-grounding"}
    assert "AutoModelForVisualQuestionAnswering" not in config["auto_map"]
    assert not (folder / "question_answering_pipeline.py").exists()
    assert "visual-question-answering" not in (folder / "README.md").read_text()


def test_staging_leaves_the_model_as_it_was(question_model, folder):
    assert getattr(question_model.config, "auto_map", None) is None
    assert not hasattr(question_model.config, "custom_pipelines")
    assert type(question_model)._auto_class is None


def test_it_loads_whole_and_as_its_encoder(question_model, model, folder):
    loaded, processor = load_question_model(folder)
    inputs = processor(images=np.zeros((20, 30), np.uint8), text=QUESTION, boxes=[[(3, 5, 20, 18)]])
    assert torch.equal(loaded(**inputs).logits, question_model(**inputs).logits)
    assert loaded.config.id2label == dict(enumerate(ANSWERS))
    encoder, _ = load_model(folder)
    assert type(encoder) is type(model)
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert answers_questions(folder)


def test_an_encoder_answers_no_questions(model, processor, tmp_path):
    folder = stage_flat_folder(model, processor, tmp_path / "final", results=[])
    assert not answers_questions(folder)
    with pytest.raises(ValueError, match=r"has no answer head; give the folder that train/finetune_vqa\.py left"):
        load_question_model(folder)


def test_what_was_staged_can_be_staged_again(folder, tmp_path):
    loaded, processor = load_question_model(folder)
    again = stage_flat_folder(loaded, processor, tmp_path / "final", results=[])
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, again))
    assert all(second[name] == first[name] for name in ("auto_map", "custom_pipelines", "id2label", "architectures"))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert loaded.config.custom_pipelines["visual-question-answering"]["type"] == "multimodal"


def test_the_folder_answers_bit_for_bit_in_a_process_without_our_packages(question_model, processor, folder, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(picture)
    script = tmp_path / "rehearsal.py"
    script.write_text(REHEARSAL.replace("QUESTION", repr(QUESTION)).replace("BOXES", repr(BOXES)))
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**keep, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), str(folder), str(picture), str(tmp_path / "out.pt")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.inference_mode():
        inputs = processor(images=Image.open(picture), text=QUESTION, boxes=[BOXES])
        output = question_model(**inputs)
        embeds = question_model.regionmed_clip(pixel_values=inputs["pixel_values"]).image_embeds
    assert torch.equal(found["logits"], output.logits)
    assert torch.equal(found["image_embeds"], embeds)
    assert sorted(found["labels"]) == ["cyst", "nodule"]
    scores, best = output.logits[0].sigmoid().topk(2)
    assert [answer["answer"] for answer in found["told"]["answers"]] == [ANSWERS[i] for i in best]
    assert [answer["score"] for answer in found["told"]["answers"]] == scores.tolist()
    assert [region["attention"] for region in found["told"]["regions"]] == output.region_attention[0].tolist()
    corners = [list(region["box"].values()) for region in found["told"]["regions"]]
    np.testing.assert_allclose(corners, BOXES, atol=1e-4)


def test_it_passes_the_rehearsal_with_its_answers_as_golden_outputs(folder):
    told = rehearse(folder).told
    assert read_golden(folder / GOLDEN_FILE).outputs["answer_logits"].shape == (1, 3)
    assert "12 outputs alike; greatest difference 0" in told["golden"]
    assert told["pipelines"][-1] == "visual-question-answering"
    assert told["handler"] is not None


def test_answers_under_other_names_do_not_pass_the_rehearsal(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "final")
    config = json.loads((copied / "config.json").read_text())
    names = [config["id2label"][str(i)] for i in (1, 0, 2)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"the answers of this model: \['.*\]; where the golden outputs were made: \['"
    ):
        rehearse(copied)
