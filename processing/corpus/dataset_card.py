"""The dataset card (README.md) of a built corpus, rendered from its manifest and its columns; no number is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.corpus_stats import (
    SplitStats,
    collect_stats,
    format_table,
    stats_tables,
    sum_stats,
)
from regionmed_clip.processing.corpus.licences import hub_license, may_redistribute

TEMPLATE_FOLDER = Path(__file__).resolve().parent / "templates"
SIZE_CATEGORIES = (  # upper bounds and the Hub's names
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (float("inf"), "10M<n<100M"),
)
LOCAL_FOLDER = "THIS_FOLDER"  # in the examples: the bytes of a card do not depend on where it lies
_OWN_TABLES = ("Splits", "Sources")  # which stand elsewhere in the card


def render_card(corpus: BuiltCorpus, repo_id: str | None = None) -> str:
    """The card as text: YAML for the Hub and its viewer, then what a reader must know of the corpus.

    Args:
        corpus: a built corpus; all of its columns but the images are read.
        repo_id: ORG/NAME on the Hub, for the loading example; None: a local folder.
    """
    stats = collect_stats(corpus)
    total = sum_stats(stats.values())
    tables = {title: format_table(header, rows) for title, header, rows in stats_tables(stats) if rows}
    manifest = corpus.manifest
    sources = [{**source, "is_open": may_redistribute(source["license"])} for source in manifest["sources"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    return environment.get_template("dataset_card.md.jinja").render(
        metadata=yaml.safe_dump(_metadata(corpus, total), sort_keys=False, allow_unicode=True),
        name=manifest["name"],
        tool=manifest["tool"],
        revision=corpus.revision,
        seed=manifest["seed"],
        total=total,
        has_phantom=any(source.get("kind") == "phantom" for source in sources),
        sources=sources,
        sources_table=tables["Sources"],
        splits_table=tables["Splits"],
        contents=[(title, table) for title, table in tables.items() if title not in _OWN_TABLES],
        license_note=_license_note(total),
        text_note=_text_note(total),
        num_moved=manifest["num_moved_to_another_split"],
        num_near=manifest["num_near_duplicates"],
        num_exact=sum(source["num_exact_duplicates"] for source in sources),
        num_quarantined=sum(source["num_quarantined"] for source in sources),
        drop_near=manifest["options"]["drop_near"],
        load_arguments=_load_arguments(corpus, repo_id),
        first_split=corpus.splits()[0],
        folder=repo_id.rpartition("/")[2] if repo_id else LOCAL_FOLDER,
    )


def _metadata(corpus: BuiltCorpus, total: SplitStats) -> dict[str, Any]:
    """The YAML block: licences, tasks, size, and where the viewer finds each split."""
    licenses = sorted({hub_license(name) for name in total.images_of["license"]})
    license_entry: dict[str, Any] = {"license": licenses[0] if len(licenses) == 1 else licenses}
    if "other" in licenses:
        license_entry = {"license": "other", "license_name": "mixed-see-column-license"}
    tasks = ["zero-shot-image-classification", "image-to-text"]
    tasks += ["object-detection"] if total.num_regions else []
    tasks += ["image-segmentation"] if total.num_masks else []
    tasks += ["visual-question-answering"] if total.num_questions else []
    return {
        "pretty_name": corpus.manifest["name"],
        **license_entry,
        "language": ["en"],
        "task_categories": tasks,
        "size_categories": [next(name for bound, name in SIZE_CATEGORIES if total.num_images < bound)],
        "tags": ["medical", "radiology", "image-text", "regions", "bounding-boxes", "regionmed-clip"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in corpus.splits()],
            }
        ],
    }


def _license_note(total: SplitStats) -> str:
    """What the licences allow, in a sentence."""
    closed = sorted(name for name in total.images_of["license"] if not may_redistribute(name))
    if not closed:
        return (
            "All of them allow redistribution; the conditions of each (attribution, share alike) apply to its images."
        )
    names = ", ".join(f'"{name}"' for name in closed)
    return (
        f"**Images under {names} may not be passed on as far as we know**: keep this corpus private, and get the data "
        "from their owners."
    )


def _text_note(total: SplitStats) -> str:
    """Who wrote the texts, in numbers."""
    images, regions = total.images_of["text_origin"], total.region_origins
    return (
        f"image texts written by template from labels and attributes: {images['template']:,}, taken from the source: "
        f"{images['source']:,}; region descriptions by template: {regions['template']:,}, from the source: "
        f"{regions['source']:,}. `text_origin` and `origin` say which."
    )


def _load_arguments(corpus: BuiltCorpus, repo_id: str | None) -> str:
    """The arguments of `load_dataset` in the example."""
    if repo_id:
        return f'"{repo_id}"'
    files = ", ".join(f'"{split}": "{LOCAL_FOLDER}/data/{split}-*.parquet"' for split in corpus.splits())
    return f'"parquet", data_files={{{files}}}'
