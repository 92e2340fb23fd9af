"""Patterns of what must not reach the Hub: credentials, local paths, pickles; where they stand, never their value."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SECRET_VALUE = r"(?=[^\s\"']*\d)[A-Za-z0-9/+_=.!@#$%^&*-]{10,}"
SECRET_PATTERNS: dict[str, str] = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{30,}\b",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a signed web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a password in a web address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>{}$]{3,}@[\w.-]+",
    "a password or key in an assignment": (
        r"(?i:\b\w*(?:password|passwd|secret|(?:api|access|account|wandb)[_-]?key|auth[_-]?token|hf[_-]token)\b)"
        rf"\\?[\"']?\s*[:=]\s*\\?[\"']?{_SECRET_VALUE}"
    ),
    "a password or key": rf"--?(?i:(?:\w+-)*(?:password|passwd|secret|key|token))\b[\s=,\"'\\]+{_SECRET_VALUE}",
    "a bearer token": r"\b(?i:bearer)\s+(?=\S*\d)[A-Za-z0-9._~+/-]{16,}",
}
_ROOTS = "home|Users|root|mnt|media|srv|scratch|data|work|tmp|var|opt|gpfs|lustre|nfs|Volumes"
PATH_PATTERN = re.compile(
    rf"(?<![\w.~/}}<-])(?:~|/(?:{_ROOTS})|/[\w.@+~-]+/[\w.@+~-]+)/[\w.@+/~-]*\w"
    r"|(?<!\w)[A-Za-z]:\\{1,2}(?:[\w.-]+\\{1,2})+[\w.-]*"
    r"|(?<![\w\\])\\\\[\w.-]+\\[\w$.-]+(?:\\[\w$.-]*)*"
    r"|\bfile://\S+"
)
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5"})
_SECRETS = {kind: re.compile(pattern) for kind, pattern in SECRET_PATTERNS.items()}
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_NUMPY_START = b"\x93NUMPY"


@dataclass(frozen=True, slots=True)
class Leak:
    """What a text holds, [start, stop) in characters, and its kind in words; the value is not kept."""

    kind: str
    start: int
    stop: int


def find_secrets(text: str) -> Iterator[Leak]:
    """Every credential that a pattern knows, kind by kind."""
    for kind, pattern in _SECRETS.items():
        yield from (Leak(kind, *match.span()) for match in pattern.finditer(text))


def find_local_paths(text: str) -> Iterator[Leak]:
    """Every path of a file system that would name persons, machines or projects: /home/NAME, C:\\NAME, \\\\SERVER."""
    yield from (Leak("a local path", *match.span()) for match in PATH_PATTERN.finditer(text))


def holds_pickle(path: Path) -> bool:
    """Whether reading the file could run code: by its suffix, or a pickle under another name."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] in _PICKLE_STARTS or start == _NUMPY_START:
        return True
    if start[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return False


def shorten_paths(text: str) -> str:
    """The text with every local path cut to its last part, behind `.../`."""
    return PATH_PATTERN.sub(lambda match: ".../" + re.split(r"[/\\]", match.group().rstrip("/\\"))[-1], text)
