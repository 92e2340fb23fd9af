"""Writes or checks the generated blocks of docs/data_contract.md, and prints the JSON schema of the records.

python -m regionmed_clip.processing.corpus.record_schema --write docs/data_contract.md
python -m regionmed_clip.processing.corpus.record_schema --check docs/data_contract.md
python -m regionmed_clip.processing.corpus.record_schema --print
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from regionmed_clip.processing.corpus.contract_page import render_page
from regionmed_clip.processing.corpus.dataclass_schema import json_schema
from regionmed_clip.processing.corpus.records import NegativeRecord, StudyRecord, TextRecord


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a checked page is stale or has lost its markers."""
    parser = argparse.ArgumentParser(description="The generated parts of the data contract.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="PAGE", help="write the generated blocks of the page anew")
    action.add_argument("--check", type=Path, metavar="PAGE", help="fail if a generated block of the page is stale")
    action.add_argument("--print", action="store_true", help="print the JSON schema of the records")
    options = parser.parse_args(arguments)
    if options.print:
        print(json.dumps(json_schema(StudyRecord, TextRecord, NegativeRecord), indent=2))  # noqa: T201
        return 0
    path: Path = options.write or options.check
    try:
        page = path.read_text(encoding="utf-8")
        rendered = render_page(page)
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if options.write:
        path.write_text(rendered, encoding="utf-8")
    elif page != rendered:
        print(f"{path} is stale; run this command with --write {path}.", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
