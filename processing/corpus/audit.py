"""`regionmed-corpus check`: a built corpus against its manifest and its rules, or a folder of DICOM files for PHI."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from regionmed_clip.processing.corpus.audit_report import AuditReport, joined
from regionmed_clip.processing.corpus.audit_rows import check_row
from regionmed_clip.processing.corpus.built_corpus import (
    DATA_FOLDER,
    DUPLICATES_NAME,
    QUARANTINE_NAME,
    BuiltCorpus,
    is_built_corpus,
)
from regionmed_clip.processing.corpus.fingerprints import Part, part_of_split, same_values
from regionmed_clip.processing.corpus.perceptual_hash import near_pairs
from regionmed_clip.processing.corpus.scan import hash_64
from regionmed_clip.processing.corpus.shard_writer import sha256_of_file

MIN_IMAGES_OF_PROCESS = 1000  # below it a process costs more than it saves
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
_DICOM_MAGIC_OFFSET, _DICOM_MAGIC = 128, b"DICM"
_READ_ERRORS = (pa.ArrowException, OSError)


@dataclass(frozen=True, slots=True)
class _ShardTask:
    """One shard of the manifest: rows [start, stop) of its split."""

    folder: Path
    split: str
    path: str
    start: int
    stop: int


def check_path(
    path: str | Path, *, accepted: tuple[str, ...] = (), num_processes: int | None = None, show_progress: bool = True
) -> AuditReport:
    """The report on the built corpus, or on the DICOM files in the folder, at `path`.

    Args:
        path: a folder that `regionmed-corpus build` wrote, or one with DICOM files at any depth.
        accepted: names of rules whose breaches a person has looked at; they do not count as errors.
        num_processes: parallel processes, default one for each core; small corpora take one.
        show_progress: a progress bar on stderr.

    Raises:
        ValueError: `path` is neither, a rule is unknown, or the manifest cannot be read.
    """
    if is_built_corpus(path):
        return check_corpus(
            BuiltCorpus(path), accepted=accepted, num_processes=num_processes, show_progress=show_progress
        )
    return check_dicom_folder(Path(path), accepted=accepted, show_progress=show_progress)


def check_corpus(
    corpus: BuiltCorpus,
    *,
    accepted: tuple[str, ...] = (),
    num_processes: int | None = None,
    show_progress: bool = True,
) -> AuditReport:
    """The report on a built corpus: files, every row, and what holds between rows; see `check_path`."""
    corpus.check_manifest()
    report = AuditReport(f"{corpus.folder} ({corpus.revision})", accepted=accepted)
    tasks = list(_tasks_of(corpus))
    readable = [task for task in tasks if _check_file(corpus, task, report)]
    _check_listing(corpus, tasks, report)
    counts = _check_rows(readable, report, num_processes, show_progress)
    _check_lists(corpus, report)
    if len(readable) == len(tasks):  # else every count is off, and the message would only repeat it
        _check_counts(corpus, counts, report)
        _check_between_rows(corpus, report)
    return report


def check_dicom_folder(folder: Path, *, accepted: tuple[str, ...] = (), show_progress: bool = True) -> AuditReport:
    """The report on identifying header elements of the DICOM files under `folder`; their values are never read out."""
    from regionmed_clip.processing.corpus.dicom import identifying_tags

    paths = sorted(path for path in folder.rglob("*") if _is_dicom(path)) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"{str(folder)!r} is no built corpus (it has no manifest.json) and holds no DICOM file at any depth; check "
            "takes either. Check the path."
        )
    report = AuditReport(str(folder), accepted=accepted)
    for path in tqdm(paths, desc="reading headers", unit="file", disable=not show_progress):
        report.num_items += 1
        name = path.relative_to(folder).as_posix()
        try:
            names = identifying_tags(path)
        except ValueError as error:
            report.add("dicom-unreadable", name, str(error))
            continue
        if names:
            report.add("dicom-tags", name, f"filled: {joined(names, 12)}")
    return report


def _tasks_of(corpus: BuiltCorpus) -> Iterator[_ShardTask]:
    """The shards of the manifest with their rows."""
    for split in corpus.splits():
        start = 0
        for shard in corpus.manifest["splits"][split]["shards"]:
            yield _ShardTask(corpus.folder, split, shard["path"], start, start + shard["num_images"])
            start += shard["num_images"]


def _check_file(corpus: BuiltCorpus, task: _ShardTask, report: AuditReport) -> bool:
    """Whether the rows of a shard can be read; checks its bytes, columns and number of rows."""
    from regionmed_clip.processing.corpus.medregion import corpus_schema

    path = task.folder / task.path
    shards = corpus.manifest["splits"][task.split]["shards"]
    entry = next(shard for shard in shards if shard["path"] == task.path)
    if path.stat().st_size != entry["num_bytes"] or sha256_of_file(path) != entry["sha256"]:
        num_bytes = path.stat().st_size
        report.add("shard-hash", task.path, f"{num_bytes} bytes, manifest says {entry['num_bytes']}; or another sha256")
    try:
        with pq.ParquetFile(path) as file:
            found, num_rows = file.schema_arrow, file.metadata.num_rows
    except _READ_ERRORS as error:
        report.add("shard-unreadable", task.path, f"{type(error).__name__}: {error}")
        return False
    expected = corpus_schema()
    if not found.equals(expected, check_metadata=False):
        names = sorted({*found.names, *expected.names})
        odd = [name for name in names if _type_of(found, name) != _type_of(expected, name)]
        report.add("schema", task.path, f"columns that differ: {joined(odd, 12) or 'their order'}")
        return False
    if num_rows != task.stop - task.start:
        report.add("count", task.path, f"{num_rows} rows, manifest says {task.stop - task.start}")
    return True


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column, or None where there is none."""
    return schema.field(name).type if name in schema.names else None


def _check_listing(corpus: BuiltCorpus, tasks: list[_ShardTask], report: AuditReport) -> None:
    """Nothing; looks for shards that the manifest does not name: a viewer would show them."""
    listed = {task.path for task in tasks}
    for path in sorted((corpus.folder / DATA_FOLDER).rglob("*")):
        name = path.relative_to(corpus.folder).as_posix()
        if path.is_file() and name not in listed:
            report.add("shard-unlisted", name, "the manifest does not name it")


def _check_rows(
    tasks: list[_ShardTask], report: AuditReport, num_processes: int | None, show_progress: bool
) -> dict[tuple[str, str], np.ndarray]:
    """("split" | "source", its name) -> (images, regions, questions), after checking every row into the report."""
    num_images = sum(task.stop - task.start for task in tasks)
    useful = max(1, min(len(tasks), num_images // MIN_IMAGES_OF_PROCESS))
    num_processes = min(useful, num_processes or os.cpu_count() or 1)
    counts: dict[tuple[str, str], np.ndarray] = {}
    with tqdm(total=num_images, desc="checking images", unit="image", disable=not show_progress) as progress:
        for task, (part, part_counts) in zip(tasks, _results(tasks, num_processes)):
            report.merge(part)
            for key, numbers in part_counts.items():
                counts[key] = counts.get(key, np.zeros(3, dtype=np.int64)) + numbers
            progress.update(task.stop - task.start)
    return counts


def _results(
    tasks: list[_ShardTask], num_processes: int
) -> Iterator[tuple[AuditReport, dict[tuple[str, str], np.ndarray]]]:
    """The results of `_check_shard` in the order of the tasks, over several processes where that helps."""
    if num_processes == 1:
        yield from map(_check_shard, tasks)
        return
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_check_shard, tasks)


def _check_shard(task: _ShardTask) -> tuple[AuditReport, dict[tuple[str, str], np.ndarray]]:
    """The report on the rows of a shard, and its counts by split and by source."""
    report = AuditReport(task.path)
    counts: dict[tuple[str, str], np.ndarray] = {}
    try:
        for row in BuiltCorpus(task.folder).rows(task.split, task.start, task.stop):
            check_row(row, report)
            if row["split"] != task.split:
                report.add("record", row["image_id"], f"split is {row['split']!r} in a shard of {task.split}")
            numbers = np.array([1, len(row["regions"] or ()), len(row["qa"] or ())], dtype=np.int64)
            for key in (("split", task.split), ("source", row["source"])):
                counts[key] = counts.get(key, np.zeros(3, dtype=np.int64)) + numbers
    except _READ_ERRORS as error:
        report.add("shard-unreadable", task.path, f"{type(error).__name__}: {error}")
    return report, counts


def _check_counts(corpus: BuiltCorpus, counts: dict[tuple[str, str], np.ndarray], report: AuditReport) -> None:
    """Nothing; compares the manifest's numbers with those of the rows."""
    manifest: dict[str, Any] = corpus.manifest
    stated = {("split", name): entry for name, entry in manifest["splits"].items()}
    stated |= {("source", entry["name"]): entry for entry in manifest["sources"]}
    for kind, name in sorted({*stated, *counts}):
        found = counts.get((kind, name), np.zeros(3, dtype=np.int64)).tolist()
        entry = stated.get((kind, name), {})
        said = [entry.get(key, 0) for key in ("num_images", "num_regions", "num_questions")]
        if said != found:
            report.add("count", f"{kind} {name}", f"images, regions, questions are {found}, the manifest says {said}")
        in_shards = sum(shard["num_images"] for shard in entry.get("shards", ()))
        if kind == "split" and in_shards != said[0]:
            report.add("count", f"split {name}", f"its shards have {in_shards} images, the manifest says {said[0]}")


def _check_lists(corpus: BuiltCorpus, report: AuditReport) -> None:
    """Nothing; compares the manifest's numbers of what was left out with the files that list it.

    The quarantine file is no part of a corpus that was pushed.
    """
    manifest: dict[str, Any] = corpus.manifest
    num_exact = sum(source["num_exact_duplicates"] for source in manifest["sources"])
    stated = {
        DUPLICATES_NAME: {"exact": num_exact, "near": manifest["num_near_duplicates"]},
        QUARANTINE_NAME: {source["name"]: source["num_quarantined"] for source in manifest["sources"]},
    }
    for name, key in ((DUPLICATES_NAME, "kind"), (QUARANTINE_NAME, "source")):
        path = corpus.folder / name
        if name == QUARANTINE_NAME and not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8") as file:
                found = Counter(json.loads(line)[key] for line in file)
        except (OSError, ValueError, LookupError, TypeError) as error:
            report.add("count", name, f"it cannot be read ({type(error).__name__})")
            continue
        for what in sorted({*found, *stated[name]}):
            said = stated[name].get(what, 0)
            if said != found[what]:
                report.add("count", name, f"{what}: {found[what]} lines, the manifest says {said}")


def _check_between_rows(corpus: BuiltCorpus, report: AuditReport) -> None:
    """Nothing; looks for images, ids and patients that occur twice, and near duplicates in two splits."""
    try:
        parts = [part_of_split(corpus, split) for split in corpus.splits()]
    except ValueError as error:  # a row without id or hash: there is nothing to compare
        report.add("image-hash", str(corpus.folder), str(error))
        return
    for number, part in enumerate(parts):
        _check_repeats(part, report)
        for other in parts[:number]:
            _check_pair(part, other, report)


def _hashes_of_ids(part: Part) -> np.ndarray:
    """(N,) uint64: the ids as hashes; an array of texts would give each the room of the longest."""
    return np.fromiter((hash_64("id", image_id) for image_id in part.image_ids), np.uint64, len(part.image_ids))


def _check_repeats(part: Part, report: AuditReport) -> None:
    """Nothing; looks for ids and image bytes that occur twice in a split."""
    for rule, values in (("duplicate-image", part.prints["sha256"]), ("duplicate-id", _hashes_of_ids(part))):
        order = np.argsort(values, kind="stable")
        for place in np.flatnonzero(values[order[1:]] == values[order[:-1]]):
            first, second = part.image_ids[order[place]], part.image_ids[order[place + 1]]
            report.add(rule, second, f"the same as {first} of split {part.name}")


def _check_pair(part: Part, other: Part, report: AuditReport) -> None:
    """Nothing; looks for what two splits share."""
    for rule, values in (
        ("duplicate-id", (_hashes_of_ids(part), _hashes_of_ids(other))),
        ("duplicate-image", (part.prints["sha256"], other.prints["sha256"])),
        ("patient-in-splits", (part.prints["patient"], other.prints["patient"])),
    ):
        for first, second in same_values(*values):
            where = f"of split {part.name}: the same as {other.image_ids[second]} of split {other.name}"
            report.add(rule, part.image_ids[first], where)
    for first, second, fine_bits in near_pairs(part.prints["phash"], other.prints["phash"]):
        where = f"of split {part.name}: differs in {fine_bits} of 256 bits from {other.image_ids[second]}"
        report.add("near-duplicate-in-splits", part.image_ids[first], f"{where} of split {other.name}")


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix or, without one or with the end of a UID as one, by its magic."""
    if not path.is_file() or path.suffix.lower() in DICOM_SUFFIXES:
        return path.is_file()
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        file.seek(_DICOM_MAGIC_OFFSET)
        return file.read(len(_DICOM_MAGIC)) == _DICOM_MAGIC
