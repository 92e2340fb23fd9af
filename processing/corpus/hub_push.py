"""Sends files to a repository of the Hub: one commit or one pull request, private unless asked, nothing sent twice."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
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
MANIFEST_FILE = ".regionmed_publication.json"  # in the repository: what the publication put there, with its hashes
FIRST_FILE = ".gitattributes"  # that the Hub itself puts into every repository
CONFIG_FILE, SHARD_SUFFIX = "config.json", ".parquet"
LOADED_BY_NAME = re.compile(  # what from_pretrained would read beside ours, or in their place
    r"adapter_config\.json|(?:adapter_)?(?:pytorch_)?model(?:[.-].*)?\.(?:safetensors|bin)(?:\.index\.json)?"
    r"|(?:pre|video_pre)?processor_config\.json|generation_config\.json|chat_template\.(?:json|jinja)"
    r"|tokenizer.*\.(?:json|model)|(?:added_tokens|special_tokens_map)\.json|vocab\.(?:json|txt)|merges\.txt"
)
TEMPLATES_FOLDER = "additional_chat_templates"  # beside CONFIG_FILE: every *.jinja in it is loaded
READ_BY_SPACE = re.compile(  # modules that hide installed ones, and what the Hub installs first
    r"[^/]+\.(?:py|pyc|so)|[^/]+/__init__\.(?:py|pyc|so)|(?:pre-requirements|packages)\.txt"
)
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # also without a file's name: of this machine
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
        kept: files of others, or changed by them, which stay as they were.
        replaced: files of others, or changed by them, that had the name of a published one and another content.
    """

    url: str
    commit: str
    revision: str
    is_private: bool
    has_changed: bool
    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """What became of the files that were there, for a person."""
        for said, names in (
            ("Removed, of an earlier publication", self.removed),
            ("Left there, being of others or changed by them", self.kept),
            ("Replaced, though it was of others or changed by them (the commit before keeps it)", self.replaced),
        ):
            if names:
                yield f"{said}: {some_of(names)}."


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


def check_access(repo_id: str, repo_type: str, *, is_public: bool, create_pr: bool) -> None:
    """None; asks the Hub whether the upload may go there, and changes nothing.

    Raises:
        ValueError: no token, one that the Hub does not know or that surely may not write there, an existing public
            repository against `is_public`, a pull request on a repository that does not exist.
    """
    api = HfApi()
    with told_as_value_errors(repo_id):
        if get_token() is None:
            raise ValueError(
                "there is no token of the Hub; make one that may write at its /settings/tokens, and log in by "
                "`hf auth login`, or set HF_TOKEN."
            )
        _check_token(api.whoami(), repo_id, create_pr)
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


def _check_token(told: Mapping[str, Any], repo_id: str, create_pr: bool) -> None:
    """None; ValueError where `whoami` tells for certain that this token may not write there."""
    token = (told.get("auth") or {}).get("accessToken") or {}
    granted = token.get("fineGrained")
    if token.get("role") == "read" or (granted and "write" not in json.dumps(granted)):
        raise ValueError(
            f"{repo_id}: this token may not write there, for it only reads. Make one with write access at the Hub's "
            "/settings/tokens, and log in by `hf auth login`, or set HF_TOKEN."
        )
    names = [told["name"], *(one["name"] for one in told.get("orgs") or ())]
    namespace = repo_id.partition("/")[0]
    if not create_pr and namespace.lower() not in {name.lower() for name in names}:
        raise ValueError(
            f"{repo_id}: this token may not write there; it is of {', '.join(names)}, and {namespace} is none of "
            "these. Name one of them, take a token of a member, or add --create-pr where the repository exists."
        )


def push(upload: Upload) -> Pushed:
    """What was done, after making the repository if needed, sending what it lacks, and looking at what arrived.

    A push that was interrupted is repeated: large files that arrived are not sent again, and none is seen by anyone
    before all are there. Files of an earlier publication that this one lacks are removed by the same commit; which
    those are, MANIFEST_FILE in the repository says, and a file whose content is no longer what it says stays. A tag
    that points at these very files already stays where it is.

    Raises:
        ValueError: the Hub refuses, somebody else committed meanwhile, what arrived differs, the tag is on other
            files, or somebody else's file there would be loaded in the place of what is sent.
    """
    check_target(upload.repo_id, create_pr=upload.create_pr, tag=upload.tag)
    api = HfApi()
    where = {"repo_id": upload.repo_id, "repo_type": upload.repo_type}
    with told_as_value_errors(upload.repo_id):
        hashes = {name: hashes_of(content) for name, content in upload.files.items()}
        files = {**upload.files, MANIFEST_FILE: _manifest(hashes)}
        hashes[MANIFEST_FILE] = hashes_of(files[MANIFEST_FILE])
        if not upload.create_pr:
            sdk = {"space_sdk": SPACE_SDK} if upload.repo_type == SPACE else {}
            api.create_repo(**where, **sdk, private=not upload.is_public, exist_ok=True)
        info = api.repo_info(**where)
        if not info.private and not upload.is_public:
            raise ValueError(
                f"{upload.repo_type} {upload.repo_id} is public, and --public is not given; nothing was sent. Make it "
                "private in its settings, or add --public."
            )
        is_tagged = _is_tagged(api, upload, hashes)
        stale, kept, replaced = _compare(api, upload, hashes, info.sha)
        operations = [CommitOperationAdd(name, _content(content)) for name, content in files.items()]
        commit = api.create_commit(
            **where,
            operations=[*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=upload.message,
            create_pr=upload.create_pr,
            parent_commit=info.sha,
        )
        revision = commit.pr_revision if commit.pr_url else commit.oid
        _check_arrival(api, upload, hashes, revision)
        if upload.tag is not None and not is_tagged:
            api.create_tag(**where, tag=upload.tag, revision=commit.oid)
    return Pushed(
        url=str(commit.pr_url or commit.repo_url), commit=commit.oid, revision=revision, is_private=bool(info.private),
        has_changed=commit.oid != info.sha, removed=stale, kept=kept, replaced=replaced,
    )  # fmt: skip


def hashes_of(content: Path | bytes) -> tuple[str, str]:
    """Both hashes by which the Hub may tell a file: git's sha1 of a small one, sha256 of a large one; hexadecimal."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digests = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(1 << 20)  # noqa: E731
        for block in iter(read, b""):
            for digest in digests:
                digest.update(block)
    return digests[0].hexdigest(), digests[1].hexdigest()


def hashes_there(
    api: HfApi, repo_id: str, repo_type: str, names: Collection[str], revision: str | None
) -> dict[str, str]:
    """One of both hashes of every named file that a repository holds at a revision; see `hashes_of`."""
    found: dict[str, str] = {}
    asked = sorted(names)
    for start in range(0, len(asked), PATHS_A_CALL):
        some = asked[start : start + PATHS_A_CALL]
        for info in api.get_paths_info(repo_id, some, repo_type=repo_type, revision=revision):
            if isinstance(info, RepoFile):
                found[info.path] = info.blob_id if info.lfs is None else info.lfs.sha256
    return found


def _manifest(hashes: Mapping[str, tuple[str, str]]) -> bytes:
    """The content of MANIFEST_FILE: the same for the same files."""
    told = {"published_by": "regionmed-clip", "files": dict(sorted(hashes.items()))}
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _published_before(api: HfApi, upload: Upload, revision: str) -> dict[str, tuple[str, ...]]:
    """The names that the publication before put into the repository, each with its hashes: what MANIFEST_FILE says."""
    with tempfile.TemporaryDirectory(prefix="regionmed-publish-") as folder:
        where = {"repo_type": upload.repo_type, "revision": revision, "local_dir": folder}
        told = Path(api.hf_hub_download(upload.repo_id, MANIFEST_FILE, **where)).read_bytes()
    try:
        return {name: tuple(map(str, known)) for name, known in json.loads(told)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{MANIFEST_FILE} of {upload.repo_id} is not what regionmed-publish writes ({error!r}); nothing was sent. "
            "Delete it there: then every file counts as somebody else's, and stays."
        ) from error


def _compare(
    api: HfApi, upload: Upload, hashes: Mapping[str, tuple[str, str]], revision: str
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What of the repository is to be removed, what of others is kept there, and what of others is replaced."""
    names = api.list_repo_files(upload.repo_id, repo_type=upload.repo_type, revision=revision)
    there = frozenset(names) - {FIRST_FILE}
    told = _published_before(api, upload, revision) if MANIFEST_FILE in there else {}
    asked = there & (told.keys() | upload.files.keys())
    found = hashes_there(api, upload.repo_id, upload.repo_type, asked, revision)
    own = frozenset(name for name, known in told.items() if found.get(name) in known)
    foreign = there - own - {MANIFEST_FILE}
    _refuse_what_would_be_loaded(foreign, upload)
    replaced = (name for name in foreign & upload.files.keys() if found.get(name) not in hashes[name])
    stale, kept = own - upload.files.keys(), foreign - upload.files.keys()
    return tuple(sorted(stale)), tuple(sorted(kept)), tuple(sorted(replaced))


def _is_tagged(api: HfApi, upload: Upload, hashes: Mapping[str, tuple[str, str]]) -> bool:
    """Whether the tag is there, on a commit that holds exactly these files; ValueError where it is on another."""
    where = {"repo_id": upload.repo_id, "repo_type": upload.repo_type}
    if upload.tag is None or upload.tag not in {ref.name for ref in api.list_repo_refs(**where).tags}:
        return False
    if _differing(api, upload, hashes, upload.tag):
        raise ValueError(
            f"{upload.repo_id} has a tag {upload.tag!r} on other files, and tags stay where they are; nothing was "
            "sent. Name another."
        )
    return True


def _refuse_what_would_be_loaded(foreign: frozenset[str], upload: Upload) -> None:
    """None; ValueError for other people's files that would be loaded in the place of what is published, or with it."""
    folders = {name.rpartition("/")[0] for name in upload.files if name.rpartition("/")[2] == CONFIG_FILE}
    shards = {name.rpartition("/")[0] for name in upload.files if name.endswith(SHARD_SUFFIX)}
    found = []
    for name in sorted(foreign - set(upload.files)):
        folder, _, base = name.rpartition("/")
        is_shard = folder in shards and base.endswith(SHARD_SUFFIX)
        is_read_by_space = upload.repo_type == SPACE and READ_BY_SPACE.fullmatch(name)
        is_template = base.endswith(".jinja") and folder in {f"{one}/{TEMPLATES_FOLDER}".lstrip("/") for one in folders}
        is_loaded = folder in folders and LOADED_BY_NAME.fullmatch(base)
        if is_shard or is_read_by_space or is_template or is_loaded:
            found.append(name)
    if found:
        raise ValueError(
            f"{upload.repo_id} holds {some_of(found)}, which no publication of ours put there as it is, and who "
            "loads it would get that in the place of what you publish, or with it; nothing was sent. Delete it there "
            "(the history keeps it), or name another repository."
        )


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _differing(api: HfApi, upload: Upload, hashes: Mapping[str, tuple[str, str]], revision: str) -> list[str]:
    """The names whose file at that revision is not the one of these hashes, or is absent."""
    found = hashes_there(api, upload.repo_id, upload.repo_type, hashes, revision)
    return [name for name, known in hashes.items() if found.get(name) not in known]


def _check_arrival(api: HfApi, upload: Upload, hashes: Mapping[str, tuple[str, str]], revision: str) -> None:
    """None; ValueError where a file on the Hub is not the one that was sent."""
    wrong = _differing(api, upload, hashes, revision)
    if wrong:
        raise ValueError(
            f"what arrived on {upload.repo_id} at {revision} is not what was sent: {some_of(wrong)}. Run the command "
            "again; if it stays so, delete the repository first."
        )


@contextmanager
def told_as_value_errors(repo_id: str) -> Iterator[None]:
    """What the Hub or the network refuses, as a ValueError that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set, and publishing needs the Hub. Unset it, or add --dry-run.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{repo_id}: {_reason(error)}") from error
    except (_TRANSPORT_ERROR, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        for one in (error, cause):
            if isinstance(one, OSError) and (one.filename is not None or one.errno in LOCAL_ERRORS):
                raise ValueError(f"{repo_id}: {one}; that is of this machine. Correct it, and run it again.") from error
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
