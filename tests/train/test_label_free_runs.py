"""A label-free stage in whole runs: resumed in its middle with the same bits, and on a folder of images alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_corpora import rows_of, write_corpus, write_jsonl_source

from modeling_regionmed_clip.loss_regionmed_clip import NO_TEXT_KEY
from regionmed_clip.processing.corpus.sources.jsonl import JsonlSource
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train import pretraining
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe, parse_command_line
from regionmed_clip.train.frame_store import FrameStore, StoredSample, write_part
from regionmed_clip.train.metrics_log import read_metrics
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.sample_order import SampleOrder
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.trainer import Trainer
from regionmed_clip.train.training_step import TrainingStep
from regionmed_clip.train.watching import RunWatcher

SMOKE = RECIPES_FOLDER / "smoke.yaml"
STAGES = [
    {"name": "global", "steps": 2, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
    {"name": "label_free", "steps": 5, "loss_weights": {"region_distillation": 1.0}},
    {"name": "joint", "steps": 2, "loss_weights": {"image_text": 1.0, "region_distillation": 0.5}},
]
BOXES = "distillation={regions: 2, min_side: 0.3, max_side: 0.7}"
CPU_2_PROCESSES = "train/accelerate/cpu_2_processes.yaml"


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
    recipe, noise = recipe.settled(), Noise()
    stores = {stage.name: noise for stage in recipe.stages}
    return Trainer(recipe, model, processor, stores, output_dir, Accelerator(cpu=True), {"seed": 0})


@pytest.mark.parametrize("last_step", [3, 5, 8])  # resumed where a stage begins, and in the middle of both
def test_a_label_free_run_stopped_anywhere_and_resumed_ends_with_the_same_bits(
    recipe, tmp_path, monkeypatch, last_step
):
    undisturbed = trainer(recipe, tmp_path / "undisturbed")
    undisturbed.train(resume=False)
    assert not list((tmp_path / "undisturbed" / "checkpoints").glob("teacher_*"))  # both stages have ended

    record = RunWatcher.record

    def record_or_stop(self, step, *rest):
        if step > last_step:
            raise KeyboardInterrupt
        return record(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunWatcher, "record", record_or_stop)
        with pytest.raises(KeyboardInterrupt):
            trainer(recipe, tmp_path / "stopped").train(resume=False)
    left_by_a_kill = tmp_path / "stopped" / "checkpoints" / "teacher_00000000.safetensors"
    left_by_a_kill.write_bytes(b"of a stage that has ended")

    resumed = trainer(recipe, tmp_path / "stopped")
    resumed.train(resume=True)
    assert not list((tmp_path / "stopped" / "checkpoints").glob("teacher_*"))
    expected = undisturbed.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    rows = [read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("undisturbed", "stopped")]
    losses = [[row["loss"] for row in found] for found in rows]
    assert losses[0] == losses[1]


def test_the_teacher_is_the_model_that_the_stage_began_with(recipe, tmp_path, monkeypatch):
    run = trainer(recipe, tmp_path)
    seen, distillers = {}, []
    run_step = TrainingStep.run

    def watch(self, *arguments):
        if self.distiller is not None and self.stage.name not in seen:
            seen[self.stage.name] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        given = run_step(self, *arguments)
        if self.distiller is not None:
            distillers.append(self.distiller)
            (file,) = (tmp_path / "checkpoints").glob("teacher_*.safetensors")
            for name, tensor in self.distiller.teacher.state_dict().items():
                assert torch.equal(tensor, seen[self.stage.name][name]), name
                assert torch.equal(load_file(file)[name], tensor), name
        return given

    monkeypatch.setattr(TrainingStep, "run", watch)
    run.train(resume=False)
    assert list(seen) == ["label_free", "joint"]
    assert len(distillers) == 7  # steps of both stages
    moved = {name.split(".")[0] for name, tensor in seen["joint"].items() if not tensor.equal(seen["label_free"][name])}
    assert moved == {"vision_model", "roi_processor"}
    assert [row["num_positives_region_distillation"] for row in read_metrics(tmp_path / "metrics.jsonl")[2:]] == [8] * 7


def images_alone(folder: Path, num_images: int) -> Path:
    """A jsonl source whose rows have neither a caption nor a region."""
    return write_jsonl_source(folder, num_images, boxes_xyxy=[], labels=[], qa=[], mask=None)


def losses_on_one_process(recipe: Recipe, source: Path, folder: Path) -> list[float]:
    """The losses of the same run on one process, in this one."""
    part = folder / "part-0.arrow"
    folder.mkdir()
    image_processor = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=8)
    write_part(part, f"jsonl:{source}", "train", 0, 1, image_processor.to_dict())
    store = FrameStore(folder, 48)
    settings = recipe.tokenizer
    tokenizer = train_tokenizer(store.texts(), settings.vocab_size, settings.max_length)
    processor = RegionMedClipProcessor(image_processor, tokenizer)
    model = build_model(recipe, processor)
    recipe = recipe.settled()
    stores = {stage.name: store for stage in recipe.stages}
    Trainer(recipe, model, processor, stores, folder, Accelerator(cpu=True), {"seed": 0}).train(resume=False)
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def test_a_folder_of_images_alone_trains_on_two_processes_as_on_one_and_is_evaluated(repository, tmp_path):
    source = images_alone(tmp_path / "images_alone", 24)
    stage = {"name": "label_free", "steps": 3, "loss_weights": {"region_distillation": 1.0}}
    overrides = [f"data=jsonl:{source}", "global_batch_size=4", f"stages=[{json.dumps(stage)}]"]
    overrides += ["distillation={regions: 2, min_side: 0.25}", "evaluation.tasks=[retrieval, zero_shot, region]"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CPU_2_PROCESSES]
    command = [*launch, "train/pretrain.py", "--recipe", str(SMOKE), "--output_dir", str(tmp_path / "run"), *overrides]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "n/a: no regions in the split" in finished.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {result["value"] for result in results} == {None}
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    alone = losses_on_one_process(load_recipe(SMOKE, overrides), source, tmp_path / "alone")
    assert losses == pytest.approx(alone, abs=1e-5)  # float32


def test_images_alone_are_refused_by_a_stage_that_needs_their_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "use_all_cores", lambda accelerator: None)  # this process is to keep its threads
    monkeypatch.setattr(pretraining, "RunLock", lambda folder: None)  # only a process that ends gives it back
    records = list(JsonlSource(images_alone(tmp_path / "source", 24)).records("train"))
    corpus = write_corpus(tmp_path / "corpus", {"train": rows_of(records), "test": rows_of(records[:4])})
    overrides = [f"data={corpus.folder}", "distillation.min_side=0.25", "precision=fp32"]
    command = parse_command_line(["--recipe", str(SMOKE), "--output_dir", str(tmp_path / "run"), *overrides])
    with pytest.raises(
        ValueError, match="stage 'global' has the term 'image_text', and no image of the training split"
    ):
        pretraining.pretrain(command)
    label_free = "stages=[{name: s, steps: 1, loss_weights: {region_distillation: 1.0}}]"
    overrides += [label_free, "baseline=true"]
    command = parse_command_line(["--recipe", str(SMOKE), "--output_dir", str(tmp_path / "run"), *overrides])
    with pytest.raises(ValueError, match="recipe 'smoke-plain-clip': stage 's' has the term 'image_text'"):
        pretraining.pretrain(command)
