"""`regionmed-corpus push`: a checked corpus to a dataset repository of the Hugging Face Hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from regionmed_clip.processing.corpus.audit import check_corpus
from regionmed_clip.processing.corpus.audit_report import joined
from regionmed_clip.processing.corpus.built_corpus import (
    CARD_NAME,
    DATA_FOLDER,
    DUPLICATES_NAME,
    MANIFEST_NAME,
    BuiltCorpus,
)
from regionmed_clip.processing.corpus.dataset_card import render_card
from regionmed_clip.processing.corpus.licences import may_redistribute

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")


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
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(
            f"repository {repo_id!r} is no ORG/NAME of the Hub. Name it, e.g. my-lab/{corpus.manifest['name']}."
        )
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


def push_corpus(corpus: BuiltCorpus, plan: PushPlan) -> str:
    """The address of the commit, after creating the repository if needed and uploading the files of the plan.

    The token is the one that `hf auth login`, or HF_TOKEN, gives. An existing repository keeps its visibility. Shards
    in it that are not of this corpus are removed by the same commit, or the viewer would mix them in.

    Raises:
        ValueError: the Hub refuses, the repository exists and is public against the plan, or what arrived differs.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    transport_error = HfHubHTTPError.__bases__[0]  # HTTPError of httpx or, by version, httpx2: also no connection
    try:
        api.create_repo(plan.repo_id, repo_type="dataset", private=not plan.is_public, exist_ok=True)
        if not plan.is_public and not api.repo_info(plan.repo_id, repo_type="dataset").private:
            raise ValueError(
                f"dataset {plan.repo_id} exists and is public, and --public is not given; nothing was uploaded. Name "
                "another repository, make it private, or add --public."
            )
        commit = api.create_commit(
            plan.repo_id,
            repo_type="dataset",
            operations=_operations(api, corpus, plan),
            commit_message=f"Corpus {corpus.revision}",
        )
        _check_arrival(api, corpus, plan.repo_id, commit.oid)
    except (transport_error, LocalTokenNotFoundError) as error:
        raise ValueError(
            f"the push to {plan.repo_id} failed: {error}. Log in by `hf auth login` with a token that may write there, "
            "and push again: shards that are there already are not sent twice."
        ) from error
    return str(commit.commit_url)


def _operations(api: Any, corpus: BuiltCorpus, plan: PushPlan) -> list[Any]:
    """What the commit does: adds the files of the plan, removes shards of another corpus."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = [name for name, _ in plan.files if name != CARD_NAME]
    found = api.list_repo_files(plan.repo_id, repo_type="dataset")
    stale = sorted(name for name in found if name.startswith(f"{DATA_FOLDER}/") and name not in names)
    return [
        CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=plan.card.encode()),
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=corpus.folder / name) for name in names),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]


def _check_arrival(api: Any, corpus: BuiltCorpus, repo_id: str, commit: str) -> None:
    """Nothing; raises ValueError where a shard on the Hub has another sha256 than the manifest says."""
    wanted = {
        shard["path"]: shard["sha256"] for split in corpus.manifest["splits"].values() for shard in split["shards"]
    }
    infos = api.get_paths_info(repo_id, list(wanted), repo_type="dataset", revision=commit)
    found = {info.path: info.lfs.sha256 for info in infos if info.lfs is not None}
    wrong = sorted(name for name, sha256 in wanted.items() if found.get(name) != sha256)
    if wrong:
        raise ValueError(
            f"{joined(wrong)} on {repo_id} at {commit} are not the shards of {corpus.folder}. Push again; if it stays "
            "so, delete the repository first."
        )


def closed_licenses(corpus: BuiltCorpus) -> list[str]:
    """The licences of sources and rows that do not let anyone pass the files on, sorted."""
    names = {source["license"] for source in corpus.manifest["sources"] if source["num_images"]}
    for split in corpus.splits():
        for table in corpus.tables(split, columns=["license"]):
            names.update(table.column("license").unique().to_pylist())
    return sorted(name for name in names if not may_redistribute(name))
