"""The loop of every study: all trainings, one after another or side by side, each evaluated when it has finished."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from regionmed_clip.eval.studies.trainings import Training, end_launched, launch

Start = Callable[[Training], None]
POLL_S = 0.2


def run_all(
    planned: Sequence[Any],
    evaluate: Callable[[Any], Any],
    *,
    title: str,
    start: Start | None = None,
    jobs: int = 1,
) -> list[Any]:
    """What `evaluate` gives for every planned run, in their order; a finished training is not run again.

    Args:
        planned: runs with a `training` each; all are checked before the first one starts.
        evaluate: run -> its outcomes, which have `in_short()`; called in this thread.
        title: what the progress bar says.
        start: runs one training to its end; None: `launch`.
        jobs: trainings that run at a time; several are each pinned to their share of the cores and keep quiet.
    """
    start = start or partial(launch, is_quiet=jobs > 1)
    for item in planned:
        item.training.check()
    outcomes: dict[str, Any] = {}
    with tqdm(total=len(planned), desc=title, unit="run") as bar:

        def finish(item: Any) -> None:
            outcomes[item.training.name] = found = evaluate(item)
            bar.write(f"{item.training.name}: {found.in_short()}", file=sys.stderr)
            bar.update()

        if jobs == 1:
            for item in planned:
                bar.set_postfix_str(item.training.name)
                _run(item, start)
                finish(item)
        else:
            torch.set_num_threads(len(split_cores(jobs)[0]))  # for `evaluate`: the cores are taken
            _run_side_by_side(planned, start, finish, jobs)
    return [outcomes[item.training.name] for item in planned]


def split_cores(jobs: int) -> list[set[int]]:
    """The cores of each of `jobs` trainings that run side by side: equal shares of those that we may use.

    Raises:
        ValueError: there are fewer cores than jobs, or a system that pins nothing to a core.
    """
    if jobs == 1 and not hasattr(os, "sched_getaffinity"):
        return [set(range(os.cpu_count() or 1))]
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--jobs {jobs}: this system pins no process to a core; leave --jobs out.")
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // jobs if jobs >= 1 else 0
    if not share:
        raise ValueError(f"--jobs is {jobs}, and there are {len(cores)} cores; it must be from 1 to {len(cores)}.")
    return [set(cores[place * share : (place + 1) * share]) for place in range(jobs)]


def _run_side_by_side(planned: Sequence[Any], start: Start, finish: Callable[[Any], None], jobs: int) -> None:
    """None; `finish` is called in this thread, in the order in which the runs end. What fails here ends all."""
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for share in split_cores(jobs):
        shares.put(share)
    is_ending = threading.Event()

    def work(item: Any) -> bool:
        if is_ending.is_set():
            return False
        try:
            _run(item, start)
        except BaseException:
            is_ending.set()  # before this thread takes the next run
            raise
        return True

    with ThreadPoolExecutor(jobs, initializer=_pin, initargs=(shares,)) as pool:
        futures: dict[Future, Any] = {pool.submit(work, item): item for item in planned}
        try:
            for future in as_completed(futures):
                if future.result():
                    finish(futures[future])
        except BaseException:
            is_ending.set()
            while not all(future.done() for future in futures):
                end_launched()  # again and again: one may have been on its way
                time.sleep(POLL_S)
            raise


def _run(item: Any, start: Start) -> None:
    """None; the run's training is finished then."""
    if not item.training.is_finished:
        start(item.training)


def _pin(shares: queue.SimpleQueue[set[int]]) -> None:
    """None; this thread, and every process that it starts, runs on one share of the cores alone."""
    os.sched_setaffinity(0, shares.get())
