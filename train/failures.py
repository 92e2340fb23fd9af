"""A process that fails ends the whole run: its message is told once, the others leave at once, no exit code is 0.

Without that the others would wait in an exchange for the one that has gone: under gloo they fail with an error of the
network, under NCCL not before its time limit. So the first to fail leaves a mark in the store at which the processes
met, which a thread of every process watches.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .gather import STORE_ERRORS, connect_to_rendezvous

EXIT_CODE = 1
POLL_S = 0.5  # after which a process looks again whether another has failed
YIELD_S = 2.0  # for which the others let the main process speak first: what fails on all alike is told once
OWN_PACKAGES = ("regionmed_clip", "modeling_regionmed_clip", "__main__")

_is_ending = threading.Event()


@contextmanager
def failing_together() -> Iterator[None]:
    """Around a whole program: an exception inside ends this process, and all others of the run, with exit code 1.

    Of a mistake of the user, a ValueError that this project raises, the message is shown alone; of anything else the
    traceback too.
    """
    try:
        yield
    except Exception as error:
        rank, num_processes = place_in_run()
        text = describe_failure(error, rank, num_processes)
        if num_processes > 1:
            _end_all(text, rank)
        if not is_users_mistake(error):
            raise
        sys.stderr.write(text)
        raise SystemExit(EXIT_CODE) from None


def watch_others() -> None:
    """None; from now on this process ends soon after another has failed. To be called when the processes have met."""
    if place_in_run()[1] > 1:
        threading.Thread(target=_leave_when_another_fails, daemon=True, name="failures").start()


def place_in_run() -> tuple[int, int]:
    """(number of this process from 0, number of processes) as the launcher told them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_users_mistake(error: Exception) -> bool:
    """Whether it is a ValueError that this project raised itself."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, ValueError) and module.partition(".")[0] in OWN_PACKAGES


def describe_failure(error: Exception, rank: int, num_processes: int) -> str:
    """What is shown of an error: a user's mistake without traceback; of others than the main process, which it was."""
    is_mistake = is_users_mistake(error)
    text = f"{type(error).__name__}: {error}\n" if is_mistake else "".join(traceback.format_exception(error))
    if num_processes == 1 or (rank == 0 and is_mistake):
        return f"\n{text}"
    return f"\nprocess {rank + 1} of {num_processes} (rank {rank}) has failed, so all end: {text}"


def _end_all(text: str, rank: int) -> None:
    """Shows `text` unless another process has spoken, and leaves without another line of Python."""
    _is_ending.set()
    if _speaks_first(rank):
        sys.stderr.write(text)
        sys.stderr.flush()
        time.sleep(2 * POLL_S)  # the others leave by themselves, before a launcher tells them to
    os._exit(EXIT_CODE)


def _speaks_first(rank: int) -> bool:
    store = connect_to_rendezvous()
    if store is None:
        return True
    try:
        waits_until = time.monotonic() + (YIELD_S if rank else 0.0)
        while time.monotonic() < waits_until and not store.check([_failure_key()]):
            time.sleep(POLL_S / 5)
        return store.add(_failure_key(), 1) == 1
    except STORE_ERRORS:  # the process that kept the store has gone
        return True


def _leave_when_another_fails() -> None:
    store = connect_to_rendezvous()
    while store is not None and not _is_ending.wait(POLL_S):
        try:
            has_failed = store.check([_failure_key()])
        except STORE_ERRORS:  # the process that kept the store has gone: exchanges with it will fail
            return
        if has_failed and not _is_ending.is_set():
            sys.stdout.flush()
            os._exit(EXIT_CODE)


def _failure_key() -> str:
    """One for each start of the processes by an elastic launcher, which keeps its store over restarts."""
    return f"regionmed_clip/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
