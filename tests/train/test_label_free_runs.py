"""A label-free stage in whole runs: resumed in its middle with the same bits, and on a folder of images alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_corpora import write_jsonl_source

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe
from regionmed_clip.train.frame_store import StoredSample
from regionmed_clip.train.metrics_log import read_metrics
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.sample_order import SampleOrder
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.trainer import Trainer

SMOKE = RECIPES_FOLDER / "smoke.yaml"
STAGES = [
    {"name": "global", "steps": 2, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
    {"name": "label_free", "steps": 5, "loss_weights": {"region_distillation": 1.0}},
    {"name": "joint", "steps": 2, "loss_weights": {"image_text": 1.0, "region_distillation": 0.5}},
]
BOXES = "distillation={regions: 2, min_side: 0.3, max_side: 0.7}"
TIMEOUT_S = 240


class Noise:
    """Twelve images of noise; the second half without a text."""

    decodes_images = False

    def __len__(self) -> int:
        return 12

    def samples(self, indices) -> list[StoredSample]:
        return [self._sample(int(index)) for index in indices]

    def order(self, seed: int) -> SampleOrder:
        return SampleOrder(len(self), seed)

    def _sample(self, index: int) -> StoredSample:
        frame = np.random.default_rng(index).integers(0, 256, (3, 48, 48), dtype=np.uint8)
        key, no_boxes = (index if index < 6 else NO_TEXT_KEY), np.zeros((0, 4), dtype=np.float32)
        return StoredSample(str(index), frame, f"image {index}", key, no_boxes, (), (), (), "noise")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(
        SMOKE, [f"stages={json.dumps(STAGES)}", BOXES, "global_batch_size=4", "checkpoint_every_steps=2"]
    )


def trainer(recipe: Recipe, output_dir: Path) -> Trainer:
    image_processor = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=8)
    processor = RegionMedClipProcessor(image_processor, train_tokenizer(["image 1"], 300, 16))
    model = build_model(recipe, processor)
    return Trainer(recipe, model, processor, Noise(), output_dir, Accelerator(cpu=True), "run")


@pytest.mark.parametrize("last_step", [1, 3, 4, 6, 7])  # before, inside and at the end of the label-free stages
def test_a_label_free_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    recipe, tmp_path, monkeypatch, last_step
):
    undisturbed = trainer(recipe, tmp_path / "undisturbed")
    undisturbed.train(resume=False)
    assert not list((tmp_path / "undisturbed" / "checkpoints").glob("teacher_*"))  # both stages have ended

    stopped = trainer(recipe, tmp_path / "stopped")
    append = stopped._row

    def row_or_stop(step, *rest):
        if step > last_step:
            raise KeyboardInterrupt
        return append(step, *rest)

    monkeypatch.setattr(stopped, "_row", row_or_stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(resume=False)

    resumed = trainer(recipe, tmp_path / "stopped")
    resumed.train(resume=True)
    expected = undisturbed.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    rows = [read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("undisturbed", "stopped")]
    losses = [[row["loss"] for row in found] for found in rows]
    assert losses[0] == losses[1]


def test_the_teacher_is_the_model_that_the_stage_began_with(recipe, tmp_path, monkeypatch):
    run = trainer(recipe, tmp_path)
    seen = {}
    step = run._optimise

    def watch(wrapped, optimizer, stage, *rest):
        if run.distiller is not None and stage.name not in seen:
            seen[stage.name] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        given = step(wrapped, optimizer, stage, *rest)
        if run.distiller is not None:
            (file,) = (tmp_path / "checkpoints").glob("teacher_*.safetensors")
            for name, tensor in run.distiller.teacher.state_dict().items():
                assert torch.equal(tensor, seen[stage.name][name]), name
                assert torch.equal(load_file(file)[name], tensor), name
        return given

    monkeypatch.setattr(run, "_optimise", watch)
    run.train(resume=False)
    assert list(seen) == ["label_free", "joint"]
    assert run.distiller.teacher is not None
    moved = {name.split(".")[0] for name, tensor in seen["joint"].items() if not tensor.equal(seen["label_free"][name])}
    assert moved == {"vision_model", "roi_processor"}
    assert [row["num_positives_region_distillation"] for row in read_metrics(tmp_path / "metrics.jsonl")[2:]] == [8] * 7


def launch(repository: Path, recipe: Path, output_dir: Path, config: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"train/accelerate/{config}.yaml"]
    command = [*launcher, "train/pretrain.py", "--recipe", str(recipe), "--output_dir", str(output_dir)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_a_folder_of_images_alone_trains_and_is_evaluated_alike_on_one_and_two_processes(repository, tmp_path):
    source = write_jsonl_source(tmp_path / "images_alone", 24, boxes_xyxy=[], labels=[], qa=[], mask=None)
    values = yaml.safe_load(SMOKE.read_text()) | {"data": f"jsonl:{source}", "global_batch_size": 4, "name": "alone"}
    stage = {"name": "label_free", "steps": 3, "loss_weights": {"region_distillation": 1.0}}
    values |= {"stages": [stage], "distillation": {"regions": 2, "min_side": 0.25}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    losses = []
    for config in ("cpu", "cpu_2_processes"):
        finished = launch(repository, recipe, tmp_path / config, config)
        assert finished.returncode == 0, finished.stderr[-4000:]
        losses.append([row["loss"] for row in read_metrics(tmp_path / config / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)  # float32
    assert "n/a: no regions in the split" in finished.stdout
    results = json.loads((tmp_path / "cpu" / "results.json").read_text())
    assert results
    assert {result["value"] for result in results} == {None}
    assert (tmp_path / "cpu" / "final" / "model.safetensors").is_file()
    values["stages"] = [stage | {"loss_weights": {"image_text": 1.0}}]
    recipe.write_text(yaml.safe_dump(values))
    refused = launch(repository, recipe, tmp_path / "refused", "cpu")
    assert "has the term 'image_text', and no image of the training split" in refused.stderr
