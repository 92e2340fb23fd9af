"""A watched run end to end, in this process: its rows, its trackers, and a resume that repeats neither."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe
from regionmed_clip.train.frame_store import FrameStore, write_part
from regionmed_clip.train.metrics_log import TIMED_COLUMNS, read_metrics, timeless
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.run_identity import run_identity
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.trainer import Trainer
from regionmed_clip.train.training_step import TrainingStep

DATA = "phantom:num_train=12,num_test=4"
IMAGES = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=8)
STAGES = [
    {"name": "global", "steps": 2, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
    {
        "name": "joint",
        "steps": 4,
        "loss_weights": {"image_text": 1.0, "region_text": 1.0, "fused_image_text": 0.5, "proposals": 0.5},
        "loss_kinds": {"region_text": "sigmoid"},
        "learning_rates": {"vision": 1e-5},
        "batch_size_per_device": 2,
    },
]


def tiny_recipe() -> Recipe:
    settings = [f"data={DATA}", f"stages={json.dumps(STAGES)}", "image_size=24", "global_batch_size=4"]
    settings += ["model.logit_bias_init_value=-5", "checkpoint_every_steps=2", "name=tiny"]
    return load_recipe(RECIPES_FOLDER / "smoke.yaml", settings).settled()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FrameStore:
    folder = tmp_path_factory.mktemp("frames")
    write_part(folder / "part-00000-of-00001.arrow", DATA, "train", 0, 1, IMAGES.to_dict())
    return FrameStore(folder, 24)


def train(store: FrameStore, folder: Path, resume: bool = False) -> Trainer:
    recipe = tiny_recipe()
    processor = RegionMedClipProcessor(IMAGES, train_tokenizer(store.texts(), 300, 16))
    model, stores = build_model(recipe, processor), {stage.name: store for stage in recipe.stages}
    trainer = Trainer(recipe, model, processor, stores, folder, Accelerator(cpu=True), run_identity(recipe))
    trainer.train(resume)
    return trainer


@pytest.fixture(scope="module")
def watched(store, tmp_path_factory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("watched")
    train(store, folder)
    return folder


def steps_in_tensorboard(folder: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder / "trackers" / "regionmed-clip")).Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_row_has_what_its_stage_computes_and_no_more(watched):
    rows = read_metrics(watched / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    always = {"step", "stage", "loss", "lr", "grad_norm", "samples_per_s", "data_wait_share", "fusion_alpha"}
    always |= {"sample_ids_sha256"}  # the smoke recipe asks for it

    def of_term(name: str, *more: str) -> set[str]:
        return {f"{column}_{name}" for column in ("loss", "num_positives", "num_negatives", "num_masked", *more)}

    def of_groups(prefix: str, *groups: str) -> set[str]:
        return {f"{prefix}_{group}" for group in groups}

    scaled = ("logit_scale", "logit_bias")
    groups = ("vision", "text", "projections", "temperatures")
    assert set(rows[0]) == always | of_term("image_text", *scaled) | of_groups("grad_norm", *groups)
    joint = always | {"gate_mean"} | of_term("proposals") | of_groups("lr", "roi", *groups)
    joint |= of_groups("grad_norm", "roi", *groups)
    for name in ("image_text", "region_text", "fused_image_text"):
        joint |= of_term(name, *scaled)
    assert set(rows[-1]) == joint
    assert rows[-1]["lr_vision"] < rows[-1]["lr"] == rows[-1]["lr_text"]
    assert 0 < rows[-1]["gate_mean"] < 1
    assert all(0 <= row["data_wait_share"] <= 1 and row["samples_per_s"] > 0 for row in rows)


def test_the_loss_of_a_row_is_the_weighted_sum_of_its_terms(watched):
    for row in read_metrics(watched / "metrics.jsonl"):
        weights = next(stage["loss_weights"] for stage in STAGES if stage["name"] == row["stage"])
        total = sum(weight * row[f"loss_{name}"] for name, weight in weights.items())
        assert row["loss"] == pytest.approx(total, rel=1e-5)  # float32


def test_tensorboard_shows_every_number_of_every_row(watched):
    rows = read_metrics(watched / "metrics.jsonl")
    shown = steps_in_tensorboard(watched)
    numeric = {name for row in rows for name, value in row.items() if isinstance(value, (int, float))} - {"step"}
    assert set(shown) == {f"train/{name}" for name in numeric}
    for name in numeric:
        assert shown[f"train/{name}"] == [row["step"] for row in rows if row.get(name) is not None]


def test_a_run_that_dies_and_is_resumed_logs_every_step_once(store, watched, tmp_path, monkeypatch):
    run_step = TrainingStep.run

    def die_in_step_five(self, batches, step):
        if step == 5:
            raise MemoryError
        return run_step(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", die_in_step_five)
        with pytest.raises(MemoryError):
            train(store, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]  # checkpoint: 4
    train(store, tmp_path, resume=True)
    rows, expected = (timeless(read_metrics(folder / "metrics.jsonl")) for folder in (tmp_path, watched))
    assert rows == expected
    assert steps_in_tensorboard(tmp_path) == steps_in_tensorboard(watched)


def test_timeless_rows_leave_out_what_the_machines_speed_decides():
    row = {"step": 1, "loss": 0.5} | dict.fromkeys(TIMED_COLUMNS, 1.0)
    assert timeless([row]) == [{"step": 1, "loss": 0.5}]


def test_a_log_file_gets_lines_without_control_characters(store, tmp_path, capsys):
    train(store, tmp_path)  # pytest's standard error is no terminal
    told = capsys.readouterr().err
    assert re.search(r"^tiny: stage global, step 1 of 6, loss \d+\.\d{3}, .* left$", told, re.MULTILINE)
    assert re.search(r"^tiny: stage joint, step 6 of 6, .* 0 s left$", told, re.MULTILINE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", told)
