"""Repositories as the Hub keeps them: commits of files, branches, tags, pull requests, and a store of large files.

No network here; hub_server.py puts HTTP before it. Written for the tests from what huggingface_hub sends and expects.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE_SUFFIXES = (".safetensors", ".parquet", ".png", ".webp", ".jpg", ".onnx", ".bin")
LARGE_BYTES = 10 * 2**20
MAIN = "main"
FIRST_FILE = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """A refusal: HTTP status, the Hub's own error code, a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit; `sha256` of a large one, whose content is in the store, else None."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """git's hash: of the content, or of the pointer that stands for a large file."""
        content = self.pointer if self.sha256 else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The text that git keeps in place of a large file."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    def entry(self, path: str) -> dict[str, Any]:
        """The file as `tree` and `paths-info` list it."""
        told: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.sha256:
            told["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        return told


@dataclass(frozen=True)
class Commit:
    """The files after a change, its title and its parent."""

    oid: str
    files: Mapping[str, StoredFile]
    title: str
    parent: str | None


@dataclass
class Repository:
    """One repository of one kind ("model", "dataset", "space")."""

    kind: str
    repo_id: str
    is_private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main", "refs/tags/v1", "refs/pr/1" -> commit

    def head(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or hash; 404 for none of these."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def add(self, ref: str, files: Mapping[str, StoredFile], title: str, parent: str | None) -> Commit:
        """The new commit, to which `ref` now points."""
        listing = json.dumps([title, parent, sorted((name, file.oid) for name, file in files.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        commit = self.commits[oid] = Commit(oid, dict(files), title, parent)
        self.refs[ref] = oid
        return commit

    def history(self, revision: str) -> list[Commit]:
        """The commits of a revision, the newest first."""
        found = [self.head(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def entries(self, revision: str, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
        """What lies in a folder, folders first; 404 where there is none."""
        start = f"{folder}/" if folder else ""
        folders: set[str] = set()
        files = []
        for name, file in sorted(self.head(revision).files.items()):
            if name.startswith(start):
                parts = name[len(start) :].split("/")
                ends = range(1, len(parts)) if is_recursive else range(1, min(2, len(parts)))
                folders |= {start + "/".join(parts[:end]) for end in ends}
                if is_recursive or len(parts) == 1:
                    files.append(file.entry(name))
        if folder and not files and not folders:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        return [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)] + files

    def info(self, revision: str) -> dict[str, Any]:
        """What the API tells of the repository at a revision."""
        commit = self.head(revision)
        card = commit.files.get("README.md", StoredFile(b"")).content.decode("utf-8", "replace")
        metadata = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        data = yaml.safe_load(metadata[1]) if metadata else {}
        config = json.loads(commit.files["config.json"].content) if "config.json" in commit.files else {}
        told = {"id": self.repo_id, "author": self.repo_id.partition("/")[0], "sha": commit.oid, "cardData": data}
        return {
            **told,
            "private": self.is_private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": data.get("tags", []),
            "pipeline_tag": data.get("pipeline_tag"),
            "library_name": data.get("library_name"),
            "config": {name: config[name] for name in ("architectures", "model_type", "auto_map") if name in config},
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
        }


class Hub:
    """All repositories, and the large files by their sha256."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}

    def create(self, kind: str, repo_id: str, *, is_private: bool) -> Repository:
        """The new repository with its first commit; 409 where it exists."""
        if (kind, repo_id) in self.repositories:
            raise HubError(409, "", "You already created this repo")
        made = self.repositories[kind, repo_id] = Repository(kind, repo_id, is_private)
        made.add(f"refs/heads/{MAIN}", {".gitattributes": StoredFile(FIRST_FILE)}, "initial commit", None)
        return made

    def store(self, sha256: str, content: bytes) -> None:
        """None; keeps a large file; 400 where it is not what was announced."""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "", "the content is not what its sha256 says")
        self.large[sha256] = content

    def commit(self, repository: Repository, revision: str, lines: list[dict[str, Any]], *, is_pr: bool) -> dict:
        """`oid`, and `number` of the pull request, of the change that the lines of a commit describe."""
        parent = repository.head(revision)
        files = dict(parent.files)
        title = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.oid):
                    raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
            else:
                self._apply(files, line["key"], value)
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
        ref = f"refs/pr/{number}" if is_pr else revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        commit = repository.add(ref, files, title, parent.oid)
        return {"oid": commit.oid, "number": number if is_pr else None}

    def _apply(self, files: dict[str, StoredFile], key: str, value: Mapping[str, Any]) -> None:
        """None; one line of a commit done to the files."""
        path = value["path"]
        if key == "file":
            files[path] = StoredFile(bytes.fromhex(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.large:
                raise HubError(400, "", f"{path} points to a large file that was never sent")
            files[path] = StoredFile(self.large[value["oid"]], value["oid"])
        elif key == "deletedFile":
            if path not in files:
                raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            del files[path]
        else:
            raise HubError(400, "", f"unknown operation {key}")
