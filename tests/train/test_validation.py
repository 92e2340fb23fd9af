"""Validation while a model trains: refused early where it cannot be, equal to the evaluation, unseen by training."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from regionmed_clip.eval.metric_titles import LOWER_IS_BETTER
from regionmed_clip.eval.tasks.runner import RunContext, run_tasks
from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe, plain_clip_recipe
from regionmed_clip.train.frame_store import FrameStore, write_part
from regionmed_clip.train.metrics_log import read_metrics, timeless
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.recipe_parts import EVALUATION_TASKS
from regionmed_clip.train.run_identity import run_identity
from regionmed_clip.train.stage_plan import plan_stages
from regionmed_clip.train.tokenizer import train_tokenizer
from regionmed_clip.train.trainer import Trainer
from regionmed_clip.train.validation import (
    METRICS_OF_TASK,
    Validator,
    figure_to_keep_by,
    is_due,
    keeping_modes,
    refuse_bad_validation,
)

DATA = "phantom:num_train=12,num_test=4,num_validation=30"
IMAGES = RegionMedClipImageProcessor(size={"height": 24, "width": 24}, patch_size=8)
STAGES = [
    {"name": "global", "steps": 2, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
    {"name": "joint", "steps": 3, "loss_weights": {"image_text": 1.0, "region_text": 1.0}, "ema_decay": 0.5},
]
LOGGED_FIGURES = {
    *("image_to_text_recall@1", "image_to_text_recall@5", "image_to_text_recall@10", "macro_auroc"),
    *("text_to_image_recall@1", "text_to_image_recall@5", "text_to_image_recall@10"),
    *("image_to_text_mrr", "text_to_image_mrr"),
}


def tiny_recipe(*overrides: str) -> Recipe:
    settings = [f"data={DATA}", f"stages={json.dumps(STAGES)}", "image_size=24", "global_batch_size=4", "trackers=[]"]
    settings += ["model.text_config.hidden_dropout_prob=0.2", "validation.tasks=[retrieval, zero_shot]"]
    return load_recipe(RECIPES_FOLDER / "smoke.yaml", [*settings, "log_sample_ids=false", *overrides]).settled()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FrameStore:
    folder = tmp_path_factory.mktemp("frames")
    write_part(folder / "part-00000-of-00001.arrow", DATA, "train", 0, 1, IMAGES.to_dict())
    return FrameStore(folder, 24)


@pytest.fixture(scope="module")
def processor(store) -> RegionMedClipProcessor:
    return RegionMedClipProcessor(IMAGES, train_tokenizer(store.texts(), 300, 16))


@pytest.fixture(scope="module")
def validator(processor, tmp_path_factory) -> Validator:
    recipe = tiny_recipe("validation.every_steps=2")
    return Validator(recipe, processor, tmp_path_factory.mktemp("frames"), torch.device("cpu"))


def train(recipe: Recipe, store, processor, folder: Path, validator: Validator | None = None) -> Trainer:
    model, stores = build_model(recipe, processor), {stage.name: store for stage in recipe.stages}
    accelerator, identity = Accelerator(cpu=True), run_identity(recipe)
    trainer = Trainer(recipe, model, processor, stores, folder, accelerator, identity, validator=validator)
    trainer.train(resume=False)
    return trainer


def test_a_run_with_validation_takes_the_very_steps_of_one_without(store, processor, validator, tmp_path):
    quiet = train(tiny_recipe(), store, processor, tmp_path / "quiet")
    overrides = ("validation.every_steps=2", "validation.keep_best=macro_auroc")
    watched = train(tiny_recipe(*overrides), store, processor, tmp_path / "watched", validator)
    one, two = quiet.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("quiet", "watched")]
    assert timeless(rows[0]) == timeless(rows[1])
    assert read_metrics(tmp_path / "quiet" / "validation.jsonl") == []
    found = read_metrics(tmp_path / "watched" / "validation.jsonl")
    assert {row["metric"] for row in found} == LOGGED_FIGURES
    assert sorted({(row["step"], row["stage"]) for row in found}) == [(2, "global"), (4, "joint"), (5, "joint")]
    assert all(row["low"] <= row["value"] <= row["high"] and row["n"] > 0 for row in found)
    aurocs = {row["step"]: row["value"] for row in found if row["metric"] == "macro_auroc"}
    best = json.loads((tmp_path / "watched" / "checkpoints" / "best" / "state.json").read_text())
    assert best["best"] == {"metric": "macro_auroc", "value": max(aurocs.values()), "split": "validation"}
    assert aurocs[best["step"]] == max(aurocs.values())


def test_the_last_validation_is_of_the_weights_that_the_run_ends_with(store, processor, validator, tmp_path):
    trainer = train(tiny_recipe("validation.every_steps=2"), store, processor, tmp_path, validator)
    rows = [row for row in read_metrics(tmp_path / "validation.jsonl") if row["step"] == 5]
    with torch.no_grad():  # the moving average has become the model's weights
        assert validator.measure(trainer.model, 5, "joint", ("retrieval", "zero_shot")) == rows


def test_figures_are_those_of_the_evaluation_on_the_same_split(processor, validator):
    model = build_model(tiny_recipe(), processor)
    examples = list(stream_examples(DATA, "validation", decode_images=False))
    fields = ("data_revision", "model_revision", "split_sha256", "hardware", "command")
    context = RunContext(split="validation", seed=0, **dict.fromkeys(fields, ""))
    tasks = ("retrieval", "zero_shot", "region", "proposals")
    options = {"tasks": tasks, "context": context, "model_name": "m", "progress": False}
    expected = run_tasks(model, processor, {"validation": examples}, **options).measured
    expected = {m.metric: (m.value, m.low, m.high, m.n) for m in expected if m.source is None and m.stratum is None}
    rows = validator.measure(model, 3, "joint", tasks)
    assert {row["metric"] for row in rows} >= LOGGED_FIGURES | {"region_to_text_accuracy", "proposal_recall"}
    for row in rows:
        assert (row["value"], row["low"], row["high"], row["n"]) == expected[row["metric"]], row["metric"]


def test_measuring_draws_no_random_number_and_leaves_every_mode_as_it_was(processor, validator):
    model = build_model(tiny_recipe(), processor).train()
    model.text_model.eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    validator.measure(model, 1, "joint", ("retrieval",))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_modes_come_back_after_an_error_too():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())

    def fail():
        with keeping_modes(module):
            module.eval()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in module] == [True, False]


def test_images_are_decoded_once(processor, validator, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(sys.modules["regionmed_clip.eval.tasks.prepared"], "shown_image", refuse)
    assert validator.measure(build_model(tiny_recipe(), processor), 1, "joint", ("retrieval", "proposals"))


def test_a_validation_is_due_every_so_many_steps_and_at_each_stages_end():
    recipe = tiny_recipe("validation.every_steps=2")
    first, second = plan_stages(recipe)
    assert [step for step in (1, 2) if is_due(recipe, first, step)] == [2]
    assert [step for step in (3, 4, 5) if is_due(recipe, second, step)] == [4, 5]
    assert not is_due(tiny_recipe(), second, 5)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["data=phantom:num_train=4"],
            ("on the split 'validation'", "it has phantom: train, test", "num_validation=N"),
        ),
        (["validation.split=dev"], ("on the split 'dev'", "validation.split=NAME", "validation.every_steps=0")),
        (["validation.keep_best=region_to_text_accuracy"], ("with the tasks retrieval, zero_shot", "macro_auroc")),
        (["validation.split=test", "validation.keep_best=macro_auroc"], ("on the split 'test'", "would flatter it")),
    ],
)
def test_a_validation_that_cannot_be_is_refused_before_any_work(overrides, parts):
    with pytest.raises(ValueError, match="recipe 'smoke': validation") as error:
        refuse_bad_validation(tiny_recipe("validation.every_steps=2", *overrides))
    for part in parts:
        assert part in str(error.value)


def test_a_validation_asks_for_its_split_only_where_it_is_on():
    without_split = "data=phantom:num_train=4"
    refuse_bad_validation(tiny_recipe(without_split))
    with pytest.raises(ValueError, match="validation"):
        refuse_bad_validation(tiny_recipe(without_split, "validation.every_steps=2"))


def test_metrics_to_keep_the_best_by_are_those_of_a_brief_look_and_higher_is_better(processor):
    examples = list(stream_examples(DATA, "validation", decode_images=False))
    fields = ("data_revision", "model_revision", "split_sha256", "hardware", "command")
    context = RunContext(split="validation", seed=0, **dict.fromkeys(fields, ""))
    options = {"tasks": EVALUATION_TASKS, "context": context, "model_name": "m", "progress": False, "is_brief": True}
    outcome = run_tasks(build_model(tiny_recipe(), processor), processor, {"validation": examples}, **options)
    given = {task: {m.metric for m in outcome.measured if m.task == task} for task in EVALUATION_TASKS}
    assert {task: set(metrics) for task, metrics in METRICS_OF_TASK.items()} == {
        task: metrics - LOWER_IS_BETTER for task, metrics in given.items()
    }


def test_the_figure_to_keep_by_is_found_or_none():
    rows = [{"metric": "macro_auroc", "value": 0.75}, {"metric": "image_to_text_recall@1", "value": 0.5}]
    assert figure_to_keep_by(tiny_recipe("validation={every_steps: 2, keep_best: macro_auroc}"), rows) == 0.75
    assert figure_to_keep_by(tiny_recipe(), rows) is None
    assert figure_to_keep_by(tiny_recipe("validation={every_steps: 2, keep_best: macro_auroc}"), []) is None


def test_the_baseline_is_measured_by_the_tasks_that_read_no_regions():
    settings = "validation={every_steps: 2, keep_best: macro_auroc, tasks: [region, zero_shot]}"
    validation = plain_clip_recipe(tiny_recipe(settings)).validation
    assert (validation.tasks, validation.every_steps, validation.keep_best) == (("zero_shot",), 2, None)
    only_regions = dataclasses.replace(validation, tasks=("region",)).of_plain_clip()
    assert only_regions.every_steps == 0
