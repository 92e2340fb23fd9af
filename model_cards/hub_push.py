"""Sends files to a repository of the Hub: one commit or one pull request, private unless asked, nothing sent twice."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
MODEL, DATASET, SPACE = "model", "dataset", "space"
PATHS_A_CALL = 200
SPACE_SDK = "gradio"
MANIFEST_FILE = ".regionmed_publication.json"  # in the repository: the names that publications put there
FIRST_FILE = ".gitattributes"  # that the Hub itself puts into every repository
CONFIG_FILE, SHARD_SUFFIX = "config.json", ".parquet"
LOADED_BY_NAME = re.compile(  # what from_pretrained would read beside ours, or in their place
    r"adapter_config\.json|(?:adapter_)?(?:pytorch_)?model(?:[.-].*)?\.(?:safetensors|bin)(?:\.index\.json)?"
    r"|(?:pre|video_pre)?processor_config\.json|generation_config\.json|chat_template\.(?:json|jinja)"
    r"|tokenizer.*\.(?:json|model)|(?:added_tokens|special_tokens_map)\.json|vocab\.(?:json|txt)|merges\.txt"
)
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
        kept: files of others, which stay as they were.
        replaced: files of others that had the name of a published one.
    """

    url: str
    commit: str
    revision: str
    is_private: bool
    has_changed: bool
    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def check_target(repo_id: str, *, create_pr: bool = False, tag: str | None = None) -> None:
    """None; ValueError for a name that is no ORG/NAME, a tag that is none, or a tag on a pull request."""
    check_repo_id(repo_id)
    if tag is not None and (not TAG.fullmatch(tag) or tag == "main"):
        raise ValueError(f"tag {tag!r} is none; it must be letters, digits, '.', '_' and '-', e.g. v1.0.")
    if tag is not None and create_pr:
        raise ValueError(f"tag {tag!r} and a pull request are both asked for; tag it once it is merged.")


def check_repo_id(repo_id: str) -> None:
    """None; ValueError for a name that is no ORG/NAME."""
    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"repository {repo_id!r} is no ORG/NAME of the Hub. Name it, e.g. my-lab/regionmed-clip.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r} is no ORG/NAME of the Hub: {error}") from error


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
    before all are there. Files of an earlier publication that this one lacks are removed by the same commit; which
    those are, MANIFEST_FILE in the repository says.

    Raises:
        ValueError: the Hub refuses, somebody else committed meanwhile, what arrived differs, or somebody else's file
            there would be loaded in the place of what is sent.
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
        there = frozenset(api.list_repo_files(**where, revision=info.sha)) - {FIRST_FILE}
        own = _published_before(api, upload, info.sha) if MANIFEST_FILE in there else frozenset()
        stale = tuple(sorted((there & own) - set(upload.files)))
        foreign = there - own - {MANIFEST_FILE}
        _refuse_what_would_be_loaded(foreign, upload)
        files = {**upload.files, MANIFEST_FILE: _manifest(upload)}
        operations = [CommitOperationAdd(name, _content(content)) for name, content in files.items()]
        commit = api.create_commit(
            **where,
            operations=[*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=upload.message,
            create_pr=upload.create_pr,
            parent_commit=info.sha,
        )
        revision = commit.pr_revision if commit.pr_url else commit.oid
        _check_arrival(api, upload, files, revision)
        if upload.tag is not None:
            api.create_tag(**where, tag=upload.tag, revision=commit.oid)
    url = str(commit.pr_url or commit.repo_url)
    return Pushed(
        url=url, commit=commit.oid, revision=revision, is_private=bool(info.private),
        has_changed=commit.oid != info.sha, removed=stale, kept=tuple(sorted(foreign - set(upload.files))),
        replaced=tuple(sorted(foreign & set(upload.files))),
    )  # fmt: skip


def _manifest(upload: Upload) -> bytes:
    """The content of MANIFEST_FILE: the same for the same names."""
    told = {"published_by": "regionmed-publish", "files": sorted(upload.files)}
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _published_before(api: HfApi, upload: Upload, revision: str) -> frozenset[str]:
    """The names that the publication before put into the repository, as its MANIFEST_FILE says."""
    with tempfile.TemporaryDirectory(prefix="regionmed-publish-") as folder:
        where = {"repo_type": upload.repo_type, "revision": revision, "local_dir": folder}
        told = Path(api.hf_hub_download(upload.repo_id, MANIFEST_FILE, **where)).read_text(encoding="utf-8")
    try:
        return frozenset(map(str, json.loads(told)["files"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{MANIFEST_FILE} of {upload.repo_id} is not what regionmed-publish writes ({error!r}); nothing was sent. "
            "Delete it there: then every file counts as somebody else's, and stays."
        ) from error


def _refuse_what_would_be_loaded(foreign: frozenset[str], upload: Upload) -> None:
    """None; ValueError for other people's files that would be loaded in the place of what is published, or with it."""
    folders = {name.rpartition("/")[0] for name in upload.files if name.rpartition("/")[2] == CONFIG_FILE}
    shards = {name.rpartition("/")[0] for name in upload.files if name.endswith(SHARD_SUFFIX)}
    found = []
    for name in sorted(foreign - set(upload.files)):
        folder, _, base = name.rpartition("/")
        is_shard = folder in shards and base.endswith(SHARD_SUFFIX)
        if is_shard or (folder in folders and LOADED_BY_NAME.fullmatch(base)):
            found.append(name)
    if found:
        raise ValueError(
            f"{upload.repo_id} holds {some_of(found)}, which no publication of ours put there, and who loads it would "
            "get that in the place of what you publish, or with it; nothing was sent. Delete it there (the history "
            "keeps it), or name another repository."
        )


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _check_arrival(api: HfApi, upload: Upload, files: Mapping[str, Path | bytes], revision: str) -> None:
    """None; ValueError where a file on the Hub is not the one that was sent."""
    names = list(files)
    found: dict[str, Any] = {}
    for start in range(0, len(names), PATHS_A_CALL):
        some = names[start : start + PATHS_A_CALL]
        infos = api.get_paths_info(upload.repo_id, some, repo_type=upload.repo_type, revision=revision)
        found |= {info.path: info for info in infos}
    for name, content in files.items():
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
