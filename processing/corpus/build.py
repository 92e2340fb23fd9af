"""Building a corpus: sources -> globally shuffled Parquet shards, a manifest, a quarantine file and a duplicates file.

Three steps, each restartable, all files written whole or not at all: scan the items in chunks (parallel), decide on
duplicates and splits over an index on disk, write the shards (parallel). Work files lie in OUT/.work until the manifest
is written. The bytes of the corpus depend on sources, options and tool versions alone, never on the number of processes
or on interruptions.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from regionmed_clip.processing.corpus.built_corpus import (
    CARD_NAME,
    DATA_FOLDER,
    DUPLICATES_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    BuiltCorpus,
    is_built_corpus,
)
from regionmed_clip.processing.corpus.dataset_card import render_card
from regionmed_clip.processing.corpus.duplicates import Decisions, Duplicate, decide
from regionmed_clip.processing.corpus.manifest import make_manifest, tool_version, write_whole
from regionmed_clip.processing.corpus.records import SPLITS
from regionmed_clip.processing.corpus.scan import (
    INDEX_TYPE,
    Chunk,
    bad_path,
    chunks_of,
    index_path,
    scan_chunk,
    write_lines,
)
from regionmed_clip.processing.corpus.shard_writer import (
    Shard,
    order_path,
    plan_shards,
    starts_path,
    take_rows,
    write_shard,
)
from regionmed_clip.processing.corpus.sources import Source
from regionmed_clip.processing.corpus.sources.registry import SourceSpec, open_sources_of

WORK_FOLDER = ".work"
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What decides the bytes of a corpus beside its sources."""

    name: str = "medregion"
    seed: int = 0
    shard_megabytes: int = 128
    drop_near: bool = False

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_." for letter in self.name):
            raise ValueError(f"name is {self.name!r}; it must be letters, digits, '-', '_' and '.'. Choose another.")
        if self.seed < 0 or self.shard_megabytes < 1:
            raise ValueError(
                f"seed is {self.seed} and shard_megabytes {self.shard_megabytes}; the seed must be at least 0 and a "
                "shard at least 1 MB. The defaults are 0 and 128."
            )


def build_corpus(
    specs: Sequence[SourceSpec],
    out: str | Path,
    *,
    name: str = "medregion",
    seed: int = 0,
    num_processes: int | None = None,
    shard_megabytes: int = 128,
    strict: bool = False,
    drop_near: bool = False,
    show_progress: bool = True,
) -> BuiltCorpus:
    """The corpus of the sources, built in the folder `out`; an interrupted build goes on where it was.

    Args:
        specs: the sources in their order; of exact duplicates the first is kept.
        out: a new or empty folder, or one that holds the same build, finished or not.
        name: of the corpus, for its revision and its card.
        seed: of the shuffle and of the texts by template.
        num_processes: parallel processes, default one for each core; it does not change the result.
        shard_megabytes: about how large a shard is.
        strict: stop at the first bad item instead of writing it to the quarantine file.
        drop_near: drop near duplicates instead of keeping them in one split.
        show_progress: progress bars on stderr.

    Raises:
        ValueError: no source or two of one name; `out` holds something else; with `strict`, a bad item.
    """
    options = BuildOptions(name, seed, shard_megabytes, drop_near)
    out = Path(out)
    work = out / WORK_FOLDER
    if is_built_corpus(out):
        return _finished(out, specs, options)
    if out.exists() and any(out.iterdir()) and not work.is_dir():
        raise ValueError(f"{out} holds other files; a corpus is built in a new or empty folder. Name another.")
    work.mkdir(parents=True, exist_ok=True)
    build = _Build(specs, options, out, work, num_processes or os.cpu_count() or 1, strict, show_progress)
    return build.run()


class _Build:
    """One build; `run` goes through its steps."""

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        options: BuildOptions,
        out: Path,
        work: Path,
        num_processes: int,
        strict: bool,
        show_progress: bool,
    ) -> None:
        from regionmed_clip.processing.corpus.medregion import corpus_schema  # brings `datasets`: not for workers

        self.specs, self.options, self.out, self.work = tuple(specs), options, out, work
        self.num_processes, self.strict, self.show_progress = num_processes, strict, show_progress
        self.schema: pa.Schema = corpus_schema()
        for folder in (work / "scan", work / "entries", out / DATA_FOLDER):
            folder.mkdir(exist_ok=True)
        self.opened = open_all(self.specs, work / "index")
        self.sources = [source for _, source in self.opened]
        self._settle_plan()

    def run(self) -> BuiltCorpus:
        """The finished corpus."""
        chunks = list(chunks_of(self.sources))
        initial = (self.specs, self.work, self.schema)
        with ProcessPoolExecutor(
            self.num_processes, multiprocessing.get_context("spawn"), _start_worker, initial
        ) as pool:
            try:
                num_bad = self._scan(pool, chunks)
                index, starts = self._join_index(chunks)
                decisions = decide(index, drop_near=self.options.drop_near)
                self._write_duplicates(decisions.duplicates, starts)
                entries = self._write_shards(pool, index, decisions)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        manifest = make_manifest(asdict(self.options), self.opened, index, decisions, entries, num_bad)
        write_whole(self.out / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", self.work)
        return _tidy(self.out)

    def _settle_plan(self) -> None:
        """Nothing; writes down what is being built, or refuses to go on with something else."""
        sources = [f"{source.name}@{source.revision}" for source in self.sources]
        plan = {"tool": tool_version(), "options": asdict(self.options), "sources": sources}
        path = self.work / "plan.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in plan if found.get(key) != plan[key])
            if changed:
                raise ValueError(
                    f"{self.out} holds an interrupted build with other {', '.join(changed)}; a build goes on with the "
                    "same sources and options. Repeat its command, or name another folder."
                )
            return
        write_whole(path, json.dumps(plan), self.work)

    def _scan(self, pool: ProcessPoolExecutor, chunks: Sequence[Chunk]) -> dict[str, int]:
        """Number of bad items by source, after scanning the chunks that are not done and joining the quarantine."""
        unread = [bad for source in self.sources for bad in source.bad_items()]
        if unread and self.strict:
            raise ValueError(f"{unread[0].source}: {unread[0].key}: {unread[0].reason}")
        write_lines(self.work / "unread.bad.jsonl", unread)
        missing = [chunk for chunk in chunks if not index_path(self.work, chunk.number).is_file()]
        done = sum(chunk.stop - chunk.start for chunk in chunks) - sum(chunk.stop - chunk.start for chunk in missing)
        jobs = (pool.submit(_scan_job, chunk, self.options.seed) for chunk in missing)
        self._follow(jobs, "reading images", done + sum(c.stop - c.start for c in missing), done, self._refuse_bad)
        counts: dict[str, int] = {}
        parts = [self.work / "unread.bad.jsonl", *(bad_path(self.work, chunk.number) for chunk in chunks)]
        temporary = self.work / "quarantine.partial"
        with temporary.open("w", encoding="utf-8") as file:
            for part in parts:
                for line in part.read_text(encoding="utf-8").splitlines(keepends=True):
                    source = json.loads(line)["source"]
                    counts[source] = counts.get(source, 0) + 1
                    file.write(line)
        temporary.rename(self.out / QUARANTINE_NAME)
        return counts

    def _refuse_bad(self, chunk_number: int) -> None:
        """Nothing; with `strict`, ValueError for the first bad item of a scanned chunk."""
        if self.strict:
            lines = bad_path(self.work, chunk_number).read_text(encoding="utf-8").splitlines()
            if lines:
                bad = json.loads(lines[0])
                raise ValueError(f"{bad['source']}: {bad['item']}: {bad['reason']}")

    def _join_index(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray]:
        """The index of all images as a memory map, and where each chunk starts in it."""
        parts = [np.load(index_path(self.work, chunk.number), mmap_mode="r", allow_pickle=False) for chunk in chunks]
        starts = np.cumsum([0, *(len(part) for part in parts)])
        if starts[-1] == 0:
            raise ValueError(
                f"the sources hold no good image; see {self.out / QUARANTINE_NAME} for what is wrong with each."
            )
        np.save(starts_path(self.work), starts, allow_pickle=False)
        path = self.work / "index.npy"
        index = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX_TYPE, shape=(int(starts[-1]),))
        for start, part in zip(starts, parts):
            index[start : start + len(part)] = part
        index.flush()
        return np.load(path, mmap_mode="r", allow_pickle=False), starts

    def _write_duplicates(self, duplicates: Sequence[Duplicate], starts: np.ndarray) -> None:
        """Nothing; writes the duplicates file: a line a pair, with the ids of the images."""
        temporary = self.work / "duplicates.partial"
        with temporary.open("w", encoding="utf-8") as file:
            for start in range(0, len(duplicates), 256):
                part = duplicates[start : start + 256]
                positions = np.array([position for pair in part for position in (pair.first, pair.second)])
                ids = take_rows(self.work, positions, starts, ["image_id"]).column("image_id").to_pylist()
                for pair, first, second in zip(part, ids[::2], ids[1::2], strict=True):
                    line = {"kind": pair.kind, "image": first, "duplicate": second, "is_dropped": pair.is_dropped}
                    file.write(json.dumps({**line, "differing_bits_of_256": pair.fine_bits}) + "\n")
        temporary.rename(self.out / DUPLICATES_NAME)

    def _write_shards(
        self, pool: ProcessPoolExecutor, index: np.ndarray, decisions: Decisions
    ) -> dict[str, list[dict[str, Any]]]:
        """The manifest's entries of the shards by split, after writing them."""
        shards: list[Shard] = []
        for code, split in enumerate(SPLITS):
            positions = np.flatnonzero(decisions.is_kept & (decisions.split == code))
            if len(positions):
                order = positions[np.argsort(index["order"][positions], kind="stable")]
                np.save(order_path(self.work, split), order, allow_pickle=False)
                num_bytes = int(index["num_bytes"][positions].sum(dtype=np.int64))
                shards += plan_shards(split, len(order), num_bytes, self.options.shard_megabytes * MEGABYTE)
        jobs = (pool.submit(_shard_job, self.out, shard) for shard in shards)
        entries: list[dict[str, Any]] = []
        self._follow(jobs, "writing shards", int(decisions.is_kept.sum()), 0, entries.append)
        by_path = {entry["path"]: entry for entry in entries}
        return {
            split: [by_path[shard.path] for shard in shards if shard.split == split]
            for split in SPLITS
            if any(shard.split == split for shard in shards)
        }

    def _follow(
        self, jobs: Iterable[Future[tuple[int, Any]]], what: str, total: int, done: int, use: Callable[[Any], None]
    ) -> None:
        """Nothing; shows the progress of jobs that give (number of images, result) and hands each result to `use`."""
        with tqdm(total=total, initial=done, desc=what, unit="image", disable=not self.show_progress) as progress:
            for job in as_completed(list(jobs)):
                num_images, result = job.result()
                progress.update(num_images)
                use(result)


def _finished(out: Path, specs: Sequence[SourceSpec], options: BuildOptions) -> BuiltCorpus:
    """The corpus in `out`, built before; ValueError where it was built from something else."""
    corpus = BuiltCorpus(out)
    wanted = {"options": asdict(options), "sources": [(s.name, s.revision) for _, s in open_all(specs, None)]}
    found = {**corpus.manifest, "sources": [(s["name"], s["revision"]) for s in corpus.manifest["sources"]]}
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(
                f"{out} holds a corpus with {key} {found[key]}, and this build has {value}; a corpus is never changed. "
                "Name another folder, or delete this one."
            )
    return _tidy(out)


def _tidy(out: Path) -> BuiltCorpus:
    """The corpus in `out` with its card, and without work files."""
    corpus = BuiltCorpus(out)
    if (out / WORK_FOLDER).is_dir():
        write_whole(out / CARD_NAME, render_card(corpus), out / WORK_FOLDER)
        shutil.rmtree(out / WORK_FOLDER)
    return corpus


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


# In the processes of the pool.

_worker: tuple[list[Source], Path, pa.Schema] | None = None


def _start_worker(specs: Sequence[SourceSpec], work: Path, schema: pa.Schema) -> None:
    """Nothing; opens the sources once in this process, which ends when the main process does, however that ends."""
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = [source for _, source in open_all(specs, work / "index")], work, schema


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers call this"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _scan_job(chunk: Chunk, seed: int) -> tuple[int, int]:
    """(number of items, number of the chunk) after scanning it."""
    assert _worker is not None, "the initializer of the pool has run"
    sources, work, schema = _worker
    return scan_chunk(work, sources[chunk.source], chunk, seed, schema), chunk.number


def _shard_job(out: Path, shard: Shard) -> tuple[int, dict[str, Any]]:
    """(number of images, entry of the manifest) after writing the shard."""
    assert _worker is not None, "the initializer of the pool has run"
    _, work, schema = _worker
    return shard.stop - shard.start, write_shard(work, out, shard, schema)
