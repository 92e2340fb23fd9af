"""The manifest of a built corpus: what it is made of, without anything that differs between two equal builds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.built_corpus import FORMAT
from regionmed_clip.processing.corpus.duplicates import Decisions
from regionmed_clip.processing.corpus.records import SPLITS
from regionmed_clip.processing.corpus.scan import ScanIndex
from regionmed_clip.processing.corpus.sources import Source
from regionmed_clip.processing.corpus.sources.registry import SourceSpec, about_source


def make_manifest(
    options: Mapping[str, Any],
    opened: Sequence[tuple[SourceSpec, Source]],
    index: ScanIndex,
    decisions: Decisions,
    shards_of_split: Mapping[str, list[dict[str, Any]]],
    num_bad_of_source: Mapping[str, int],
) -> dict[str, Any]:
    """The manifest as JSON can hold it.

    Args:
        options: of the build.
        opened: its sources with their specs, in the order of the index's `source`.
        index: of the scan.
        decisions: what was kept, and in which split.
        shards_of_split: the entries of the written shards.
        num_bad_of_source: quarantined items by name of the source.
    """
    kinds = [pair.kind for pair in decisions.duplicates]
    source_of_image = index.column("source")
    dropped = [pair.second for pair in decisions.duplicates if pair.kind == "exact"]
    num_exact = np.bincount(source_of_image[np.array(dropped, dtype=np.int64)], minlength=len(opened))
    near = sorted({pair.second for pair in decisions.duplicates if pair.kind == "near" and pair.is_dropped})
    num_near = np.bincount(source_of_image[np.array(near, dtype=np.int64)], minlength=len(opened))
    return {
        "format": FORMAT,
        "name": options["name"],
        "tool": tool_version(),
        "seed": options["seed"],
        "options": dict(options),
        "sources": [
            {
                **_about(spec, source),
                **_counts(index, decisions.is_kept & (source_of_image == number)),
                "num_quarantined": num_bad_of_source.get(source.name, 0),
                "num_exact_duplicates": int(num_exact[number]),
                "num_near_dropped": int(num_near[number]),
            }
            for number, (spec, source) in enumerate(opened)
        ],
        "splits": {
            split: {**_counts(index, decisions.is_kept & (decisions.split == SPLITS.index(split))), "shards": shards}
            for split, shards in shards_of_split.items()
        },
        "num_near_duplicates": kinds.count("near"),
        "num_moved_to_another_split": decisions.num_moved,
    }


def tool_version() -> str:
    """The name and version of this package."""
    return f"regionmed-clip {version('regionmed-clip')}"


def write_whole(path: Path, text: str, work: Path) -> None:
    """Nothing; writes a small file by way of `work`, on the same file system, so that it is never seen half-written."""
    temporary = work / f"{path.name}.{os.getpid()}.partial"
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def _about(spec: SourceSpec, source: Source) -> dict[str, Any]:
    """What a reader must know of a source."""
    about = about_source(spec.name)
    notes = getattr(source, "notes", "")  # of a jsonl source
    return {
        "name": source.name,
        "kind": spec.name,
        "title": about.title,
        "license": source.license,
        "access": about.access,
        "revision": source.revision,
        "options": shown_options(spec),
        **({"notes": notes} if notes else {}),
    }


def shown_options(spec: SourceSpec) -> dict[str, str]:
    """The options with which a source was opened; of one that names a file or folder its last part alone."""
    return {name: Path(value).name if os.sep in value else value for name, value in spec.options}


def _counts(index: ScanIndex, chosen: np.ndarray) -> dict[str, int]:
    """How many images, regions and questions are chosen."""
    return {
        "num_images": int(chosen.sum()),
        "num_regions": int(index.column("num_regions")[chosen].sum(dtype=np.int64)),
        "num_questions": int(index.column("num_questions")[chosen].sum(dtype=np.int64)),
    }
