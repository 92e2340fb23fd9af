"""Checkpoints: whole or absent, the newest kept, another recipe's refused; the log is cut back to them."""

import json

import pytest
import torch

from regionmed_clip.train.checkpoint import (
    RunState,
    list_checkpoints,
    load_model_weights,
    load_optimizer,
    read_state,
    save_checkpoint,
)
from regionmed_clip.train.metrics_log import MetricsLog, read_metrics


def state(step: int, fingerprint: str = "abc") -> RunState:
    return RunState(step, "joint", 0, step * 16, fingerprint)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_weights_and_optimiser_come_back_bit_equal(tmp_path, trained):
    model, optimizer = trained
    path = save_checkpoint(tmp_path, model, optimizer, state(7), num_kept=2)
    fresh = torch.nn.Linear(3, 2)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    load_model_weights(path, fresh)
    load_optimizer(path, fresh_optimizer)
    assert torch.equal(fresh.weight, model.weight)
    moments = fresh_optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])
    assert read_state(path, "abc") == state(7)


def test_only_the_newest_are_kept_and_half_written_ones_do_not_count(tmp_path, trained):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, *trained, state(step), num_kept=2)
    (tmp_path / "step_00000009.partial").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, trained):
    path = save_checkpoint(tmp_path, *trained, state(1), num_kept=2)
    with pytest.raises(ValueError, match=r"recipe and data abc, this run has xyz; resume with the recipe\.yaml"):
        read_state(path, "xyz")


def test_the_log_is_cut_back_to_the_checkpoint_and_loses_an_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": step / 2} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    log = MetricsLog(path, last_step=2)
    log.append({"step": 3, "loss": 9.0})
    assert read_metrics(path) == [*rows[:2], {"step": 3, "loss": 9.0}]
