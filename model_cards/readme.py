"""Writes the published results into README.md and docs/reproduce.md: `python -m regionmed_clip.model_cards.readme`.

Each table stands between two comments, `<!-- results: FILE -->` and `<!-- end of results -->`; FILE is a Result file
under model_cards/results. What lies between them is replaced, nothing else is touched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from regionmed_clip.eval.results import Result, read_results
from regionmed_clip.eval.tables import format_table

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS_FOLDER = REPOSITORY / "model_cards" / "results"
DOCUMENTS = ("README.md", "docs/reproduce.md")
BLOCK = re.compile(r"<!-- results: (?P<file>[\w./-]+?)(?P<all> all)? -->\n.*?<!-- end of results -->", re.DOTALL)


def render_document(text: str, results_folder: Path = RESULTS_FOLDER) -> str:
    """`text` with every results block filled from its file; `all` after the file name also shows sources and strata."""

    def fill(match: re.Match) -> str:
        results = read_results(results_folder / match["file"])
        marker = f"<!-- results: {match['file']}{match['all'] or ''} -->"
        return f"{marker}\n\n{render_results(results, bool(match['all']))}\n<!-- end of results -->"

    return BLOCK.sub(fill, text)


def render_results(results: Sequence[Result], is_complete: bool) -> str:
    """The table of the results and a line on where they come from."""
    shown = [result for result in results if is_complete or result.source is None]
    first = results[0]
    origin = (
        f"Command: `{first.command}`. Data: {first.data_revision}, split {first.protocol['split']} "
        f"(sha256 {first.protocol['split_sha256'][:12]}), seed {first.seed}. {first.hardware}."
    )
    return f"{format_table(shown)}\n{origin}\n"


def main() -> None:
    """Renders every document in place."""
    for name in DOCUMENTS:
        path = REPOSITORY / name
        path.write_text(render_document(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
