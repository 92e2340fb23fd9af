"""Signals that ask for an end: heeded at once, or noted while a block defers them; workers outlive only those.

The processes here run small scripts that import no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from regionmed_clip.train.collator import load_batches
from regionmed_clip.train.interruption import (
    RESUMABLE_EXIT_CODE,
    Interruption,
    find_launcher,
    resume_command,
    shield_worker,
)

WAIT_S = 60  # a loaded machine is slow
HEAD = """
import multiprocessing, os, pathlib, signal, sys, time
from regionmed_clip.train.interruption import *
from regionmed_clip.train.interruption import kill_workers_at_exit, shield_worker
def say(*words):
    print(*words, flush=True)
"""
WORKER = """
def work(name):
    shield_worker()
    pathlib.Path(name).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
worker = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],), daemon=True)
worker.start()
while not pathlib.Path(sys.argv[1]).exists() or not pathlib.Path(sys.argv[1]).read_text():
    time.sleep(0.01)
"""


@pytest.fixture
def start():
    """A function that starts a script and gives its process once it has said "ready"."""
    processes = []

    def start_script(script: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HEAD + script, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, start_new_session=True, **pipes))
        assert processes[-1].stdout.readline() == "ready\n", processes[-1].stderr.read()
        return processes[-1]

    yield start_script
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=WAIT_S)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.01)


def is_gone(process_id: int) -> bool:
    """Whether the process has ended, be it that nobody has asked for its exit code yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_that_does_not_train_leaves_at_once_with_the_resumable_code(start, number):
    process = start("Interruption().install(); say('ready'); time.sleep(60); say('never said')")
    process.send_signal(number)
    said, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == RESUMABLE_EXIT_CODE == os.EX_TEMPFAIL
    assert said == ""
    assert f"{number.name}: leaving with exit code 75; the same command with --resume goes on." in told


def test_a_block_that_defers_ends_whole_whatever_comes_and_the_process_after_it(start):
    process = start(
        "heard = []\n"
        "class Listening(Interruption):\n"
        "    def _heed(self, number, frame):\n"
        "        heard.append(number)\n"
        "        super()._heed(number, frame)\n"
        "asked = Listening().install()\n"
        "with asked.deferred():\n"
        "    say('ready')\n"
        "    while not asked.is_asked: time.sleep(0.01)\n"
        "    say('noted', asked.signal_name)\n"
        "    while signal.SIGTERM not in heard: time.sleep(0.01)\n"  # the second one
        "    say('whole', asked.signal_name)\n"
        "say('never said')"
    )
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "noted SIGUSR1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_S) == RESUMABLE_EXIT_CODE
    assert process.stdout.read() == "whole SIGUSR1\n"


def test_interrupted_leaves_with_the_resumable_code_and_no_signal_disturbs_its_way_out(start):
    process = start(
        "asked = Interruption().install()\n"
        "try:\n"
        "    with asked.deferred():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        raise Interrupted(asked.signal_name, 3)\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    say('ready')\n"
    )
    assert process.wait(timeout=WAIT_S) == RESUMABLE_EXIT_CODE
    assert process.stderr.read() == ""


def test_ctrl_c_stays_a_keyboard_interrupt(start):
    process = start(
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts with it ignored
        "asked = Interruption().install()\n"
        "try:\n"
        "    with asked.deferred():\n"
        "        say('ready')\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit('by the keyboard')\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=WAIT_S) == 1
    assert process.stderr.read() == "by the keyboard\n"


def test_a_process_whose_launcher_is_killed_takes_it_for_a_signal(start, tmp_path):
    child = HEAD + (
        "asked = Interruption().install()\n"
        "with asked.deferred():\n"
        "    say('ready')\n"
        "    while not asked.is_asked: time.sleep(0.01)\n"
        f"    pathlib.Path({str(tmp_path / 'asked')!r}).write_text(asked.signal_name)\n"
    )
    launcher = start("import subprocess; subprocess.run([sys.executable, '-c', sys.argv[2]])", "torchrun", child)
    os.kill(launcher.pid, signal.SIGKILL)
    asked = tmp_path / "asked"
    wait_until(lambda: asked.exists() and asked.read_text() != "")
    assert asked.read_text() == "SIGTERM"


def test_a_worker_heeds_no_signal_and_dies_with_its_parent(start, tmp_path):
    parent = start(WORKER + "say('ready'); time.sleep(60)", str(tmp_path / "pid"))
    worker = int((tmp_path / "pid").read_text())
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGUSR1)
    time.sleep(0.2)
    assert not is_gone(worker)
    os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(worker))


def test_a_process_that_fails_does_not_wait_for_its_shielded_workers(start, tmp_path):
    parent = start(WORKER + "kill_workers_at_exit(); say('ready'); raise ValueError('failed')", str(tmp_path / "pid"))
    assert parent.wait(timeout=WAIT_S) == 1
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_the_workers_of_the_loader_are_shielded():
    assert load_batches([], [], list, num_workers=1).worker_init_fn is shield_worker


def test_nothing_is_heeded_before_it_is_installed():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    interruption = Interruption()
    with interruption.deferred():
        assert not interruption.is_asked
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("accelerate launch train/pretrain.py seed=1", " --output_dir runs/a --resume"),
        ("python p.py --output_dir runs/a", " --resume"),
        ("python p.py --output_dir=runs/a --resume", ""),
    ],
)
def test_the_command_that_goes_on_is_the_one_that_started_it_with_folder_and_resume(command, added):
    assert resume_command(Path("runs/a"), command.split()) == command + added


def test_words_that_a_shell_would_split_are_quoted():
    assert resume_command(Path("a b"), ["python", "p.py"]) == "python p.py --output_dir 'a b' --resume"


def test_a_shell_or_pytest_is_no_launcher():
    assert find_launcher() == []
