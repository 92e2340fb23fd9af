"""Trainings one after another and side by side: their order, their cores, what one that fails does to the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from regionmed_clip.eval.studies import running, trainings
from regionmed_clip.eval.studies.running import run_all, split_cores
from regionmed_clip.eval.studies.trainings import run_group

NUM_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_two_cores = pytest.mark.skipif(NUM_CORES < 2, reason="two trainings at a time need two cores")


@dataclass
class Fake:
    """A training without a folder."""

    name: str
    is_finished: bool = False

    def check(self) -> None:
        if self.name == "foreign":
            raise ValueError("another one's folder")


def planned(*names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(training=Fake(name)) for name in names]


def measure(item) -> SimpleNamespace:
    return SimpleNamespace(name=item.training.name, in_short=lambda: "0.5")


def test_outcomes_come_in_the_order_of_the_plan_and_finished_trainings_are_not_run(monkeypatch):
    items, started = planned("a", "b", "c"), []
    items[1].training.is_finished = True
    outcomes = run_all(items, measure, title="study", start=lambda training: started.append(training.name))
    assert started == ["a", "c"]
    assert [outcome.name for outcome in outcomes] == ["a", "b", "c"]


def test_nothing_starts_where_one_folder_is_another_ones():
    started = []
    with pytest.raises(ValueError, match="another one's folder"):
        run_all(planned("a", "foreign"), measure, title="study", start=started.append)
    assert started == []


@needs_two_cores
def test_two_at_a_time_run_side_by_side_each_on_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(running.torch, "set_num_threads", lambda number: None)
    both_run, cores = threading.Barrier(2, timeout=20), {}

    def start(training) -> None:
        cores[training.name] = os.sched_getaffinity(0)
        both_run.wait()  # ends only when the other one runs at the same time

    before = os.sched_getaffinity(0)
    outcomes = run_all(planned("a", "b"), measure, title="study", start=start, jobs=2)
    assert [outcome.name for outcome in outcomes] == ["a", "b"]
    assert cores["a"].isdisjoint(cores["b"])
    assert len(cores["a"]) == len(cores["b"]) == NUM_CORES // 2
    assert os.sched_getaffinity(0) == before


@needs_two_cores
def test_where_one_fails_the_other_is_ended_and_no_further_one_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(running.torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(running, "POLL_S", 0.01)
    mark, statuses = tmp_path / "runs", {}
    program = f"import time; open({str(mark)!r}, 'w').close(); time.sleep(60)"

    def start(training) -> None:
        if training.name == "fails":
            deadline = time.monotonic() + 20
            while not mark.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise RuntimeError("training fails ended with status 1")
        statuses[training.name] = run_group([sys.executable, "-c", program], subprocess.DEVNULL)

    with pytest.raises(RuntimeError, match="training fails ended"):
        run_all(planned("long", "fails", "never"), measure, title="study", start=start, jobs=2)
    assert statuses == {"long": -signal.SIGTERM}
    assert not trainings._running


@pytest.mark.parametrize("jobs", [0, NUM_CORES + 1])
def test_more_jobs_than_cores_and_none_are_refused(jobs):
    with pytest.raises(ValueError, match=f"--jobs is {jobs}, and there are {NUM_CORES} cores"):
        split_cores(jobs)


def test_cores_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    assert split_cores(2) == [{0, 2}, {3, 5}]
    assert split_cores(1) == [{0, 2, 3, 5, 7}]
