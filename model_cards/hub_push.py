"""Sends files to a repository of the Hub: one commit or one pull request, private unless asked, nothing sent twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

TAG = re.compile(r"[A-Za-z0-9][\w.-]*")
MODEL, DATASET, SPACE = "model", "dataset", "space"
PATHS_A_CALL = 200
SPACE_SDK = "gradio"
_CODE_AND_WEIGHTS = frozenset({".py", ".json", ".safetensors", ".jinja", ".model"})
_TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]  # HTTPError of httpx or, by version, httpx2: also no connection


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What is to be sent, and where.

    Attributes:
        repo_id: ORG/NAME.
        repo_type: "model", "dataset" or "space".
        files: path in the repository -> file here, or its content.
        message: of the commit.
        is_public: of a repository that is made now; an existing public one takes nothing without it.
        create_pr: open a pull request on an existing repository instead of committing.
        tag: set on the commit; None: none.
    """

    repo_id: str
    repo_type: str
    files: Mapping[str, Path | bytes]
    message: str
    is_public: bool = False
    create_pr: bool = False
    tag: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was done.

    Attributes:
        url: of the repository; of the pull request if one was opened.
        commit: its hash.
        revision: what loads it: the commit, or "refs/pr/N".
        is_private: whether the repository is.
        has_changed: False where the repository held the same files before.
        removed: files of an earlier publication that the commit took out.
    """

    url: str
    commit: str
    revision: str
    is_private: bool
    has_changed: bool
    removed: tuple[str, ...]


def check_target(repo_id: str, *, create_pr: bool = False, tag: str | None = None) -> None:
    """None; ValueError for a name that is no ORG/NAME, a tag that is none, or a tag on a pull request."""
    if repo_id.count("/") != 1:
        raise ValueError(f"repository {repo_id!r} is no ORG/NAME of the Hub. Name it, e.g. my-lab/regionmed-clip.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r} is no ORG/NAME of the Hub: {error}") from error
    if tag is not None and (not TAG.fullmatch(tag) or tag == "main"):
        raise ValueError(f"tag {tag!r} is none; it must be letters, digits, '.', '_' and '-', e.g. v1.0.")
    if tag is not None and create_pr:
        raise ValueError(f"tag {tag!r} and a pull request are both asked for; tag it once it is merged.")


def check_access(repo_id: str, repo_type: str, *, is_public: bool, create_pr: bool, tag: str | None) -> None:
    """None; asks the Hub whether the upload may go there, and changes nothing.

    Raises:
        ValueError: no token, one that the Hub does not know, an existing public repository against `is_public`, a tag
            that exists, a pull request on a repository that does not.
    """
    api = HfApi()
    with _told_as_value_errors(repo_id):
        if get_token() is None:
            raise ValueError(
                "there is no token of the Hub; make one that may write at its /settings/tokens, and log in by "
                "`hf auth login`, or set HF_TOKEN."
            )
        api.whoami()
        try:
            info = api.repo_info(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError as error:
            if create_pr:
                raise ValueError(
                    f"{repo_type} {repo_id} does not exist, or this token may not read it; a pull request needs one "
                    "that does. Leave --create-pr out to make it."
                ) from error
            return
        if not info.private and not is_public:
            raise ValueError(
                f"{repo_type} {repo_id} exists and is public, and --public is not given; nothing was sent. Name "
                "another repository, make it private, or add --public: a pull request there is public too."
            )
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}:
            raise ValueError(
                f"{repo_id} has a tag {tag!r}, and tags stay where they are; nothing was sent. Name another."
            )


def push(upload: Upload) -> Pushed:
    """What was done, after making the repository if needed, sending what it lacks, and looking at what arrived.

    A push that was interrupted is repeated: large files that arrived are not sent again, and none is seen by anyone
    before all are there. Files of an earlier publication that this one lacks are removed by the same commit.

    Raises:
        ValueError: the Hub refuses, somebody else committed meanwhile, or what arrived differs.
    """
    api = HfApi()
    where = {"repo_id": upload.repo_id, "repo_type": upload.repo_type}
    with _told_as_value_errors(upload.repo_id):
        if not upload.create_pr:
            sdk = {"space_sdk": SPACE_SDK} if upload.repo_type == SPACE else {}
            api.create_repo(**where, **sdk, private=not upload.is_public, exist_ok=True)
        info = api.repo_info(**where)
        if not info.private and not upload.is_public:
            raise ValueError(
                f"{upload.repo_type} {upload.repo_id} is public, and --public is not given; nothing was sent. Make it "
                "private in its settings, or add --public."
            )
        stale = tuple(name for name in api.list_repo_files(**where, revision=info.sha) if _is_stale(name, upload))
        operations = [CommitOperationAdd(name, _content(content)) for name, content in upload.files.items()]
        commit = api.create_commit(
            **where,
            operations=[*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=upload.message,
            create_pr=upload.create_pr,
            parent_commit=info.sha,
        )
        revision = commit.pr_revision if commit.pr_url else commit.oid
        _check_arrival(api, upload, revision)
        if upload.tag is not None:
            api.create_tag(**where, tag=upload.tag, revision=commit.oid)
    url = str(commit.pr_url or commit.repo_url)
    return Pushed(
        url=url, commit=commit.oid, revision=revision, is_private=bool(info.private),
        has_changed=commit.oid != info.sha, removed=stale,
    )  # fmt: skip


def _is_stale(name: str, upload: Upload) -> bool:
    """Whether a file in the repository is of an earlier publication: nobody else's is taken away."""
    if name in upload.files or name == ".gitattributes":
        return False
    folder, _, base = name.rpartition("/")
    if upload.repo_type == DATASET:
        return folder == "data"
    if upload.repo_type == SPACE:
        return True  # a Space is a program: what is not of it is of an older one
    return folder == "samples" or (not folder and Path(base).suffix in _CODE_AND_WEIGHTS)


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _check_arrival(api: HfApi, upload: Upload, revision: str) -> None:
    """None; ValueError where a file on the Hub is not the one that was sent."""
    names = list(upload.files)
    found: dict[str, Any] = {}
    for start in range(0, len(names), PATHS_A_CALL):
        some = names[start : start + PATHS_A_CALL]
        infos = api.get_paths_info(upload.repo_id, some, repo_type=upload.repo_type, revision=revision)
        found |= {info.path: info for info in infos}
    for name, content in upload.files.items():
        info = found.get(name)
        is_same = False
        if info is not None and info.lfs is not None:
            is_same = info.lfs.sha256 == _digest(hashlib.sha256(), content)
        elif info is not None:
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            is_same = info.blob_id == _digest(hashlib.sha1(b"blob %d\0" % size), content)
        if not is_same:
            raise ValueError(
                f"{name} on {upload.repo_id} at {revision} is not what was sent. Run the command again; if it stays "
                "so, delete the repository first."
            )


def _digest(digest: Any, content: Path | bytes) -> str:
    """The hash of a file or a content in hexadecimal digits."""
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(1 << 20)  # noqa: E731
        for block in iter(read, b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _told_as_value_errors(repo_id: str) -> Iterator[None]:
    """What the Hub or the network refuses, as a ValueError that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set, and publishing needs the Hub. Unset it, or add --dry-run.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{repo_id}: {_reason(error)}") from error
    except (_TRANSPORT_ERROR, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{repo_id}: the connection to the Hub failed ({type(cause).__name__}: {cause}). Run the same command "
            "again: what has arrived is not sent a second time."
        ) from error


def _reason(error: HfHubHTTPError) -> str:
    """What a refusal of the Hub means for the person who publishes."""
    status = error.response.status_code if error.response is not None else None
    said = str(error.server_message or error).strip().partition("\n")[0]
    if status == 401:
        return f"the Hub does not know this token ({said}). Log in again by `hf auth login`."
    if status == 403:
        return (
            f"this token may not write there ({said}). Use one with write access to the namespace, or --create-pr "
            "where the repository exists."
        )
    if status == 412:
        return "somebody else committed there in the meantime; look at their commit, then run the command again."
    return f"the Hub refuses ({said}). Correct it and run the same command again: what has arrived is not sent again."
