"""Writes the published results into README.md and the pages of docs: `python -m regionmed_clip.model_cards.readme`.

Each table stands between two comments, `<!-- results: FILE -->` and `<!-- end of results -->`; FILE is a Result file
under model_cards/results. What lies between them is replaced, nothing else is touched. FILE may be followed by `all`,
to show sources and strata too, by `arms`, for a study of many arms: these are then the rows, or by `only` and the names
of the metrics to show. Between `<!-- measured: FILE -->` and `<!-- end of measured -->` stands the table of a file
under model_cards/results/measured: of search, export or serving, whose figures are times too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from regionmed_clip.eval.results import Result, read_results
from regionmed_clip.eval.tables import format_arm_table, format_table
from regionmed_clip.model_cards.measured_tables import render_measured

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS_FOLDER = REPOSITORY / "model_cards" / "results"
DOCUMENTS = (
    "README.md",
    "docs/reproduce.md",
    "docs/decisions.md",
    "docs/search.md",
    "docs/export.md",
    "docs/deployment.md",
)
BLOCK = re.compile(
    r"<!-- results: (?P<file>[\w./-]+?)(?P<form> all| arms| only [\w@ ]+)? -->\n.*?<!-- end of results -->", re.DOTALL
)
MEASURED_BLOCK = re.compile(r"<!-- measured: (?P<file>[\w.-]+) -->\n.*?<!-- end of measured -->", re.DOTALL)


def render_document(text: str, results_folder: Path = RESULTS_FOLDER) -> str:
    """`text` with every block filled from its file."""

    def fill(match: re.Match) -> str:
        results = read_results(results_folder / match["file"])
        form = match["form"] or ""
        marker = f"<!-- results: {match['file']}{form} -->"
        return f"{marker}\n\n{render_results(results, form.strip())}\n<!-- end of results -->"

    def fill_measured(match: re.Match) -> str:
        figures = json.loads((results_folder / "measured" / match["file"]).read_text(encoding="utf-8"))
        shown = render_measured(match["file"], figures)
        return f"<!-- measured: {match['file']} -->\n\n{shown}\n<!-- end of measured -->"

    return MEASURED_BLOCK.sub(fill_measured, BLOCK.sub(fill, text))


def render_results(results: Sequence[Result], form: str = "") -> str:
    """The table of the results and a line on where they come from; `form` is what follows FILE, see above.

    Raises:
        ValueError: for a metric that no result has.
    """
    shown = [result for result in results if form == "all" or result.source is None]
    if form.startswith("only "):
        wanted = form.split()[1:]
        missing = sorted(set(wanted) - {result.metric for result in shown})
        if missing:
            raise ValueError(f"no result has the metric {missing[0]!r}; correct the block, or publish results anew.")
        shown = [result for result in shown if result.metric in wanted and result.stratum is None]
    first = results[0]
    origin = (
        f"Command: `{first.command}`. Data: {first.data_revision}, split {first.protocol['split']} "
        f"(sha256 {first.protocol['split_sha256'][:12]}), seed {first.seed}. {first.hardware}."
    )
    table = format_arm_table(shown) if form == "arms" else format_table(shown)
    return f"{table}\n{origin}\n"


def main() -> None:
    """Renders every document in place."""
    for name in DOCUMENTS:
        path = REPOSITORY / name
        path.write_text(render_document(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
