"""Building a corpus: sources -> globally shuffled Parquet shards, a manifest, a quarantine file and a duplicates file.

Three steps, each restartable, all files written whole or not at all: scan the items in chunks (parallel), decide on
duplicates and splits over an index on disk, write the shards (parallel). Work files lie in OUT/.work until the manifest
is written. The bytes of the corpus depend on sources, options and tool versions alone, never on the number of processes
or on interruptions.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from regionmed_clip.processing.corpus.build_workers import (
    STARTS_NAME,
    Task,
    Workers,
    open_all,
    scan_job,
    shard_job,
    staged_rows,
)
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
from regionmed_clip.processing.corpus.manifest import make_manifest, shown_options, tool_version, write_whole
from regionmed_clip.processing.corpus.records import SPLITS
from regionmed_clip.processing.corpus.scan import (
    Chunk,
    ScanIndex,
    bad_path,
    chunks_of,
    index_path,
    write_lines,
)
from regionmed_clip.processing.corpus.shard_writer import ORDER_TYPE, Shard, order_path, plan_shards
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.registry import SourceSpec

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
        return _finished(out, specs, options, strict)
    if out.exists() and any(out.iterdir()) and not work.is_dir():
        raise ValueError(f"{out} holds other files; a corpus is built in a new or empty folder. Name another.")
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
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
        task = Task(self.specs, self.work, self.out, self.options.seed, self.schema)
        with Workers(task, self.num_processes) as workers:
            num_bad = self._scan(workers, chunks)
            index = self._join_index(chunks)
            decisions = decide(index, drop_near=self.options.drop_near)
            self._write_duplicates(decisions.duplicates)
            entries = self._write_shards(workers, index, decisions)
        manifest = make_manifest(asdict(self.options), self.opened, index, decisions, entries, num_bad)
        write_whole(self.out / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", self.work)
        return _tidy(self.out)

    def _settle_plan(self) -> None:
        """Nothing; writes down what is being built, or refuses to go on with something else."""
        sources = [[source.name, source.revision, shown_options(spec)] for spec, source in self.opened]
        plan = {"tool": tool_version(), "options": asdict(self.options), "sources": sources}
        path = self.work / "plan.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in plan if found.get(key) != plan[key])
            if not changed and any(
                isinstance(source, IndexedSource) and source.has_changed() for source in self.sources
            ):
                changed = ["sources"]
            if changed:
                raise ValueError(
                    f"{self.out} holds an interrupted build with other {', '.join(changed)}; a build goes on with the "
                    "same sources, annotations and options. Repeat its command, or name another folder, or delete this."
                )
            return
        write_whole(path, json.dumps(plan), self.work)

    def _scan(self, workers: Workers, chunks: Sequence[Chunk]) -> dict[str, int]:
        """Number of bad items by source, after scanning the chunks that are not done and joining the quarantine."""
        unread = [bad for source in self.sources for bad in source.bad_items()]
        if unread and self.strict:
            raise ValueError(f"{unread[0].source}: {unread[0].key}: {unread[0].reason}")
        write_lines(self.work / "unread.bad.jsonl", unread)
        missing = [chunk for chunk in chunks if not self._is_scanned(chunk.number)]
        done = sum(chunk.stop - chunk.start for chunk in chunks) - sum(chunk.stop - chunk.start for chunk in missing)
        results = workers.run(scan_job, missing)
        for number in self._follow(results, "reading images", sum(chunk.stop - chunk.start for chunk in chunks), done):
            self._refuse_bad(number)
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

    def _is_scanned(self, chunk_number: int) -> bool:
        """Whether a chunk is done; with `strict`, one with bad items is not: they may have been corrected since."""
        is_done = index_path(self.work, chunk_number).is_file()
        return is_done and not (self.strict and bad_path(self.work, chunk_number).stat().st_size)

    def _refuse_bad(self, chunk_number: int) -> None:
        """Nothing; with `strict`, ValueError for the first bad item of a scanned chunk."""
        if self.strict:
            lines = bad_path(self.work, chunk_number).read_text(encoding="utf-8").splitlines()
            if lines:
                bad = json.loads(lines[0])
                raise ValueError(f"{bad['source']}: {bad['item']}: {bad['reason']}")

    def _join_index(self, chunks: Sequence[Chunk]) -> ScanIndex:
        """The index of all images; ValueError where there is none."""
        index = ScanIndex([index_path(self.work, chunk.number) for chunk in chunks], self.work / "fine.words")
        if not len(index):
            raise ValueError(
                f"the sources hold no good image; see {self.out / QUARANTINE_NAME} for what is wrong with each."
            )
        np.save(self.work / STARTS_NAME, index.starts, allow_pickle=False)
        return index

    def _write_duplicates(self, duplicates: Sequence[Duplicate]) -> None:
        """Nothing; writes the duplicates file: a line a pair, with the ids of the images."""
        staged = staged_rows(self.work)
        temporary = self.work / "duplicates.partial"
        with temporary.open("w", encoding="utf-8") as file:
            for start in range(0, len(duplicates), 256):
                part = duplicates[start : start + 256]
                positions = np.array([position for pair in part for position in (pair.first, pair.second)])
                ids = staged.take(positions).column("image_id").to_pylist()
                for pair, first, second in zip(part, ids[::2], ids[1::2], strict=True):
                    line = {"kind": pair.kind, "image": first, "duplicate": second, "is_dropped": pair.is_dropped}
                    file.write(json.dumps({**line, "differing_bits_of_256": pair.fine_bits}) + "\n")
        temporary.rename(self.out / DUPLICATES_NAME)

    def _write_shards(
        self, workers: Workers, index: ScanIndex, decisions: Decisions
    ) -> dict[str, list[dict[str, Any]]]:
        """The manifest's entries of the shards by split, after writing them."""
        shards: list[Shard] = []
        for code, split in enumerate(SPLITS):
            positions = np.flatnonzero(decisions.is_kept & (decisions.split == code))
            if len(positions):
                order = np.empty(len(positions), dtype=ORDER_TYPE)
                order["position"] = positions[np.argsort(index.column("order")[positions], kind="stable")]
                order["num_bytes"] = index.column("num_bytes")[order["position"]]
                np.save(order_path(self.work, split), order, allow_pickle=False)
                num_bytes = int(order["num_bytes"].sum(dtype=np.int64))
                shards += plan_shards(split, len(order), num_bytes, self.options.shard_megabytes * MEGABYTE)
        entries = self._follow(workers.run(shard_job, shards), "writing shards", int(decisions.is_kept.sum()), 0)
        by_path = {entry["path"]: entry for entry in entries}
        return {
            split: [by_path[shard.path] for shard in shards if shard.split == split]
            for split in SPLITS
            if any(shard.split == split for shard in shards)
        }

    def _follow(self, results: Iterable[tuple[int, Any]], what: str, total: int, done: int) -> Iterator[Any]:
        """The results of jobs that give (number of images, result), with a bar of their progress."""
        with tqdm(total=total, initial=done, desc=what, unit="image", disable=not self.show_progress) as progress:
            for num_images, result in results:
                progress.update(num_images)
                yield result


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keeps other builds out of the folder while this one works in it; ends with the process, however that ends."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{work.parent} is being built by another process; one build at a time writes a folder. Wait for it, "
                "or name another folder."
            ) from None
        yield


def _finished(out: Path, specs: Sequence[SourceSpec], options: BuildOptions, strict: bool) -> BuiltCorpus:
    """The corpus in `out`, built before; ValueError where it was built from something else, or is not `strict`."""
    corpus = BuiltCorpus(out)
    corpus.check_manifest()
    opened = open_all(specs, None)
    wanted = {"options": asdict(options), "sources": [(s.name, s.revision, shown_options(spec)) for spec, s in opened]}
    found = {**corpus.manifest}
    found["sources"] = [(s["name"], s["revision"], s["options"]) for s in corpus.manifest["sources"]]
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(
                f"{out} holds a corpus with {key} {found[key]}, and this build has {value}; a corpus is never changed. "
                "Name another folder, or delete this one."
            )
    num_bad = sum(source["num_quarantined"] for source in corpus.manifest["sources"])
    if strict and num_bad:
        raise ValueError(
            f"{out} holds a corpus without {num_bad} bad items, see {out / QUARANTINE_NAME}; a strict build has none. "
            "Correct them and build into another folder."
        )
    if not (out / WORK_FOLDER).is_dir():
        return corpus
    with _alone(out / WORK_FOLDER):
        return _tidy(out)


def _tidy(out: Path) -> BuiltCorpus:
    """The corpus in `out`, after writing its card and removing the work files."""
    corpus = BuiltCorpus(out)
    write_whole(out / CARD_NAME, render_card(corpus), out / WORK_FOLDER)
    shutil.rmtree(out / WORK_FOLDER)
    return corpus
