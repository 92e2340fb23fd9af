"""Checkpoints: whole or absent whichever write fails, the newest and the best kept, another recipe's refused."""

from __future__ import annotations

import json

import pytest
import torch

from regionmed_clip.train import checkpoint
from regionmed_clip.train.checkpoint import (
    Best,
    CheckpointTensors,
    RunState,
    best_state,
    find_checkpoint,
    list_checkpoints,
    load_average,
    load_model_weights,
    load_optimizer,
    read_state,
    save_best,
    save_checkpoint,
)
from regionmed_clip.train.metrics_log import MetricsLog, read_metrics

IDENTITY = {"seed": 0, "stages": [{"name": "joint", "learning_rate": 1e-3}]}


def state(step: int, best: Best | None = None) -> RunState:
    return RunState(step, "joint", 0, step * 16, 0, IDENTITY, best)


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, average=None) -> CheckpointTensors:
    return CheckpointTensors(model.state_dict(), optimizer.state_dict(), average)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_weights_optimiser_average_and_state_come_back_bit_equal(tmp_path, trained):
    model, optimizer = trained
    average = {"weight": torch.randn(2, 3)}
    path = save_checkpoint(tmp_path, tensors_of(model, optimizer, average), state(7), num_kept=2)
    fresh = torch.nn.Linear(3, 2)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    load_model_weights(path, fresh)
    fresh_optimizer.load_state_dict(load_optimizer(path))
    assert torch.equal(fresh.weight, model.weight)
    moments = fresh_optimizer.state_dict()["state"][0]
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(moments[name], value), name
    assert torch.equal(load_average(path)["weight"], average["weight"])
    assert read_state(path) == state(7)
    assert json.loads((path / "state.json").read_text())["versions"]["torch"] == torch.__version__


def test_only_the_newest_are_kept_and_half_written_ones_do_not_count(tmp_path, trained):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, tensors_of(*trained), state(step), num_kept=2)
    (tmp_path / "step_00000009.partial").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    save_checkpoint(tmp_path, tensors_of(*trained), state(4), num_kept=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000003", "step_00000004"}


@pytest.mark.parametrize("failing", ["save_file", "torch.save", "json.dumps"])
def test_a_checkpoint_whose_writing_fails_leaves_the_last_one_in_its_place(tmp_path, trained, monkeypatch, failing):
    save_checkpoint(tmp_path, tensors_of(*trained), state(1), num_kept=1)

    def fail(*arguments, **options):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"regionmed_clip.train.checkpoint.{failing}", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, tensors_of(*trained), state(2), num_kept=1)
    path, found = find_checkpoint(tmp_path, IDENTITY)
    assert found == state(1)
    assert torch.equal(load_optimizer(path)["state"][0]["exp_avg"], trained[1].state_dict()["state"][0]["exp_avg"])
    save_checkpoint(tmp_path, tensors_of(*trained), state(2), num_kept=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000002"}


def test_the_best_checkpoint_is_whole_and_outlives_the_newest(tmp_path, trained):
    assert best_state(tmp_path) is None
    model, _ = trained
    save_best(tmp_path, tensors_of(*trained), state(2, Best("macro_auroc", 0.75, "validation")))
    best_weight = model.weight.detach().clone()
    for step in (2, 3, 4):
        torch.nn.init.normal_(model.weight)
        save_checkpoint(tmp_path, tensors_of(*trained), state(step), num_kept=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000004"]
    assert best_state(tmp_path) == state(2, Best("macro_auroc", 0.75, "validation"))
    restored = torch.nn.Linear(3, 2)
    load_model_weights(tmp_path / "best", restored)
    assert torch.equal(restored.weight, best_weight)
    save_best(tmp_path, tensors_of(*trained), state(4, Best("macro_auroc", 0.8, "validation")))
    load_model_weights(tmp_path / "best", restored)
    assert torch.equal(restored.weight, model.weight)


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(tmp_path, trained):
    assert find_checkpoint(tmp_path, IDENTITY) is None
    save_checkpoint(tmp_path, tensors_of(*trained), state(1), num_kept=2)
    assert find_checkpoint(tmp_path, IDENTITY) == (tmp_path / "step_00000001", state(1))
    other = {"seed": 0, "stages": [{"name": "joint", "learning_rate": 5e-4}]}
    with pytest.raises(ValueError, match=r"stages\.joint\.learning_rate: 0\.001 in the checkpoint, 0\.0005 now"):
        find_checkpoint(tmp_path, other)


def test_a_checkpoint_of_another_version_of_the_program_is_told_apart(tmp_path, trained):
    path = save_checkpoint(tmp_path, tensors_of(*trained), state(1), num_kept=2)
    (path / "state.json").write_text(json.dumps({"step": 1, "stage": "joint", "recipe_fingerprint": "abc"}))
    with pytest.raises(ValueError, match=r"is not as this version of the program writes it \(.*recipe_fingerprint"):
        read_state(path)


def test_nothing_but_tensors_and_primitives_is_read(tmp_path, trained):
    path = save_checkpoint(tmp_path, tensors_of(*trained), state(1), num_kept=2)
    torch.save({"step": checkpoint.RunState}, path / "optimizer.pt")  # a class: not what weights_only lets through
    with pytest.raises(Exception, match="Weights only load failed"):
        load_optimizer(path)


def test_the_log_is_cut_back_to_the_checkpoint_and_loses_an_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 2} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    log = MetricsLog(path, last_step=2)
    log.append({"step": 3, "loss": 9.0})
    assert read_metrics(path) == [*rows[:2], {"step": 3, "loss": 9.0}]


def test_a_log_without_rows_leaves_no_file(tmp_path):
    log = MetricsLog(tmp_path / "validation.jsonl", last_step=0)
    log.append()
    assert list(tmp_path.iterdir()) == []
    log.append({"step": 1, "value": 0.5})
    assert read_metrics(log.path) == [{"step": 1, "value": 0.5}]
