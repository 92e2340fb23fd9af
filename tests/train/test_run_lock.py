"""One run at a time in an output folder; the lock of a dead run, however it died, is free."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from regionmed_clip.train import run_lock
from regionmed_clip.train.run_lock import LOCK_NAME, RunLock

HOLD = """
import os, pathlib, sys, time
from regionmed_clip.train.run_lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
if len(sys.argv) > 2 and os.fork() == 0:  # a worker that outlives the process that holds the lock
    time.sleep(60)
print("held", os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def start_holder():
    """A function that starts a process that holds the lock of a folder, and gives it once it does."""
    processes = []

    def start(folder, *arguments) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(folder), *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert processes[-1].stdout.readline().startswith("held")
        return processes[-1]

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)  # a worker may outlive the process
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_and_told_who_the_first_is(tmp_path, start_holder):
    holder = start_holder(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f'is in use by {{"pid": {holder.pid}, "host": ')):
        RunLock(tmp_path)
    with pytest.raises(ValueError, match=r"only one run may write there\. Wait for it, end it, or name another"):
        RunLock(tmp_path)


def test_the_lock_of_a_killed_run_is_free_even_while_a_worker_of_it_lives(tmp_path, start_holder):
    holder = start_holder(tmp_path, "with a worker")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    os.killpg(holder.pid, 0)  # raises if no worker lived
    lock = RunLock(tmp_path)
    assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_NAME).read_text()
    lock.release()


def test_a_released_folder_may_be_held_by_another_process(tmp_path, start_holder):
    RunLock(tmp_path).release()
    assert start_holder(tmp_path).poll() is None


def test_a_file_system_without_locks_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=r"has no locks \(Operation not supported\); nothing keeps a second run"):
        lock = RunLock(tmp_path)
    lock.release()


def test_any_other_failure_of_the_lock_is_an_error(tmp_path, monkeypatch):
    def fail(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_lock.fcntl, "lockf", fail)
    with pytest.raises(OSError, match="Input/output error"):
        RunLock(tmp_path)
