"""Prepares the data set that is published: a built corpus, or folders of annotated images in the source format."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regionmed_clip.processing.corpus.audit_report import RULES
from regionmed_clip.processing.corpus.built_corpus import CARD_NAME, BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.licences import may_redistribute
from regionmed_clip.processing.corpus.push import plan_push
from regionmed_clip.processing.corpus.sources.jsonl import ABOUT_FILE, ANNOTATIONS_NAME, open_jsonl

from .dataset_card import check_dataset_card, render_dataset_card
from .publications import Publication
from .publish_checks import PICTURE_SUFFIXES, find_problems, problems_of_text, refuse_problems

PICTURE_FOLDERS = ("images", "masks")


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

    A built corpus is checked as `regionmed-corpus check` does, pixels included. Of a source folder, or a folder of
    them, every row is read, texts are searched for personal data, and pictures for texts that they carry.

    Args:
        is_public: whether all will see it.
        allow_restricted: take images whose licence lets nobody pass them on, into a private repository.
        accepted: rules whose breaches a person has looked at: of `regionmed-corpus check`, or of `publish_checks`.
        say: takes a line on each step that was done.

    Raises:
        ValueError: neither of the two, a breach of a rule, or a licence that forbids it.
    """
    if is_built_corpus(source):
        known = tuple(rule for rule in accepted if rule in RULES)
        if len(known) < len(accepted):
            raise ValueError(f"--accept {(set(accepted) - set(known)).pop()} is no rule of `regionmed-corpus check`.")
        corpus = BuiltCorpus(source)
        plan = plan_push(corpus, repo_id, is_public=is_public, allow_restricted=allow_restricted, accepted=known)
        say("checked: every image and text as `regionmed-corpus check` does, and the licences")
        files = {name: plan.card.encode() if name == CARD_NAME else source / name for name, _ in plan.files}
        return Publication(files=files, message=f"Corpus {corpus.revision}", notes=())
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
        named = _named_pictures(folder / ANNOTATIONS_NAME)
        for path in sorted(path for name in PICTURE_FOLDERS for path in (folder / name).rglob("*") if path.is_file()):
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                raise ValueError(
                    f"{path}: of pictures only {sorted(PICTURE_SUFFIXES)} are published as files; their headers can be "
                    "read. Build a corpus by `regionmed-corpus build`, which keeps pixels alone, and publish that."
                )
            if path.relative_to(folder).as_posix() in named:  # no row and no licence speaks for others
                yield path


def _named_pictures(annotations: Path) -> frozenset[str]:
    """The pictures and masks that the rows name, as paths in the folder of the rows."""
    named: set[str] = set()
    with annotations.open(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            row = json.loads(line)
            named |= {posixpath.normpath(str(row[key])) for key in ("image", "mask") if row.get(key) is not None}
    return frozenset(named)
