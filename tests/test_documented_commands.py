"""Every command in a fenced block of README, docs and notebooks is one that its program accepts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from regionmed_clip.eval import run as evaluation
from regionmed_clip.eval.search import search_command as search
from regionmed_clip.model_cards import publish
from regionmed_clip.model_cards.export import export_command as export
from regionmed_clip.processing.corpus import command_line as corpus
from regionmed_clip.train.arguments import parse_command_line
from regionmed_clip.train.vqa_recipe import parse_vqa_command_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")),
)
SUBSTITUTION = re.compile(r"\$\(.*?\)")
WHAT_FOLLOWS = re.compile(r"\s+(?:#|&$).*")
PROGRAMS = {
    "train/pretrain.py": parse_command_line,
    "train/finetune_vqa.py": parse_vqa_command_line,
    "regionmed-corpus": lambda arguments: corpus._parser().parse_args(arguments),
    "regionmed-eval": lambda arguments: evaluation._parser().parse_args(arguments),
    "regionmed-search": lambda arguments: search._parser().parse_args(arguments),
    "regionmed-export": lambda arguments: export._parser().parse_args(arguments),
    "regionmed-publish": lambda arguments: publish._parser().parse_args(arguments),
}


def text_of(page: Path) -> str:
    """The page as Markdown; of a notebook its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    return "\n".join("".join(c["source"]) + "\n" for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def documented_commands() -> Iterator[tuple[str, str, str]]:
    """(page, program, its arguments) of every command line in a fenced block."""
    for page in PAGES:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            for part in SUBSTITUTION.sub("", line).split("&&"):
                for program in PROGRAMS:
                    if re.search(rf"(?:^|\s){re.escape(program)}(?:\s|$)", part) and "[--" not in part:
                        yield page.name, program, WHAT_FOLLOWS.sub("", part.partition(program)[2])


COMMANDS = list(documented_commands())


def test_commands_of_every_program_are_found():
    assert {program for _, program, _ in COMMANDS} == set(PROGRAMS)
    assert ("own_data.ipynb", "regionmed-eval") in {command[:2] for command in COMMANDS}
    assert ("training.md", "regionmed-corpus") in {command[:2] for command in COMMANDS}


@pytest.mark.parametrize(("page", "program", "arguments"), COMMANDS, ids=[f"{c[0]}:{c[1]}{c[2]}" for c in COMMANDS])
def test_a_documented_command_is_accepted(page, program, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert PROGRAMS[program](shlex.split(arguments)) is not None
