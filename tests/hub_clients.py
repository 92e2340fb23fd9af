"""The two Hubs on this machine that the tests talk to, and programs that talk to them.

The project's own (hub_server.py), and an independent one that lies beside the checkout where the project is developed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import HubServer, Token, serving
from huggingface_hub import HfApi, constants

WRITE_TOKEN = "hf_test"
TOKENS = {
    WRITE_TOKEN: Token("tester", organisations=("lab",)),
    "hf_reader": Token("reader", role="read", organisations=("lab",)),
    "hf_stranger": Token("stranger"),
    "hf_fine_reader": Token("reader", "fineGrained", ("lab",), permissions=("repo.content.read",)),
}
BLOCK_OUR_PACKAGES = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


@dataclass(frozen=True)
class AHub:
    """One of the two: its address, and the own one's state or None."""

    url: str
    own: HubServer | None

    def api(self, token: str | None = WRITE_TOKEN) -> HfApi:
        """A client; for use inside `talking_to`."""
        return HfApi(endpoint=self.url, token=token or False)

    def environment(self, home: Path, token: str | None = WRITE_TOKEN, **changes: str) -> dict[str, str]:
        """What a program needs to talk to it, with caches of its own under `home`."""
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        told = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        told |= {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**keep, **told, **({} if token is None else {"HF_TOKEN": token}), **changes}


@contextmanager
def a_hub(kind: str, repository: Path) -> Iterator[AHub]:
    """The Hub of that kind, "own" or "independent", running; skips where the independent one is absent."""
    if kind == "own":
        with serving(dict(TOKENS)) as server:
            yield AHub(server.url, server)
        return
    path = repository.parent / "shared" / "tools" / "hub_stub.py"
    if not path.is_file():
        path = Path(os.environ.get("REGIONMED_HUB_STUB", path))
    if not path.is_file():
        pytest.skip(f"no Hub stub at {path}; it lies beside the checkout where the project is developed")
    spec = importlib.util.spec_from_file_location("hub_stub", path)
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    server, _ = stub.serve()
    try:
        yield AHub(f"http://127.0.0.1:{server.server_port}", None)
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def talking_to(hub: AHub, token: str | None = WRITE_TOKEN) -> Iterator[None]:
    """huggingface_hub of this very process, which the tests keep offline, talks to that Hub with that token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        if token is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", token)
        yield


def run_python(script: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """What a script did in a process of its own, away from the checkout."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, cwd=environment["HOME"], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=480,
    )  # fmt: skip
