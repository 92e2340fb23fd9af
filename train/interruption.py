"""An asked end that can be resumed: on SIGTERM or SIGUSR1 a checkpoint, and exit code 75.

Slurm sends them before a time limit. A process that trains finishes its step, together with the others, and saves; one
that prepares data or evaluates leaves at once. Each training process then has exit code 75 (EX_TEMPFAIL of sysexits.h).

What launchers make of it: torchrun, and `accelerate launch` of several processes, hand a SIGTERM on to their processes,
wait 30 s for them (TORCH_ELASTIC_SHUTDOWN_TIMEOUT=SECONDS for longer) before they kill, and end with code 1, not 75;
of a SIGUSR1 they die, as `accelerate launch` of one process does of either. So a training process takes the death of
its launcher for a SIGTERM. A job script sees by OUTPUT_DIR/results.json, which is written last, whether a run has
finished; or it starts `python train/pretrain.py` without a launcher and sees the 75.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import psutil

RESUMABLE_EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch", "torch.distributed.run")
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies


class Interrupted(SystemExit):
    """Training has ended early, with a checkpoint after `step`; unhandled, it leaves with `RESUMABLE_EXIT_CODE`.

    `signal_name` is empty where another process got the signal; `command` is the one that started this run.
    """

    def __init__(self, signal_name: str, step: int, command: Sequence[str] = ()):
        super().__init__(RESUMABLE_EXIT_CODE)
        self.signal_name = signal_name
        self.step = step
        self.command = tuple(command)


class Interruption:
    """Whether this process was asked to end; without `install` it never is.

    `command` is the one that started the process, or its launcher, as words.
    """

    def __init__(self):
        self.signal_name = ""  # of the first signal
        self.command = list(sys.orig_argv)
        self._is_deferring = False

    def install(self) -> Interruption:
        """Itself, from now on heeding the signals and its launcher's death."""
        for number in SIGNALS:
            signal.signal(number, self._heed)
        launcher = find_launcher()  # now: it may be dead when the run ends
        if launcher:
            self.command = launcher
            _signal_at_parents_death(signal.SIGTERM)
        return self

    @property
    def is_asked(self) -> bool:
        """Whether a signal came while it was deferred."""
        return bool(self.signal_name)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a signal is only noted; one that is unanswered at its end ends the process then.

        A block left by an exception, `Interrupted` above all, goes on deferring: nothing may disturb the way out.
        """
        self._is_deferring = True
        yield
        self._is_deferring = False
        if self.is_asked:
            _leave_at_once(self.signal_name)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferring:
            _leave_at_once(signal.Signals(number).name)
        self.signal_name = self.signal_name or signal.Signals(number).name


def _leave_at_once(signal_name: str) -> None:
    """Ends the process without another line of Python; what it was writing bears a temporary name, or is rewritten."""
    text = f"\n{signal_name}: leaving with exit code {RESUMABLE_EXIT_CODE}; the same command with --resume goes on.\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    os._exit(RESUMABLE_EXIT_CODE)


def find_launcher() -> list[str]:
    """The command line of the launcher that started this process, empty if a shell or a scheduler did."""
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent is not None else []
    is_launcher = any(Path(word).name in LAUNCHERS for word in command[:5])  # after python and its options
    return command if is_launcher else []


def resume_command(output_dir: Path, command: Sequence[str]) -> str:
    """The shell command that goes on with the run in `output_dir`: that which started it, in words, with --resume."""
    words = list(command)
    if not any(word == "--output_dir" or word.startswith("--output_dir=") for word in words):
        words += ["--output_dir", str(output_dir)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def shield_worker(worker_id: int = 0) -> None:
    """To be called first in a process that works for this one: it heeds no signal to end, and dies with its parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _signal_at_parents_death(signal.SIGKILL)


@cache
def kill_workers_at_exit() -> None:
    """None; at its exit this process kills its workers, whom `multiprocessing` would wait for: they heed no SIGTERM."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def _signal_at_parents_death(number: signal.Signals) -> None:
    """Does nothing where there is no prctl (macOS): there workers see their parent's death when they next look."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
