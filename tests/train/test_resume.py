"""A run asked to end in any step and resumed ends with the bits of an undisturbed one, dropout and average included."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_corpora import rows_of, write_corpus

from regionmed_clip.processing.corpus.sources.phantom import PhantomSource
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train import trainer as trainer_module
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.best_model import load_best
from regionmed_clip.train.checkpoint import (
    Best,
    CheckpointTensors,
    RunState,
    best_state,
    list_checkpoints,
    load_average,
    read_state,
    save_best,
)
from regionmed_clip.train.interruption import SIGNALS, Interrupted, Interruption
from regionmed_clip.train.metrics_log import read_metrics, timeless
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.recipe_parts import Augmentation
from regionmed_clip.train.run_identity import run_identity
from regionmed_clip.train.shard_store import ShardStore
from regionmed_clip.train.stages import learning_rate_at
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.trainer import Trainer
from regionmed_clip.train.training_step import TrainingStep

STAGES = [
    {"name": "global", "steps": 2, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
    {"name": "lora", "steps": 3, "loss_weights": {"region_text": 1.0}, "modes": {"vision": "lora", "text": "lora"}},
    {"name": "joint", "steps": 3, "loss_weights": {"image_text": 1.0, "region_text": 1.0}, "adapters": "merge"},
]
BATCH = 6
IMAGES = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ShardStore:
    """20 phantoms in shards of 7 and row groups of 3: the eight batches of 6 go through them more than twice."""
    rows = rows_of(PhantomSource(num_train=20, num_test=0).records("train"))
    corpus = write_corpus(tmp_path_factory.mktemp("resume") / "corpus", {"train": rows}, rows_of_shard=7)
    return ShardStore(corpus.folder, "train", IMAGES)


@pytest.fixture
def make_trainer(store, monkeypatch):
    """A function that builds a trainer anew, as a fresh process would, and heeds signals; it has dropout everywhere."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    overrides = [f"stages={json.dumps(STAGES)}", "image_size=24", f"global_batch_size={BATCH}", "ema_decay=0.5"]
    overrides += ["trackers=[]", "box_noise=0.05", "augmentation={min_side: 0.7, flip_x: 0.5}", "max_regions=2"]
    overrides += ["model.text_config.hidden_dropout_prob=0.2", "model.vision_config.attention_dropout=0.2"]
    recipe = load_recipe(RECIPES_FOLDER / "smoke.yaml", [*overrides, "checkpoint_every_steps=100"]).settled()

    def make(output_dir: Path, **changes) -> Trainer:
        changed = dataclasses.replace(recipe, **changes)
        processor = RegionMedClipProcessor(IMAGES, train_tokenizer(store.texts(), 300, 16))
        stores = {stage.name: store for stage in changed.stages}
        model, identity = build_model(changed, processor), run_identity(changed)
        accelerator, interruption = Accelerator(cpu=True), Interruption().install()
        return Trainer(changed, model, processor, stores, output_dir, accelerator, identity, interruption)

    yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send_in_step(monkeypatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Lets this process get the signal in the middle of the given step (0, 1, ...)."""
    run_step = TrainingStep.run

    def run(self, batches, current):
        if current == step:
            os.kill(os.getpid(), number)
        return run_step(self, batches, current)

    monkeypatch.setattr(TrainingStep, "run", run)


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def undisturbed(make_trainer, undisturbed_folder) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Final weights and log of a run that nobody disturbs; trained once, read from its last checkpoint after that."""
    trained = make_trainer(undisturbed_folder)
    trained.train(resume=True)
    return trained.model.state_dict(), timeless(read_metrics(undisturbed_folder / "metrics.jsonl"))


@pytest.mark.parametrize("step", [1, 3, 6, 7])  # the last of a stage, amid LoRA, amid the joint stage, the very last
def test_a_run_that_ends_in_a_step_and_goes_on_ends_with_the_same_bits(
    make_trainer, undisturbed, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as patch:
        send_in_step(patch, step)
        with pytest.raises(Interrupted) as interrupted:
            make_trainer(tmp_path).train(resume=False)
    assert interrupted.value.code == 75
    assert (interrupted.value.signal_name, interrupted.value.step) == ("SIGTERM", step + 1)
    state = read_state(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert (state.step, state.position, state.epoch) == (step + 1, BATCH * (step + 1), BATCH * (step + 1) // 20)
    resumed = make_trainer(tmp_path)
    resumed.train(resume=True)
    weights, rows = undisturbed
    assert resumed.model.state_dict().keys() == weights.keys()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert timeless(read_metrics(tmp_path / "metrics.jsonl")) == rows


def test_the_model_that_is_left_is_the_average_of_the_last_stage(make_trainer, undisturbed, undisturbed_folder):
    (newest,) = list_checkpoints(undisturbed_folder / "checkpoints")[-1:]
    average = load_average(newest)
    weights, _ = undisturbed
    assert average.keys() <= weights.keys()
    for name, tensor in average.items():
        assert torch.equal(weights[name], tensor), name


def test_a_second_signal_does_not_disturb_the_writing_of_the_checkpoint(make_trainer, tmp_path, monkeypatch):
    save_checkpoint = trainer_module.save_checkpoint

    def save(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return save_checkpoint(*arguments)

    send_in_step(monkeypatch, 0, signal.SIGUSR1)
    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    with pytest.raises(Interrupted) as interrupted:
        make_trainer(tmp_path).train(resume=False)
    assert interrupted.value.signal_name == "SIGUSR1"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_another_recipe_is_refused_and_another_number_of_kept_checkpoints_is_not(make_trainer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        send_in_step(patch, 1)
        with pytest.raises(Interrupted):
            make_trainer(tmp_path).train(resume=False)
    with pytest.raises(ValueError, match="\n  seed: 0 in the checkpoint, 1 now\n"):
        make_trainer(tmp_path, seed=1).train(resume=True)
    send_in_step(monkeypatch, 2)
    with pytest.raises(Interrupted) as interrupted:
        make_trainer(tmp_path, keep_checkpoints=5).train(resume=True)
    assert interrupted.value.step == 3


def test_a_resume_without_a_checkpoint_starts_anew(make_trainer, tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step_00000001.partial").mkdir(parents=True)
    send_in_step(monkeypatch, 0)
    with pytest.raises(Interrupted) as interrupted:
        make_trainer(tmp_path).train(resume=True)
    assert interrupted.value.step == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_what_a_stage_says_of_its_own_reaches_its_steps(make_trainer, store, tmp_path, monkeypatch):
    trainer, run_step, seen = make_trainer(tmp_path), TrainingStep.run, []
    first, _, last = trainer.recipe.stages
    own = {"global_batch_size": 4, "batch_size_per_device": 3, "max_regions": 1, "num_negatives": 2, "box_noise": 0.0}
    own |= {"augmentation": Augmentation(), "warmup_steps": 1, "learning_rates": {"text": 1e-5}, "weight_decay": 0.3}
    own |= {"ema_decay": 0.25, "adapters": "keep"}
    trainer = make_trainer(tmp_path, stages=(first, dataclasses.replace(last, **own)))

    def run(self, batches, step):
        groups = [
            {name: group[name] for name in ("name", "lr", "weight_decay")} for group in self.optimizer.param_groups
        ]
        seen.append((self.stage, batches, groups, trainer.average.decay))
        return run_step(self, batches, step)

    monkeypatch.setattr(TrainingStep, "run", run)
    trainer.train(resume=False)
    assert len(seen) == 5
    for place, (stage, batches, groups, decay) in enumerate(seen):
        is_last = place >= 2
        assert stage == trainer.recipe.stages[is_last]
        assert [len(batch["sample_id"]) for batch in batches] == ([3, 1] if is_last else [6])
        assert {batch["region_boxes"].shape[1] for batch in batches} == {1 if is_last else 2}
        assert [batch["negative_text_index"].shape[2] for batch in batches if is_last] == [2] * 2 * is_last
        assert ("negative_text_index" in batches[0]) == is_last
        assert decay == (0.25 if is_last else 0.5)
        for group in groups:
            assert group["lr"] == learning_rate_at(stage, place - 2 * is_last, group["name"])
        assert {group["weight_decay"] for group in groups} == {0.0, 0.3 if is_last else 0.05}
    shown = torch.cat([batch["pixel_values"] for _, batches, _, _ in seen for batch in batches])
    stored = [sample.frame for sample in store.samples(store.order(0).indices(0, len(shown)))]
    is_as_stored = (shown == IMAGES.normalize_frames(torch.from_numpy(np.stack(stored)))).flatten(1).all(dim=1)
    assert is_as_stored[12:].all()
    assert not is_as_stored[:12].all()


def test_processes_of_the_loader_decode_and_crop_and_do_nothing_else(make_trainer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(trainer_module, "load_batches", lambda *arguments: seen.append(arguments[-1]) or [])
    for decodes_images in (True, False):
        monkeypatch.setattr(ShardStore, "decodes_images", decodes_images)
        for augmentation in (Augmentation(min_side=0.7), Augmentation(flip_x=0.5)):
            trainer = make_trainer(tmp_path, preparation_workers=3)
            plan = trainer.plans[0]
            stage = dataclasses.replace(plan.stage, augmentation=augmentation)
            list(trainer._batches(dataclasses.replace(plan, stage=stage), 0))
    assert seen == [3, 3, 3, 0]


def test_the_best_checkpoint_is_kept_by_the_figure_whatever_comes_after_it(make_trainer, tmp_path, monkeypatch):
    figures = iter([0.3, 0.8, 0.5, None, 0.8, 0.7, 0.1, 0.2])
    kept_of_another = RunState(9, "joint", 0, 0, 0, {"seed": 1}, Best("macro_auroc", 0.9, "test"))
    save_best(tmp_path / "checkpoints", CheckpointTensors({}, {}), kept_of_another)
    trainer = make_trainer(tmp_path, checkpoint_every_steps=1, keep_checkpoints=1)
    kept = dataclasses.replace(trainer.recipe.validation, every_steps=1, keep_best="macro_auroc")
    trainer.recipe = dataclasses.replace(trainer.recipe, validation=kept)
    trainer.validator = WeightsTaker()
    monkeypatch.setattr(trainer_module, "figure_to_keep_by", lambda recipe, rows: next(figures))
    trainer.train(resume=False)
    state = best_state(tmp_path / "checkpoints")
    assert (state.step, state.best.metric, state.best.value) == (2, "macro_auroc", 0.8)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best", "step_00000008"}
    build = partial(build_model, trainer.recipe, trainer.processor)
    best = load_best(tmp_path, trainer.identity, trainer.plans, build)
    assert (best.step, best.reason) == (2, "macro_auroc 0.8000 on the split validation")
    weights, measured = best.model.state_dict(), trainer.validator.weights[2]  # the average
    assert weights.keys() == measured.keys()
    assert all(torch.equal(weights[name], measured[name]) for name in weights)
    assert load_best(tmp_path, {"seed": 1}, trainer.plans, build) is None


@pytest.mark.parametrize(("metric", "split"), [("macro_auroc", "test"), ("text_to_image_recall@1", "validation")])
def test_a_best_figure_of_another_kind_or_split_is_beaten_by_any(make_trainer, tmp_path, monkeypatch, metric, split):
    trainer = make_trainer(tmp_path, checkpoint_every_steps=1)
    save_best(
        tmp_path / "checkpoints",
        CheckpointTensors({}, {}),
        RunState(1, "joint", 0, 0, 0, trainer.identity, Best(metric, 0.9, split)),
    )
    kept = dataclasses.replace(trainer.recipe.validation, every_steps=1, keep_best="macro_auroc")
    trainer.recipe = dataclasses.replace(trainer.recipe, validation=kept)
    monkeypatch.setattr(trainer_module, "figure_to_keep_by", lambda recipe, rows: 0.1)
    trainer.train(resume=False)
    assert best_state(tmp_path / "checkpoints").best == Best("macro_auroc", 0.1, "validation")


class WeightsTaker:
    """A validator that gives no figure and keeps the weights that it was shown, by step."""

    def __init__(self):
        self.weights = {}

    def measure(self, model, step, stage, tasks):
        self.weights[step] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return []
