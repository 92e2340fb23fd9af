"""`regionmed-corpus push`: a checked corpus to a dataset repository of the Hugging Face Hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regionmed_clip.processing.corpus.audit import check_corpus
from regionmed_clip.processing.corpus.audit_report import joined
from regionmed_clip.processing.corpus.built_corpus import (
    CARD_NAME,
    DUPLICATES_NAME,
    MANIFEST_NAME,
    BuiltCorpus,
)
from regionmed_clip.processing.corpus.dataset_card import render_card
from regionmed_clip.processing.corpus.licences import may_redistribute

if TYPE_CHECKING:
    from regionmed_clip.processing.corpus.hub_push import Pushed


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would upload: the repository, whether all may see it, the files with their bytes, and the card."""

    repo_id: str
    is_public: bool
    files: tuple[tuple[str, int], ...]
    card: str

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        num_bytes = sum(size for _, size in self.files)
        yield f"To {'public' if self.is_public else 'private'} dataset {self.repo_id}:"
        yield from (f"    {name}: {size:,} bytes" for name, size in self.files)
        yield f"{len(self.files)} files, {num_bytes / 1e6:,.1f} MB."

    def contents(self, corpus: BuiltCorpus) -> dict[str, Path | bytes]:
        """Path in the repository -> file of the corpus; of the card its content."""
        return {name: self.card.encode() if name == CARD_NAME else corpus.folder / name for name, _ in self.files}


def plan_push(
    corpus: BuiltCorpus,
    repo_id: str,
    *,
    is_public: bool = False,
    allow_restricted: bool = False,
    accepted: Sequence[str] = (),
    num_processes: int | None = None,
    show_progress: bool = True,
) -> PushPlan:
    """The plan of a push that may be made; quarantine.jsonl stays here, since its reasons name local files.

    Args:
        corpus: a built corpus; it is checked as `regionmed-corpus check` does.
        repo_id: ORG/NAME.
        is_public: make the repository visible to all.
        allow_restricted: also take images whose licence does not let anyone pass them on, into a private repository.
        accepted: rules of the check whose breaches a person has looked at.
        num_processes, show_progress: of the check.

    Raises:
        ValueError: a name that is no ORG/NAME, a licence that forbids it, or a corpus that fails the check.
    """
    from regionmed_clip.processing.corpus.hub_push import check_repo_id  # brings huggingface_hub

    check_repo_id(repo_id)
    closed = closed_licenses(corpus)
    if closed and not (allow_restricted and not is_public):
        raise ValueError(
            f"{corpus.folder} holds images under {joined(closed)}, which nobody may pass on as far as we know; a push "
            "takes open licences alone. Leave these sources out, or, if your agreement lets you share them with your "
            "own group, push to a private repository with --allow-restricted and without --public."
        )
    report = check_corpus(corpus, accepted=tuple(accepted), num_processes=num_processes, show_progress=show_progress)
    if report.num_errors:
        lines = "\n".join(report.lines())
        raise ValueError(f"{corpus.folder} fails its check, and only a sound corpus is pushed:\n{lines}")
    card = render_card(corpus, repo_id)
    shards = [
        path.relative_to(corpus.folder).as_posix() for split in corpus.splits() for path in corpus.shard_paths(split)
    ]
    names = [MANIFEST_NAME, DUPLICATES_NAME, *shards]
    sizes = [(name, (corpus.folder / name).stat().st_size) for name in names]
    return PushPlan(repo_id, is_public, ((CARD_NAME, len(card.encode())), *sizes), card)


def push_corpus(corpus: BuiltCorpus, plan: PushPlan) -> Pushed:
    """What was done by `hub_push.push` with the files of the plan; an existing repository keeps its visibility.

    Raises:
        ValueError: what `hub_push.push` refuses.
    """
    from regionmed_clip.processing.corpus.hub_push import DATASET, Upload, push  # brings huggingface_hub

    return push(
        Upload(
            repo_id=plan.repo_id,
            repo_type=DATASET,
            files=plan.contents(corpus),
            message=f"Corpus {corpus.revision}",
            is_public=plan.is_public,
        )
    )


def closed_licenses(corpus: BuiltCorpus) -> list[str]:
    """The licences of sources and rows that do not let anyone pass the files on, sorted."""
    names = {source["license"] for source in corpus.manifest["sources"] if source["num_images"]}
    for split in corpus.splits():
        for table in corpus.tables(split, columns=["license"]):
            names.update(table.column("license").unique().to_pylist())
    return sorted(name for name in names if not may_redistribute(name))
