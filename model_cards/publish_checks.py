"""What is refused before anything is published: credentials, personal data, local paths, pickles, bare results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open

from regionmed_clip.processing.corpus.phi_patterns import PHI_KINDS, find_phi

from .leak_patterns import find_local_paths, find_secrets, holds_pickle
from .picture_parts import PROFILE, telling_parts

OWN_FOLDER = Path(__file__).resolve().parent
PHI_PREFIX, PROFILE_RULE = "phi-", "picture-profile"
ACCEPTABLE = (
    "local-path",
    PROFILE_RULE,
    *(f"{PHI_PREFIX}{kind}" for kind in PHI_KINDS),
)  # a person may look at these and let them pass
TEXT_SUFFIXES = frozenset(
    {".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".jinja", ".html", ".css", ".js", ".csv", ".toml"}
)
UNREAD_SUFFIXES = frozenset({".model"})  # SentencePiece: word pieces in a binary form
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "merges.txt"})  # word pieces: no sentence to find PHI in
OWN_TEXTS = frozenset({"LICENSE", "code_license.txt", "requirements.txt"})
NOT_PERSONAL = frozenset({"url"})  # a card links to papers and data
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_HASH = re.compile(r"\b(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b|\b[0-9a-f]{32,}\b")
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason not to publish: the rule that `--accept` may name, the place, and what to do."""

    rule: str
    place: str
    reason: str

    def line(self) -> str:
        """The problem for a person."""
        return f"{self.place}: {self.reason} [{self.rule}]"


def refuse_problems(problems: Sequence[Problem], accepted: Sequence[str] = (), what: str = "folder") -> list[Problem]:
    """The accepted problems; ValueError with all others.

    Args:
        accepted: rules of ACCEPTABLE whose breaches a person has looked at.
        what: is being published, for the message.
    """
    unknown = sorted(set(accepted) - set(ACCEPTABLE))
    if unknown:
        raise ValueError(f"--accept {unknown[0]} cannot be given; rules that a person may let pass: {ACCEPTABLE}.")
    refused = [problem for problem in problems if problem.rule not in accepted]
    if refused:
        lines = "\n".join(f"  {problem.line()}" for problem in refused)
        way_out = ""
        if any(problem.rule in ACCEPTABLE for problem in refused):
            way_out = " For what you have looked at and found harmless, add --accept RULE."
        raise ValueError(f"this {what} is not published; nothing was sent:\n{lines}\nRemove what they name.{way_out}")
    return [problem for problem in problems if problem.rule in accepted]


def find_problems(folder: Path) -> list[Problem]:
    """Every reason not to publish the folder, in the order of its files."""
    problems = []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        problems += _problems_of_file(path, path.relative_to(folder).as_posix())
    return problems


def _problems_of_file(path: Path, name: str) -> Iterator[Problem]:
    """Every reason not to publish one file."""
    if path.is_symlink():
        yield Problem("link", name, "a link leads out of the folder; put the file itself there")
        return
    if any(part.startswith(".") for part in Path(name).parts):
        yield Problem("hidden-file", name, "hidden files hold local settings; take it out")
    if holds_pickle(path):
        yield Problem("pickle", name, "reading it could run code; publish safetensors or JSON")
        return
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        yield from _problems_of_tensors(path, name)
    elif suffix in PICTURE_SUFFIXES:
        yield from _problems_of_picture(path, name)
    elif suffix in TEXT_SUFFIXES | {".py"} or not suffix:
        yield from problems_of_text(path.read_text(encoding="utf-8", errors="replace"), name)
        if path.name == "results.json":
            yield from _problems_of_results(path, name)
    elif suffix not in UNREAD_SUFFIXES:
        yield Problem("unknown-kind", name, "is of a kind that no check here reads; take it out of the folder")


def problems_of_text(text: str, name: str) -> Iterator[Problem]:
    """Credentials, local paths and personal data in a text file, each with its line; nothing of what they say."""
    yield from dict.fromkeys(_problems_of_text(text, name))


def _problems_of_text(text: str, name: str) -> Iterator[Problem]:
    """As `problems_of_text`, perhaps with one problem twice."""
    sayings = list(_sayings(text, Path(name).suffix))
    for place, part in [(0, text), *sayings]:  # in JSON a name and its value are two sayings
        for leak in find_secrets(part):
            line = _line(text, place + leak.start)
            yield Problem("secret", name, f"line {line} holds {leak.kind}; remove it, and revoke it: it was in a file")
    base = Path(name).name
    if base in OWN_TEXTS or base.endswith(".py") or base in VOCABULARIES:
        return
    for place, part in sayings:
        for leak in find_local_paths(part):
            line = _line(text, place + leak.start)
            yield Problem("local-path", name, f"line {line} holds {leak.kind}; cut it to its name")
        part = _HASH.sub(lambda match: " " * len(match.group()), part)
        for hit in find_phi(part):
            if hit.kind in NOT_PERSONAL or part[hit.start : hit.stop] in _own_words():
                continue
            line = _line(text, place + hit.start)
            yield Problem(f"{PHI_PREFIX}{hit.kind}", name, f"line {line} holds what looks like {PHI_KINDS[hit.kind]}")


def _sayings(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """(place, text) of what may be about a person: of JSON each of its strings as it is meant, keys too, once.

    Numbers in JSON are about no one. The place is that in `text`; a string of JSON is written on one line.
    """
    place, known = 0, set()
    for part in text.split("\n") if suffix == ".jsonl" else [text]:
        if suffix in (".json", ".jsonl") and _is_json(part):
            for match in _JSON_STRING.finditer(part):
                if match.group() not in known:
                    known.add(match.group())
                    yield place + match.start(), json.loads(match.group())
        else:
            yield place, part
        place += len(part) + 1


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _problems_of_tensors(path: Path, name: str) -> Iterator[Problem]:
    """A safetensors file that is not whole, and texts in its header."""
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        yield Problem("broken-file", name, f"is no whole safetensors file ({error}); save it again")
        return
    yield from problems_of_text(json.dumps(told, ensure_ascii=False), f"{name} header.json")


def _problems_of_picture(path: Path, name: str) -> Iterator[Problem]:
    """A picture that cannot be read, and one with parts that may hold texts: names, dates, devices."""
    try:
        with Image.open(path) as picture:
            picture.load()
        carried = telling_parts(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        yield Problem("broken-file", name, f"is no whole picture ({error}); write it again")
        return
    if PROFILE in carried:
        reason = f"carries a {PROFILE}, which may name a screen or a person; convert it to sRGB and save it without"
        yield Problem(PROFILE_RULE, name, reason)
    texts = ", ".join(part for part in carried if part != PROFILE)
    if texts:
        yield Problem("picture-text", name, f"carries {texts}, which may name people; save its pixels alone")


def _problems_of_results(path: Path, name: str) -> Iterator[Problem]:
    """Figures without an interval, or outside of theirs."""
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = json.loads(text) if _is_json(text) else None
    if not isinstance(rows, list):
        yield Problem("results", name, "is no list of results; write it by regionmed-eval")
        return
    for index, row in enumerate(rows):
        told = row if isinstance(row, dict) else {}
        title = f"row {index} ({told.get('model')}/{told.get('metric')})"
        numbers = [told.get(key) for key in ("low", "value", "high")]
        if numbers == [None, None, None] and (told.get("protocol") or {}).get("skipped"):
            continue
        if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
            yield Problem("results", name, f"{title} lacks a value or its interval; measure it by regionmed-eval")
        elif not numbers[0] <= numbers[1] <= numbers[2]:
            yield Problem("results", name, f"{title}: {numbers[1]} lies outside of [{numbers[0]}, {numbers[2]}]")


@cache
def _own_words() -> str:
    """What our templates and default facts say, with their dates and numbers."""
    paths = [*(OWN_FOLDER / "templates").iterdir(), *(OWN_FOLDER / "facts").iterdir()]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(paths))


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
