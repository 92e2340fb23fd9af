"""Trackers: what TensorBoard's own reader finds, a resume that repeats nothing, and names refused before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from regionmed_clip.train import trackers as trackers_module
from regionmed_clip.train.arguments import Recipe
from regionmed_clip.train.trackers import Trackers, refuse_missing_trackers


@pytest.fixture
def accelerator():
    made = Accelerator(cpu=True)
    yield made
    assert made.trackers == []  # every test ends its trackers


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By name, the (step, value) pairs that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "regionmed-clip")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def log_steps(accelerator, folder: Path, steps: range) -> None:
    trackers = Trackers(accelerator, Recipe(name="tiny"), folder, first_step=steps.start - 1)
    for step in steps:
        trackers.log({"train/loss": 1.0 / step, "train/num": step, "train/stage": "global", "train/none": None}, step)
    trackers.finish()


def test_tensorboard_has_every_number_of_every_step(accelerator, tmp_path):
    log_steps(accelerator, tmp_path / "trackers", range(1, 4))
    found = scalars(tmp_path / "trackers")
    assert set(found) == {"train/loss", "train/num"}
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3, rel=1e-6))]  # float32
    assert found["train/num"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_resumed_run_shows_no_step_twice(accelerator, tmp_path):
    log_steps(accelerator, tmp_path / "trackers", range(1, 7))  # killed after step 6, its last checkpoint at 4
    log_steps(accelerator, tmp_path / "trackers", range(5, 9))
    assert [step for step, _ in scalars(tmp_path / "trackers")["train/loss"]] == list(range(1, 9))


def test_a_run_resumed_within_the_second_shows_no_step_twice(accelerator, tmp_path, monkeypatch):
    """Event files of one second are told apart by a counter, and "10" sorts before "9"."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    log_steps(accelerator, tmp_path / "trackers", range(1, 7))
    log_steps(accelerator, tmp_path / "trackers", range(5, 9))
    assert [step for step, _ in scalars(tmp_path / "trackers")["train/loss"]] == list(range(1, 9))


def test_a_run_killed_before_its_first_checkpoint_begins_anew_in_the_same_run(accelerator, tmp_path):
    log_steps(accelerator, tmp_path / "trackers", range(1, 4))
    log_steps(accelerator, tmp_path / "trackers", range(1, 3))
    assert [step for step, _ in scalars(tmp_path / "trackers")["train/loss"]] == [1, 2]


def test_what_was_flushed_is_on_disk_while_the_run_goes_on(accelerator, tmp_path):
    trackers = Trackers(accelerator, Recipe(name="tiny"), tmp_path / "trackers", first_step=0)
    trackers.log({"train/loss": 1.0}, 1)
    trackers.flush()
    assert scalars(tmp_path / "trackers")["train/loss"] == [(1, 1.0)]
    trackers.finish()


def test_the_recipe_is_told_once_as_text(accelerator, tmp_path):
    for first in (1, 3):
        log_steps(accelerator, tmp_path / "trackers", range(first, first + 2))
    events = EventAccumulator(str(tmp_path / "trackers" / "regionmed-clip")).Reload()
    (text,) = events.Tensors("recipe/text_summary")
    assert '"name": "tiny"' in text.tensor_proto.string_val[0].decode()


def test_without_trackers_nothing_is_written(accelerator, tmp_path):
    trackers = Trackers(accelerator, Recipe(trackers=()), tmp_path / "trackers", first_step=0)
    trackers.log({"train/loss": 1.0}, 1)
    trackers.flush()
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


class Recorder(GeneralTracker):
    """Stands for a tracker of the network: gives a new run an id, and goes on in a run whose id it is given."""

    name = "wandb"
    requires_logging_directory = False
    started: list[Recorder] = []

    def __init__(self, project: str, **settings):
        super().__init__()
        self.project, self.settings, self.rows, self.config, self.is_finished = project, settings, [], None, False

    def start(self):
        self.run = self
        self.id = self.settings.get("id", "run-7")
        Recorder.started.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step, **options):
        self.rows.append((step, values))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr(Recorder, "started", [])
    return Recorder


def test_another_tracker_goes_on_in_the_run_it_had(accelerator, recorder, tmp_path):
    recipe = dataclasses.replace(Recipe(name="tiny"), trackers=("wandb",))
    for first_step in (0, 4):
        trackers = Trackers(accelerator, recipe, tmp_path / "trackers", first_step)
        trackers.log({"train/loss": 0.5, "train/stage": "global"}, first_step + 1)
        trackers.finish()
    new, resumed = recorder.started
    assert new.settings == {"dir": str(tmp_path / "trackers")}
    assert resumed.settings == {"dir": str(tmp_path / "trackers"), "id": "run-7", "resume": "allow"}
    assert json.loads((tmp_path / "trackers" / "run_ids.json").read_text()) == {"wandb": "run-7"}
    assert (new.rows, resumed.rows) == ([(1, {"train/loss": 0.5})], [(5, {"train/loss": 0.5})])
    assert new.config["optimizer.betas.0"] == 0.9
    assert resumed.config is None
    assert new.is_finished
    assert resumed.is_finished


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("tensorbord",), ("'tensorbord'", "known are aim, clearml, comet_ml", "trackers=[]")),
        (("all",), ("'all'", "known are")),
        (("comet_ml",), ("'comet_ml'", "pip install comet-ml")),
        (("tensorboard", "tensorboard"), ("name each tracker once",)),
    ],
)
def test_an_unknown_or_missing_tracker_is_refused_with_the_way_out(monkeypatch, names, parts):
    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="recipe 'tiny': trackers") as error:
        refuse_missing_trackers(Recipe(name="tiny", trackers=names))
    for part in parts:
        assert part in str(error.value)


def test_the_default_tracker_is_installed_with_the_package_and_none_needs_nothing(monkeypatch):
    refuse_missing_trackers(Recipe())
    monkeypatch.setattr(trackers_module, "get_available_trackers", list)
    refuse_missing_trackers(Recipe(trackers=()))
    with pytest.raises(ValueError, match="tensorboard"):
        refuse_missing_trackers(Recipe())
