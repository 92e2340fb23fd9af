"""Builds an index: parts of a split embedded one by one, each on disk whole or not at all, then joined and indexed.

While it is being made an index OUTPUT is OUTPUT.partial: plan.json, what it is made of, and parts/, folders that come
into being by a rename. What stops it, `kill -9` too, costs the part at hand; the same command again goes on. OUTPUT
appears in one rename, whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.eval.search.corpus_rows import EMBEDDING, IMAGES, LEVELS, CorpusImages, embed_rows, features_of
from regionmed_clip.eval.search.model_identity import describe_difference, identify
from regionmed_clip.eval.search.neighbours import (
    EXACT,
    GRAPH,
    KINDS,
    MIN_GRAPH_ROWS,
    build,
    import_faiss,
    tune,
    write_index,
)
from regionmed_clip.eval.search.search_index import (
    FORMAT,
    MANIFEST_NAME,
    hash_row_files,
    read_manifest,
    vector_blocks,
)
from regionmed_clip.eval.tasks.embedding import embed_texts
from regionmed_clip.eval.tasks.sharing import Share, join_launch

PLAN_NAME, LOCK_NAME, PARTS, FINISHED = "plan.json", "lock", "parts", "finished"
IMAGES_PER_PART = 256
TUNING_QUERIES = 256  # of each kind
NO_ROWS = {"num_rows": 0, "kind": EXACT, "sha256": "", "rows_sha256": {}}  # a level of which there is nothing on disk
TEXT_OF_LEVEL = {IMAGES: "caption"}  # of regions "description"


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What an index is made of; see `regionmed-search index --help`."""

    model: Path | str
    data: str
    output: Path | str
    split: str = "test"
    kind: str = "auto"
    batch_size: int = 64
    images_per_part: int = IMAGES_PER_PART
    device: str = "auto"


def build_index(settings: IndexSettings) -> dict[str, Any]:
    """The manifest of the finished index, the same on every process of a launch; see docs/search.md for its entries.

    Raises:
        ValueError: a bad setting, model, data spec or split; an OUTPUT that is there and is not this index; an
            unfinished one of another model, data or code; another process at work on it.
    """
    _check(settings)
    share, device = join_launch(settings.device)
    output = Path(settings.output).absolute()
    work = output.with_name(output.name + ".partial")
    model, processor = load_model(settings.model, device)
    corpus = CorpusImages(settings.data, settings.split)
    plan = _plan(settings, corpus, identify(model, processor, device))
    with _locked(work, share):
        finished = share.from_main(lambda: _start(output, work, plan))
        if finished is not None:
            return finished
        _embed_parts(model, processor, corpus, work, share, settings.batch_size, device)
        share.join([(share.index, None)])  # waits for all
        return share.from_main(lambda: _finish(model, processor, output, work, plan, device))


def _check(settings: IndexSettings) -> None:
    """None; ValueError for a setting that cannot be."""
    import_faiss()
    for name in ("batch_size", "images_per_part"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1. Leave it out.")
    if settings.kind not in KINDS:
        raise ValueError(f"kind {settings.kind!r} is not known; it must be one of {', '.join(KINDS)}.")


def _plan(settings: IndexSettings, corpus: CorpusImages, model_identity: dict[str, Any]) -> dict[str, Any]:
    """What the index is made of, as it is stored; an unfinished one goes on where this is the same."""
    return {
        "format": FORMAT,
        "tool": f"regionmed-clip {version('regionmed-clip')}",
        "model": model_identity,
        "data": {"revision": corpus.revision, "split": corpus.split, "num_images": corpus.num_images},
        "images_per_part": settings.images_per_part,
        "kind": settings.kind,
    }


def _start(output: Path, work: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an index that is there already; else None, OUTPUT.partial being ready to go on with."""
    if (output / MANIFEST_NAME).is_file():
        manifest = read_manifest(output)
        _refuse_another(output, manifest, plan)
        return manifest
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there and is no index; nothing is written over it. Name another --output.")
    path = work / PLAN_NAME
    if path.is_file():
        _refuse_another(work, json.loads(path.read_text(encoding="utf-8")), plan)
    else:
        _write_whole(path, plan)
    (work / PARTS).mkdir(exist_ok=True)
    for half_done in (work / PARTS).glob(".*"):
        shutil.rmtree(half_done)
    shutil.rmtree(work / FINISHED, ignore_errors=True)
    return None


def _refuse_another(folder: Path, there: dict[str, Any], plan: dict[str, Any]) -> None:
    """None; ValueError where the index or the part of one in `folder` is made of something else."""
    entries = [(name, there.get(name), plan[name]) for name in ("format", "images_per_part", "kind")]
    entries += [(f"data {name}", there.get("data", {}).get(name), value) for name, value in plan["data"].items()]
    differences = [f"{name} is {old!r} there and {new!r} now" for name, old, new in entries if old != new]
    difference = describe_difference(there.get("model", {}), plan["model"])
    if differences or difference:
        raise ValueError(
            f"{folder} holds an index of something else: {'; '.join([*differences, difference]).strip('; ')}. Name "
            "another --output, or delete the folder."
        )


def _embed_parts(
    model: Any, processor: Any, corpus: CorpusImages, work: Path, share: Share, batch_size: int, device: Any
) -> None:
    """None; this process's parts of those that are not there yet then are."""
    step = json.loads((work / PLAN_NAME).read_text(encoding="utf-8"))["images_per_part"]
    starts = range(0, corpus.num_images, step)
    missing = share.from_main(lambda: [start for start in starts if not _part(work, start, step).is_dir()])
    own = [start for _, start in share.own(missing)]
    with tqdm(own, desc="embed parts", unit="part", disable=not share.is_main or None, leave=False) as bar:
        for start in bar:
            stop = min(start + step, corpus.num_images)
            started = time.perf_counter()
            rows = embed_rows(
                model, processor, corpus.records(start, stop), start, batch_size=batch_size, device=device
            )
            if len(rows[IMAGES]) != stop - start:
                raise ValueError(
                    f"data gave {len(rows[IMAGES])} images where {stop - start} were announced (from {start}); it has "
                    "changed while it was read. Start again when it is at rest."
                )
            _write_part(_part(work, start, step), rows, time.perf_counter() - started)


def _part(work: Path, start: int, step: int) -> Path:
    """The folder of the part that begins with the image of row `start`."""
    return work / PARTS / f"part-{start // step:06d}"


def _write_part(folder: Path, rows: dict[str, list[dict[str, Any]]], elapsed_s: float) -> None:
    """None; the folder of a part, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    width = len(rows[IMAGES][0][EMBEDDING])
    for level in LEVELS:
        with ArrowWriter(features=features_of(level, width), path=str(temporary / f"{level}.arrow")) as writer:
            for row in rows[level]:
                writer.write(row)
            writer.finalize()
    facts = {level: len(rows[level]) for level in LEVELS} | {"width": width, "seconds": elapsed_s}
    (temporary / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    for path in temporary.iterdir():
        _flush(path)
    temporary.rename(folder)
    _flush(folder.parent)


def _finish(model: Any, processor: Any, output: Path, work: Path, plan: dict[str, Any], device: Any) -> dict[str, Any]:
    """The manifest, after joining the parts, building both graphs and putting the folder in its place."""
    parts = sorted((work / PARTS).glob("part-*"))
    facts = [json.loads((part / "facts.json").read_text(encoding="utf-8")) for part in parts]
    num_expected = -(-plan["data"]["num_images"] // plan["images_per_part"])
    if len(parts) != num_expected:
        raise ValueError(
            f"{work} has {len(parts)} of {num_expected} parts; a process ended early. Run the same command again."
        )
    finished = work / FINISHED
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir()
    manifest = {**plan, "width": facts[0]["width"], "seconds_embedding": round(sum(f["seconds"] for f in facts), 1)}
    manifest["levels"] = {}
    for level in LEVELS:
        paths = [part / f"{level}.arrow" for part, fact in zip(parts, facts, strict=True) if fact[level]]
        manifest["levels"][level] = NO_ROWS
        if paths:
            with _quiet():
                _join(paths).save_to_disk(str(finished / level))
            manifest["levels"][level] = _index_level(model, processor, finished, level, manifest, device)
    _write_whole(finished / MANIFEST_NAME, manifest)
    if output.exists():
        output.rmdir()  # an empty folder that was there before
    finished.rename(output)
    _flush(output.parent)
    return manifest


def _join(paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of all parts in order, read from where they lie."""
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])


def _index_level(
    model: Any, processor: Any, folder: Path, level: str, manifest: dict[str, Any], device: Any
) -> dict[str, Any]:
    """The manifest's entry of a level, after building, tuning and writing what finds its rows."""
    rows = datasets.load_from_disk(str(folder / level))
    kind = manifest["kind"]
    if kind == "auto":
        kind = GRAPH if len(rows) >= MIN_GRAPH_ROWS else EXACT
    blocks = vector_blocks(rows)
    started = time.perf_counter()
    index = build(blocks, manifest["width"], kind)
    entry: dict[str, Any] = {"num_rows": len(rows), "kind": kind, "file": f"{level}.faiss"}
    entry["seconds_indexing"] = round(time.perf_counter() - started, 2)
    if kind == GRAPH:
        queries = _tuning_queries(model, processor, rows, TEXT_OF_LEVEL.get(level, "description"), device)
        entry["measured"] = tune(index, blocks, queries)
        entry["search_width"] = int(index.hnsw.efSearch)
    sha256 = write_index(index, folder / entry["file"])
    return entry | {"sha256": sha256, "rows_sha256": hash_row_files(folder / level)}


def _tuning_queries(model: Any, processor: Any, rows: datasets.Dataset, column: str, device: Any) -> dict[str, Any]:
    """Some rows' own embeddings, a little moved so that none asks for itself, and the embeddings of some texts."""
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.choice(len(rows), size=min(TUNING_QUERIES, len(rows)), replace=False))
    vectors = np.stack([np.asarray(rows[int(row)][EMBEDDING], dtype=np.float32) for row in chosen])
    moved = vectors + 0.1 * generator.normal(size=vectors.shape).astype(np.float32) / vectors.shape[1] ** 0.5
    texts = sorted({text for text in rows.select(chosen)[column] if text})
    return {
        "of_rows": moved / np.linalg.norm(moved, axis=1, keepdims=True),
        "of_texts": embed_texts(model, processor, texts, device=device),
    }


def _write_whole(path: Path, value: dict[str, Any]) -> None:
    """None; a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.rename(path)


def _flush(path: Path) -> None:
    """None; a file's content, or a folder's list of names, has then reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _quiet() -> Iterator[None]:
    """The bars of `datasets` off inside the block, where they were on."""
    was_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


@contextmanager
def _locked(work: Path, share: Share) -> Iterator[None]:
    """One launch at a time at an index: a lock of the operating system, which ends with its process however that ends.

    After the block, where the index is finished or was never begun, OUTPUT.partial is gone. ValueError where something
    of that name holds what no launch puts there; it is left as it is.
    """
    if not share.is_main:
        yield
        return
    if work.exists() and not _is_own(work):
        raise ValueError(f"{work} is there and is no unfinished index. Move it away, or name another --output.")
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK_NAME).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"another process is making {work}; one at a time may. Wait for it, or name another --output."
                ) from error
            warnings.warn(f"{work} cannot be locked ({error}); start nothing else there.", stacklevel=4)
        try:
            yield
        finally:
            is_over = (work.with_suffix("") / MANIFEST_NAME).is_file() or not (work / PLAN_NAME).is_file()
            if is_over and _is_own(work):
                for name in (PARTS, FINISHED):  # the plan goes last: by it the rest is known to be ours
                    shutil.rmtree(work / name, ignore_errors=True)
                shutil.rmtree(work)


def _is_own(work: Path) -> bool:
    """Whether there is a folder with nothing but what a launch puts there: parts not before the plan."""
    if not work.is_dir():
        return False
    names = {path.name for path in work.iterdir() if not path.name.startswith(f".{PLAN_NAME}.")} - {LOCK_NAME}
    return not names or (PLAN_NAME in names and names <= {PLAN_NAME, PARTS, FINISHED})
