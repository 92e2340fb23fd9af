"""The dataset card of what `regionmed-publish --what dataset` publishes: a built corpus, or jsonl source folders."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regionmed_clip.model_cards.card_metadata import check_metadata, split_card
from regionmed_clip.model_cards.render import card_environment
from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus, is_built_corpus
from regionmed_clip.processing.corpus.dataset_card import SIZE_CATEGORIES
from regionmed_clip.processing.corpus.dataset_card import render_card as render_corpus_card
from regionmed_clip.processing.corpus.licences import hub_license, may_redistribute
from regionmed_clip.processing.corpus.records import StudyRecord
from regionmed_clip.processing.corpus.sources.jsonl import ANNOTATIONS_NAME, JsonlSource, open_jsonl

REQUIRED = ("license", "task_categories", "size_categories", "configs")
SPLIT_OF_ROWS = "annotations"  # on the Hub: the rows of all splits lie in one file
MAX_FINDINGS = 20
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")  # datasets reads *, ? and [ as patterns of files


@dataclass
class Counts:
    """What a split, or all of them, holds."""

    num_images: int = 0
    num_regions: int = 0
    num_questions: int = 0
    num_with_patient: int = 0
    num_captions: int = 0  # of the source, not by template

    def add(self, record: StudyRecord) -> None:
        """None; counts a record."""
        self.num_images += 1
        self.num_regions += len(record.regions)
        self.num_questions += len(record.qa)
        self.num_with_patient += record.patient_id is not None
        self.num_captions += record.text_origin == "source"


@dataclass
class SourceCounts:
    """One jsonl source; `about` is its SOURCE.md without the heading, "" where it has none."""

    name: str
    license: str
    revision: str
    about: str
    splits: dict[str, Counts] = field(default_factory=dict)
    modality_counts: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(counts.num_images for counts in self.splits.values())

    @property
    def is_open(self) -> bool:
        """Whether anyone may pass its images on."""
        return may_redistribute(self.license)

    @property
    def modalities(self) -> str:
        """Its modalities, the most frequent first."""
        return ", ".join(name for name, _ in self.modality_counts.most_common())


def render_dataset_card(folder: str | Path, repo_id: str | None = None) -> str:
    """The card of the built corpus in `folder`, or of the jsonl source folder or folders there; see `open_jsonl`.

    Of a corpus the columns but the images are read, of jsonl sources every row and the head of every image.

    Args:
        repo_id: ORG/NAME on the Hub, for the loading examples; None: a local folder.

    Raises:
        ValueError: `folder` is neither, or a row is bad.
    """
    if is_built_corpus(str(folder)):
        return render_corpus_card(BuiltCorpus(folder), repo_id)
    sources = [_count(source) for source in open_jsonl(folder)]
    is_one = (Path(folder) / ANNOTATIONS_NAME).is_file()
    _check_names([] if is_one else [source.name for source in sources])
    total = Counts()
    for counts in (counts for source in sources for counts in source.splits.values()):
        for name, value in vars(counts).items():
            setattr(total, name, getattr(total, name) + value)
    findings = sum((source.findings for source in sources), Counter())
    return (
        card_environment()
        .get_template("jsonl_dataset_card.md.jinja")
        .render(
            metadata=yaml.safe_dump(_metadata(sources, total, is_one), sort_keys=False, allow_unicode=True),
            name=repo_id.rpartition("/")[2] if repo_id else Path(folder).resolve().name,
            repo_id=repo_id,
            sources=sources,
            total=total,
            closed=[source.name for source in sources if not source.is_open],
            findings=findings.most_common(MAX_FINDINGS),
            num_more_findings=max(len(findings) - MAX_FINDINGS, 0),
            first_config=_config_name(sources[0], is_one),
            first_split=next(iter(sources[0].splits)),
        )
    )


def check_dataset_card(card: str) -> None:
    """None for a dataset card that the Hub would take, as far as `check_metadata` can tell; ValueError else."""
    metadata, _ = split_card(card)
    check_metadata(metadata, REQUIRED)
    for config in metadata["configs"]:
        if not isinstance(config, dict) or not config.get("config_name") or not config.get("data_files"):
            raise ValueError(
                f"the card's configs hold {config!r}; each has config_name and data_files. Render it again."
            )


def _check_names(names: list[str]) -> None:
    """None; ValueError for a folder whose name can be no configuration, path and text of a card at once."""
    for name in names:
        if not SOURCE_NAME.fullmatch(name) or "---" in name:
            raise ValueError(
                f"source folder {name!r} cannot be loaded by that name: it must be letters, digits, '.', '_', single "
                "'-' and spaces, and start with a letter or digit. Rename the folder."
            )


def _count(source: JsonlSource) -> SourceCounts:
    """What is in a source."""
    found = SourceCounts(source.name, source.license, source.revision, source.notes)
    for split in source.splits():
        counts = found.splits.setdefault(split, Counts())
        for record in source.records(split):
            counts.add(record)
            found.modality_counts[record.modality] += 1
            found.findings.update(region.finding for region in record.regions)
    return found


def _metadata(sources: list[SourceCounts], total: Counts, is_one: bool) -> dict[str, Any]:
    """The YAML block: licences, tasks, size, and a configuration for each source, as their rows differ in fields."""
    licenses = sorted({hub_license(source.license) for source in sources})
    license_entry: dict[str, Any] = {"license": licenses[0] if len(licenses) == 1 else licenses}
    if "other" in licenses:
        license_entry = {"license": "other", "license_name": "mixed-see-sources"}
    tasks = ["zero-shot-image-classification"]
    tasks += ["object-detection"] if total.num_regions else []
    tasks += ["visual-question-answering"] if total.num_questions else []
    return {
        **license_entry,
        "language": ["en"],
        "task_categories": tasks,
        "size_categories": [next(name for bound, name in SIZE_CATEGORIES if total.num_images < bound)],
        "tags": ["medical", "radiology", "regions", "bounding-boxes", "regionmed-clip"],
        "configs": [
            {
                "config_name": _config_name(source, is_one),
                "data_files": [
                    {"split": SPLIT_OF_ROWS, "path": f"{'' if is_one else source.name + '/'}{ANNOTATIONS_NAME}"}
                ],
            }
            for source in sources
        ],
    }


def _config_name(source: SourceCounts, is_one: bool) -> str:
    return "default" if is_one else source.name
