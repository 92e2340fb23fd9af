"""Prepares the data set that is published: a built corpus, or folders of annotated images in the source format."""

from __future__ import annotations

import base64
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.audit_report import KINDS_OF_IDS, RULES
from regionmed_clip.processing.corpus.built_corpus import (
    CARD_NAME,
    DUPLICATES_NAME,
    MANIFEST_NAME,
    BuiltCorpus,
    is_built_corpus,
)
from regionmed_clip.processing.corpus.hub_push import some_of
from regionmed_clip.processing.corpus.licences import may_redistribute
from regionmed_clip.processing.corpus.push import plan_push
from regionmed_clip.processing.corpus.sources.jsonl import ABOUT_FILE, ANNOTATIONS_NAME, open_jsonl
from regionmed_clip.processing.corpus.sources.source_files import path_inside

from .dataset_card import check_dataset_card, render_dataset_card
from .leak_patterns import find_local_paths, find_secrets
from .publications import Publication
from .publish_checks import (
    ACCEPTABLE,
    PHI_PREFIX,
    PICTURE_SUFFIXES,
    Problem,
    find_problems,
    problems_of_text,
    refuse_problems,
)

PICTURE_FOLDERS = ("images", "masks")
ARROW_SCHEMA = b"ARROW:schema"  # in the head of a Parquet file, in base64: columns and what is said of them


def prepare_dataset(
    source: Path,
    repo_id: str,
    *,
    is_public: bool,
    allow_restricted: bool,
    accepted: Sequence[str] = (),
    say: Callable[[str], None],
) -> Publication:
    """The files and the card of a data set that passes its checks.

    A built corpus is checked as `regionmed-corpus check` does, pixels included, and all of its texts are searched for
    credentials and local paths. Of a source folder, or a folder of them, every row is read, texts are searched for
    personal data, and pictures for texts that they carry.

    Args:
        is_public: whether all will see it.
        allow_restricted: take images whose licence lets nobody pass them on, into a private repository.
        accepted: rules whose breaches a person has looked at: of `regionmed-corpus check`, or of `publish_checks`.
        say: takes a line on each step that was done.

    Raises:
        ValueError: neither of the two, a link, a breach of a rule, or a licence that forbids it.
    """
    _refuse_links(source)
    if is_built_corpus(source):
        return _prepare_corpus(source, repo_id, is_public, allow_restricted, accepted, say)
    _check_licenses(source, may_hold_restricted=allow_restricted and not is_public)
    card = render_dataset_card(source, repo_id)
    check_dataset_card(card)
    say("checked: every row, and the licences of the sources")
    files = {path.relative_to(source).as_posix(): path for path in _files_of_sources(source)}
    problems = [problem for problem in find_problems(source) if problem.place in files]
    problems += [problem for problem in problems_of_text(card, CARD_NAME) if problem.rule == "secret"]
    notes = [f"let pass by --accept: {problem.line()}" for problem in refuse_problems(problems, accepted, "data set")]
    say("checked: no credentials, personal data in texts, or texts in pictures; pixels are looked at in a built corpus")
    return Publication(
        files={CARD_NAME: card.encode(), **files}, message=f"Publish {repo_id} by regionmed-publish", notes=tuple(notes)
    )


def _refuse_links(source: Path) -> None:
    """None; ValueError for a link in the folder: no search would look behind it, though its files would be taken."""
    links = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_symlink())
    if links:
        raise ValueError(
            f"{source} holds links: {some_of(links)}; nothing was sent. Put the files themselves there, e.g. by "
            "`cp -rL`."
        )


def _prepare_corpus(
    source: Path,
    repo_id: str,
    is_public: bool,
    allow_restricted: bool,
    accepted: Sequence[str],
    say: Callable[[str], None],
) -> Publication:
    """The files and the card of a built corpus."""
    unknown = sorted(set(accepted) - {*RULES, *ACCEPTABLE})
    if unknown:
        raise ValueError(f"--accept {unknown[0]} is no rule of `regionmed-corpus check`, nor one of {ACCEPTABLE}.")
    known = tuple(rule for rule in accepted if rule in RULES)
    corpus = BuiltCorpus(source)
    plan = plan_push(corpus, repo_id, is_public=is_public, allow_restricted=allow_restricted, accepted=known)
    say("checked: every image and text as `regionmed-corpus check` does, and the licences")
    problems = [*_problems_of_rows(corpus), *_problems_beside_rows(corpus, plan.card)]
    passed = refuse_problems(problems, [rule for rule in accepted if rule in ACCEPTABLE], "data set")
    say("checked: no credentials or local paths in rows, manifest and card")
    notes = tuple(f"let pass by --accept: {problem.line()}" for problem in passed)
    return Publication(files=plan.contents(corpus), message=f"Corpus {corpus.revision}", notes=notes)


def _problems_of_rows(corpus: BuiltCorpus) -> Iterator[Problem]:
    """Credentials and local paths in any text of a row, ids too; personal data are found by the corpus's own check."""
    for split in corpus.splits():
        with pq.ParquetFile(corpus.shard_paths(split)[0]) as file:
            leaves = [file.schema.column(number) for number in range(len(file.schema))]
        columns = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]  # pictures stay on disk
        first_row: dict[tuple[str, str], int] = {}
        num_rows: Counter[tuple[str, str]] = Counter()
        for number, row in enumerate(corpus.rows(split, columns=columns)):
            text = "\n".join(_texts(row))
            found = {("secret", leak.kind) for leak in find_secrets(text)}
            found |= {("local-path", leak.kind) for leak in find_local_paths(text)}
            num_rows.update(found)
            first_row.update((one, number) for one in found if one not in first_row)
        for (rule, kind), number in sorted(first_row.items()):
            others = num_rows[rule, kind] - 1
            reason = f"holds {kind}{f', and {others:,} other rows' if others else ''}; correct the source, build again"
            yield Problem(rule, f"{split} row {number}", reason)


def _texts(value: Any) -> Iterator[str]:
    """Every string of a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _problems_beside_rows(corpus: BuiltCorpus, card: str) -> Iterator[Problem]:
    """Problems of what is published beside the rows: the manifest, the duplicates, the card, the heads of shards."""
    yield from problems_of_text((corpus.folder / MANIFEST_NAME).read_text(encoding="utf-8"), MANIFEST_NAME)
    duplicates = (corpus.folder / DUPLICATES_NAME).read_text(encoding="utf-8")
    kept = {"secret", "local-path", *(f"{PHI_PREFIX}{kind}" for kind in KINDS_OF_IDS)}  # of ids numbers are pseudonyms
    yield from (problem for problem in problems_of_text(duplicates, DUPLICATES_NAME) if problem.rule in kept)
    yield from (problem for problem in problems_of_text(card, CARD_NAME) if problem.rule in ("secret", "local-path"))
    for path in (path for split in corpus.splits() for path in corpus.shard_paths(split)):
        for key, value in (pq.read_metadata(path).metadata or {}).items():
            content = base64.b64decode(value) if key == ARROW_SCHEMA else value
            text = f"{key.decode('utf-8', 'replace')}: {content.decode('utf-8', 'replace')}"
            yield from problems_of_text(text, f"{path.relative_to(corpus.folder).as_posix()} header.txt")


def _check_licenses(source: Path, *, may_hold_restricted: bool) -> None:
    """None; ValueError where a source may not be passed on, unless its owners' agreement covers the readers."""
    closed = [f"{one.name} ({one.license})" for one in open_jsonl(source) if not may_redistribute(one.license)]
    if closed and not may_hold_restricted:
        raise ValueError(
            f"{source} holds images that nobody may pass on as far as we know: {', '.join(closed)}. Leave these "
            "sources out, or, if your agreement lets you share them with your own group, publish to a private "
            "repository with --allow-restricted and without --public."
        )


def _files_of_sources(source: Path) -> Iterator[Path]:
    """The files that the rows name, and the rows; ValueError for pictures in a format whose header may name people."""
    is_one = (source / ANNOTATIONS_NAME).is_file()
    folders = [source] if is_one else sorted(path.parent for path in source.glob(f"*/{ANNOTATIONS_NAME}"))
    for folder in folders:
        yield from (folder / name for name in (ANNOTATIONS_NAME, ABOUT_FILE) if (folder / name).is_file())
        named = [folder / name for name in sorted(_named_pictures(folder / ANNOTATIONS_NAME))]
        beside = [path for name in PICTURE_FOLDERS for path in sorted((folder / name).rglob("*")) if path.is_file()]
        for path in (*named, *beside):
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                raise ValueError(
                    f"{path}: of pictures only {sorted(PICTURE_SUFFIXES)} are published as files; their headers can be "
                    "read. Build a corpus by `regionmed-corpus build`, which keeps pixels alone, and publish that."
                )
        yield from named  # no row and no licence speaks for others


def _named_pictures(annotations: Path) -> frozenset[str]:
    """The pictures and masks that the rows name, as paths in the folder of the rows; ValueError for one not there."""
    named: set[str] = set()
    with annotations.open(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            row = json.loads(line)
            named |= {posixpath.normpath(str(row[key])) for key in ("image", "mask") if row.get(key) is not None}
    for name in sorted(named):
        if not path_inside(annotations.parent, name).is_file():
            raise ValueError(f"{annotations} names {name}, which is not there. Restore it, or drop its rows.")
    return frozenset(named)
