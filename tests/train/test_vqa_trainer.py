"""A run of fine-tuning on tiny questions: what it logs and keeps, when it ends, how it resumes."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from question_fixtures import VOCABULARY, question_set, save_start, tiny_processor, write_store

from regionmed_clip.train.checkpoint import best_state, list_checkpoints, load_model_weights
from regionmed_clip.train.interruption import Interrupted, Interruption
from regionmed_clip.train.metrics_log import timeless
from regionmed_clip.train.vqa_model import AnsweringModel, build_vqa_model
from regionmed_clip.train.vqa_recipe import load_vqa_recipe
from regionmed_clip.train.vqa_trainer import VqaTrainer
from regionmed_clip.train.vqa_validation import QuestionValidator, predict_answers

IDENTITY = {"run": "tiny"}
SETTINGS = (
    *("steps=6", "global_batch_size=3", "questions_per_image=2", "trackers=[]", "checkpoint_every_steps=2"),
    *("validation={every_steps: 2, patience: 2}", "warmup_steps=0", "learning_rate=1e-2", "model.answer_dropout=0.1"),
)


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    states = (AcceleratorState, PartialState, GradientState)
    for state in states:
        state._reset_state()
    yield Accelerator(cpu=True)
    for state in states:
        state._reset_state()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the start, the questions)."""
    folder = tmp_path_factory.mktemp("made")
    return save_start(folder / "final", tiny_processor()), question_set(write_store(folder / "store"), tiny_processor())


class Asked(Interruption):
    """Asks to end from the given step on."""

    def __init__(self, step: int):
        super().__init__()
        self.steps_left = step

    @property
    def is_asked(self) -> bool:
        self.steps_left -= 1
        return self.steps_left <= 0


def trainer_of(made, accelerator, folder, *overrides: str, interruption=None, validator=None) -> VqaTrainer:
    start, questions = made
    recipe = load_vqa_recipe("vqa_smoke", [f"start={start}", *SETTINGS, *overrides])
    model = build_vqa_model(recipe, VOCABULARY)
    validator = validator or QuestionValidator(recipe, questions, accelerator.device)
    return VqaTrainer(recipe, model, questions, folder, accelerator, IDENTITY, interruption, validator)


def rows(folder, name="metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


class Scripted:
    """A validator whose figures are given beforehand."""

    def __init__(self, *figures: float):
        self.figures = iter(figures)

    def measure(self, model, step):
        return [{"step": step, "metric": "vqa_accuracy", "value": next(self.figures), "n": 1}]


def test_a_run_learns_its_questions_and_keeps_the_best_weights(made, accelerator, tmp_path):
    trainer = trainer_of(made, accelerator, tmp_path, "steps=32", "validation.every_steps=8", "validation.patience=9")
    best = trainer.train(resume=False)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == list(range(1, 33))
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert all(row["num_questions"] == 5 for row in log)  # 2 + 1 + 2 of the three images
    figures = {row["step"]: row["value"] for row in rows(tmp_path, "validation") if row["metric"] == "vqa_accuracy"}
    assert list(figures) == [8, 16, 24, 32]
    assert best.value == max(figures.values())
    kept = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    load_model_weights(tmp_path / "checkpoints" / "best", trainer.model)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_run_ends_after_so_many_validations_without_a_new_best(made, accelerator, tmp_path):
    validator = Scripted(0.5, 0.7, 0.7, 0.6)  # after steps 1 to 4: equal is no better
    overrides = ("validation.every_steps=1", "validation.patience=2", "steps=9")
    best = trainer_of(made, accelerator, tmp_path, *overrides, validator=validator).train(resume=False)
    assert (best.value, best_state(tmp_path / "checkpoints").step) == (0.7, 2)
    assert len(rows(tmp_path)) == 4
    again = trainer_of(made, accelerator, tmp_path, *overrides, validator=Scripted())
    assert again.train(resume=True) == best  # it is over: no step, no validation
    assert len(rows(tmp_path)) == 4


def test_an_interrupted_run_goes_on_to_the_same_bits(made, accelerator, tmp_path):
    whole = trainer_of(made, accelerator, tmp_path / "whole")
    whole.train(resume=False)
    with pytest.raises(Interrupted):
        trainer_of(made, accelerator, tmp_path / "cut", interruption=Asked(3)).train(resume=False)
    assert list_checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "step_00000003"
    resumed = trainer_of(made, accelerator, tmp_path / "cut")
    resumed.train(resume=True)
    assert timeless(rows(tmp_path / "cut")) == timeless(rows(tmp_path / "whole"))
    assert rows(tmp_path / "cut", "validation") == rows(tmp_path / "whole", "validation")
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adapters_train_and_are_merged_into_the_weights_that_remain(made, accelerator, tmp_path):
    lora = ("modes={vision: lora, text: lora}", "learning_rates={vision: 0.05, text: 0.05}", "steps=2")
    trainer = trainer_of(made, accelerator, tmp_path, *lora)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train(resume=False)
    after = trainer.model.state_dict()
    assert set(after) == set(before)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("vision_model" in name and name.endswith("q_proj.weight") for name in moved)
    assert not any("vision_model" in name and "mlp" in name for name in moved)
    assert not any("proposal_head" in name or "temperatures" in name for name in moved)


def test_a_loss_that_is_not_finite_names_the_images(made, accelerator, tmp_path):
    trainer = trainer_of(made, accelerator, tmp_path)
    with torch.no_grad():
        trainer.model.answer_head.classifier.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"step 1: loss is nan; it must be finite\. Images of the global batch: \w,"):
        trainer.train(resume=False)


def test_another_identity_is_not_resumed(made, accelerator, tmp_path):
    trainer_of(made, accelerator, tmp_path, "steps=2").train(resume=False)
    other = trainer_of(made, accelerator, tmp_path, "steps=2")
    other.identity = {"run": "other"}
    with pytest.raises(ValueError, match=r'run: "tiny" in the checkpoint, "other" now'):
        other.train(resume=True)
    shutil.rmtree(tmp_path / "checkpoints")


def test_validation_weighs_the_modes_by_their_shares_and_counts_unknown_answers_as_wrong(made, accelerator):
    start, questions = made
    recipe = load_vqa_recipe("vqa_smoke", [f"start={start}", "regions={given: 3, proposed: 0, left_out: 1}"])
    answering = AnsweringModel(build_vqa_model(recipe, VOCABULARY), has_images=True).train()
    measured = QuestionValidator(recipe, questions, accelerator.device).measure(answering, step=7)
    assert answering.training
    answering.eval()
    right = {
        mode: predict_answers(answering, questions, mode, 4, accelerator.device) == questions.answers
        for mode in ("given", "off")
    }
    assert not any(of_mode[5] for of_mode in right.values())  # "behind" is in no vocabulary
    values = {row["metric"]: row["value"] for row in measured}
    assert values["vqa_accuracy"] == pytest.approx(0.75 * right["given"].mean() + 0.25 * right["off"].mean())
    assert values["vqa_marked_accuracy@given"] == pytest.approx(np.mean(right["given"][[0, 1, 5]]))
    assert values["vqa_unmarked_accuracy@off"] == pytest.approx(np.mean(right["off"][[2, 3, 4]]))
    assert {row["step"] for row in measured} == {7}
