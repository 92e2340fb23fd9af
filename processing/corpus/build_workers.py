"""The processes of a build: each opens the sources once, then scans chunks and writes shards."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from regionmed_clip.processing.corpus.scan import Chunk, rows_path, scan_chunk
from regionmed_clip.processing.corpus.shard_writer import Shard, write_shard
from regionmed_clip.processing.corpus.sources import Source
from regionmed_clip.processing.corpus.sources.registry import SourceSpec, open_sources_of
from regionmed_clip.processing.corpus.staging import StagedRows

STARTS_NAME = "starts.npy"  # position of the first image of every chunk, and the number of images


@dataclass(frozen=True, slots=True)
class Task:
    """What every process of a build must know."""

    specs: tuple[SourceSpec, ...]
    work: Path
    out: Path
    seed: int
    schema: pa.Schema


class Workers:
    """Runs jobs in processes of their own, or in this one where one process is asked for; a context manager.

    Leaving it by an error cancels what has not begun. The processes end when this one does, however that ends.
    """

    def __init__(self, task: Task, num_processes: int) -> None:
        self._task = task
        self._pool = None
        if num_processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_processes, context, _start_worker, (task,))
        else:
            _open_task(task)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, job: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """The results of `job` for every argument, as they come."""
        if self._pool is None:
            yield from map(job, arguments)
            return
        futures = [self._pool.submit(job, argument) for argument in arguments]
        for future in as_completed(futures):
            yield future.result()


def open_all(specs: Sequence[SourceSpec], index_folder: Path | None) -> list[tuple[SourceSpec, Source]]:
    """Every source with its spec; ValueError where there is none or two have one name."""
    opened = [
        (spec, source)
        for number, spec in enumerate(specs)
        for source in open_sources_of(spec, index_folder=None if index_folder is None else index_folder / str(number))
    ]
    names = [source.name for _, source in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(
            f"the build has the sources {', '.join(names) or 'none'}; it needs at least one, each name once. "
            + (f"Rename or leave out one {twice[0]!r}." if twice else "Add --source NAME --root FOLDER.")
        )
    return opened


def staged_rows(work: Path) -> StagedRows:
    """The rows that the scan has staged in `work`."""
    starts = np.load(work / STARTS_NAME, allow_pickle=False)
    return StagedRows([rows_path(work, number) for number in range(len(starts) - 1)], starts)


def scan_job(chunk: Chunk) -> tuple[int, int]:
    """(number of items, number of the chunk) after scanning it."""
    task, sources = _opened_task()
    return scan_chunk(task.work, sources[chunk.source], chunk, task.seed, task.schema), chunk.number


def shard_job(shard: Shard) -> tuple[int, dict[str, Any]]:
    """(number of images, entry of the manifest) after writing the shard."""
    task, _ = _opened_task()
    return shard.stop - shard.start, write_shard(task.work, task.out, shard, staged_rows(task.work), task.schema)


_opened: tuple[Task, list[Source]] | None = None  # of this process


def _opened_task() -> tuple[Task, list[Source]]:
    assert _opened is not None, "a worker opens its task before any job"
    return _opened


def _open_task(task: Task) -> None:
    """Nothing; opens the sources of the task for the jobs of this process."""
    global _opened
    _opened = task, [source for _, source in open_all(task.specs, task.work / "index")]


def _start_worker(task: Task) -> None:
    """Nothing; what a process of the pool does first."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _open_task(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes of the pool call this"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
