"""A Hub on 127.0.0.1 for the tests: the routes of the Hub's HTTP API that publishing and loading use.

`with serving() as hub:` gives a server whose `url` goes into HF_ENDPOINT. Tokens have roles; a private repository is
unknown to all but tokens of its namespace; large files go by the LFS protocol and come by a redirect, as on the Hub;
`hub.requests` lists what was asked; `hub.hold` lets an upload hang. Set HF_HUB_DISABLE_XET=1: Xet is not spoken here.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import LARGE_BYTES, LARGE_SUFFIXES, MAIN, Hub, HubError, Repository, StoredFile

KINDS = ("model", "dataset", "space")


@dataclass(frozen=True)
class Token:
    """Who asks: a user, their role ("read", "write" or "fineGrained"), their organisations, what a fine one may."""

    user: str
    role: str = "write"
    organisations: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        """Whether the namespace of a repository is the user's or one of theirs."""
        return repo_id.partition("/")[0] in (self.user, *self.organisations)


@dataclass
class HubServer:
    """A running server.

    Attributes:
        url: for HF_ENDPOINT.
        other_url: the same under another host's name, where large files lie as on the Hub: no token is sent there.
        hub: what it holds.
        tokens: secret -> who it stands for.
        requests: (method, path) in the order they came.
        received: (sha256, bytes that came) of every upload of a large file.
        hold: sha256 of large files whose upload hangs until the server is closed.
    """

    url: str
    other_url: str
    hub: Hub
    tokens: dict[str, Token]
    requests: list[tuple[str, str]] = field(default_factory=list)
    received: list[tuple[str, int]] = field(default_factory=list)
    hold: set[str] = field(default_factory=set)
    holding: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)


class HubRequest(BaseHTTPRequestHandler):
    """One request; `server_state` is set by `serving`."""

    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *_: Any) -> None:
        """None; the tests read `requests` instead."""

    def do_GET(self) -> None:
        """None; answers, refusals with the headers by which huggingface_hub knows them."""
        state, parts = self.server_state, urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.content = self._read_body()
        with state.hub.lock:
            state.requests.append((self.command, unquote(parts.path)))
        try:
            self._route(parts.path)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self._send(error.status, {"error": str(error)}, headers)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def _route(self, path: str) -> None:
        """None; gives the request to what answers its path."""
        large = re.fullmatch(r"/large/([0-9a-f]{64})", path)
        batch = re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        resolve = re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        api = re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.*))?)?", path)
        if path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/validate-yaml":
            self._validate_yaml()
        elif path == "/api/repos/create":
            self._create()
        elif large:
            self._large(large[1])
        elif batch:
            self._batch(batch[1] or "model", batch[2])
        elif resolve:
            repository = self._repository(resolve[1] or "model", resolve[2])
            self._resolve(repository, unquote(resolve[3]), unquote(resolve[4]))
        elif api:
            self._api(api[1], api[2], api[3] or "", api[4] or "")
        else:
            raise HubError(404, "", f"no route for {self.command} {path}")

    def _token(self) -> Token | None:
        secret = self.headers.get("authorization", "").removeprefix("Bearer ")
        if secret and secret not in self.server_state.tokens:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return self.server_state.tokens.get(secret)

    def _repository(self, kind: str, repo_id: str, *, writes: bool = False) -> Repository:
        """The repository, where this token may see it; a private one is unknown to strangers, as on the Hub."""
        token, found = self._token(), self.server_state.hub.repositories.get((kind, repo_id))
        is_member = token is not None and token.owns(repo_id)
        if found is None or (found.is_private and not is_member):
            raise HubError(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if writes and token is None:
            raise HubError(401, "", "Invalid username or password.")
        is_pull_request = self.query.get("create_pr") == "1"
        if writes and (token.role != "write" or not (is_member or is_pull_request)):
            raise HubError(403, "", "You don't have the rights to write there with this token")
        return found

    def _whoami(self) -> None:
        token = self._token()
        if token is None:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        organisations = [{"name": name} for name in token.organisations]
        scopes = {"scoped": [{"permissions": list(token.permissions)}]}
        access = {"role": token.role, **({"fineGrained": scopes} if token.role == "fineGrained" else {})}
        auth = {"type": "access_token", "accessToken": access}
        self._send(200, {"type": "user", "name": token.user, "orgs": organisations, "auth": auth})

    def _validate_yaml(self) -> None:
        """None; 400 for a card without metadata, as the Hub's own check of every pushed README.md answers."""
        has_metadata = self._json()["content"].startswith("---\n")
        errors = [] if has_metadata else [{"message": "the card has no metadata"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create(self) -> None:
        token, told = self._token(), self._json()
        if token is None:
            raise HubError(401, "", "Invalid username or password.")
        kind, repo_id = told.get("type", "model"), f"{told.get('organization') or token.user}/{told['name']}"
        if token.role != "write" or not token.owns(repo_id):
            raise HubError(403, "", f"You don't have the rights to create a {kind} under this namespace")
        is_private = told.get("visibility") == "private" or bool(told.get("private"))
        address = {"url": f"{self.server_state.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}", "name": repo_id}
        try:
            with self.server_state.hub.lock:
                self.server_state.hub.create(kind, repo_id, is_private=is_private)
        except HubError as error:
            self._send(error.status, {"error": str(error), **address})
            return
        self._send(200, address)

    def _large(self, sha256: str) -> None:
        """None; takes or gives a large file by its sha256; the address is the secret, as a signed one is."""
        state = self.server_state
        if self.command == "PUT":
            if sha256 in state.hold:
                state.holding.set()
                state.closing.wait()
                self.close_connection = True
                return
            with state.hub.lock:
                state.received.append((sha256, len(self.content)))
                state.hub.store(sha256, self.content)
            self._send(200, b"")
        elif sha256 in state.hub.large:
            self._send_range(state.hub.large[sha256], {"ETag": f'"{sha256}"'})
        else:
            raise HubError(404, "EntryNotFound", "no such file")

    def _batch(self, kind: str, repo_id: str) -> None:
        """None; tells for every large file whether it is here, or where to put it: who reads may propose a change."""
        token = self._token()
        self._repository(kind, repo_id)
        if token is None or token.role != "write":
            raise HubError(403, "", "You don't have the rights to send files with this token")
        objects = []
        for asked in self._json()["objects"]:
            told = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_state.hub.large:
                told["actions"] = {"upload": {"href": f"{self.server_state.url}/large/{asked['oid']}", "header": {}}}
            objects.append(told)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _api(self, kind: str, repo_id: str, what: str, rest: str) -> None:
        """None; answers the routes under /api/models/ORG/NAME/ and their like."""
        writes = what in ("commit", "preupload", "tag")
        repository = self._repository(kind, repo_id, writes=writes)
        with self.server_state.hub.lock:
            if what in ("", "revision"):
                self._send(200, repository.info(unquote(rest) or MAIN))
            elif what == "preupload":
                self._preupload(repository, unquote(rest))
            elif what == "commit":
                self._commit(repository, unquote(rest))
            elif what == "tree":
                revision, _, folder = rest.partition("/")
                is_recursive = self.query.get("recursive", "").lower() in ("1", "true")
                self._send(200, repository.entries(unquote(revision), unquote(folder), is_recursive=is_recursive))
            elif what == "paths-info":
                files = repository.head(unquote(rest)).files
                asked = self._json()["paths"] if "json" in self.headers["Content-Type"] else self._form()["paths"]
                self._send(200, [files[name].entry(name) for name in asked if name in files])
            elif what == "refs":
                self._send(200, _told_refs(repository))
            elif what == "commits":
                told = [{"id": one.oid, "title": one.title, "message": "", "authors": [{"user": "tester"}],
                         "date": "2026-01-01T00:00:00.000Z"} for one in repository.history(unquote(rest))]  # fmt: skip
                self._send(200, told)
            elif what == "tag" and self.command == "POST":
                name = f"refs/tags/{self._json()['tag']}"
                if name in repository.refs:
                    raise HubError(409, "", "Tag reference exists already")
                repository.refs[name] = repository.head(unquote(rest)).oid
                self._send(200, {})
            else:
                raise HubError(404, "", f"no route for {what}")

    def _preupload(self, repository: Repository, revision: str) -> None:
        files = repository.head(revision).files
        told = []
        for asked in self._json()["files"]:
            is_large = asked["path"].endswith(LARGE_SUFFIXES) or asked["size"] > LARGE_BYTES
            old = files.get(asked["path"])
            mode = {"path": asked["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            told.append({**mode, "oid": None if old is None else old.sha256 or old.oid})
        self._send(200, {"files": told, "commitOid": repository.head(revision).oid})

    def _commit(self, repository: Repository, revision: str) -> None:
        lines = [json.loads(line) for line in self.content.splitlines()]
        for line in lines:
            if line["key"] == "file":
                line["value"]["content"] = base64.b64decode(line["value"]["content"]).hex()
        done = self.server_state.hub.commit(repository, revision, lines, is_pr=self.query.get("create_pr") == "1")
        kind = "" if repository.kind == "model" else f"{repository.kind}s/"
        address = f"{self.server_state.url}/{kind}{repository.repo_id}"
        told = {"success": True, "commitOid": done["oid"], "commitUrl": f"{address}/commit/{done['oid']}"}
        if done["number"] is not None:
            told["pullRequestUrl"] = f"{address}/discussions/{done['number']}"
        self._send(200, {**told, "hookOutput": ""})

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        """None; a file's content, or for a large one the address where it lies."""
        commit = repository.head(revision)
        file: StoredFile | None = commit.files.get(path)
        if file is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, {"error": "Entry not found"}, {**headers, "X-Repo-Commit": commit.oid})
            return
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"'}
        if file.sha256 is None:
            self._send_range(file.content, headers)
            return
        linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.server_state.other_url}/large/{file.sha256}"})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        """None; the content, or the part of it that a Range header asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, content, {**headers, "Accept-Ranges": "bytes"})
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        told = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], told)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> bytes:
        """The content of the request, by length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        blocks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _json(self) -> Any:
        return json.loads(self.content)

    def _form(self) -> dict[str, list[str]]:
        return parse_qs(self.content.decode())


def _told_refs(repository: Repository) -> dict[str, Any]:
    """Branches, tags and pull requests as the API lists them."""
    told: dict[str, Any] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    for ref, commit in repository.refs.items():
        _, kind, name = ref.split("/", 2)
        place = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
        told[place].append({"name": name, "ref": ref, "targetCommit": commit})
    return told


@contextmanager
def serving(tokens: dict[str, Token]) -> Iterator[HubServer]:
    """A server on a free port of 127.0.0.1, closed at the end."""
    handler = type("Handler", (HubRequest,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    urls = [f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost")]
    state = HubServer(*urls, Hub(), tokens)
    handler.server_state = state
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
