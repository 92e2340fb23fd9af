"""Pairs of a true text and a false one that differ in one respect: side, place, size, severity, denial or finding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regionmed_clip.eval.metrics.boxes import pairwise_iou
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit
from regionmed_clip.eval.tasks.region_facts import record_of
from regionmed_clip.processing.corpus.captions import (
    count_statements,
    describe_region,
    is_normal_caption,
    say_caption,
    state_region,
)
from regionmed_clip.processing.corpus.entailment import is_false, know
from regionmed_clip.processing.corpus.finding_table import (
    abnormal_findings,
    canonical_findings,
    is_abnormal,
    may_be_one,
    names_something,
    part_of_body,
)
from regionmed_clip.processing.corpus.negatives import list_candidates
from regionmed_clip.processing.corpus.records import NEGATIVE_CHANGES, RegionRecord
from regionmed_clip.processing.corpus.seeded_choice import SeededChoice

CHANGES = NEGATIVE_CHANGES
_WORD = re.compile(r"[a-z0-9]+")
_NOWHERE = (0.0, 0.0, 1.0, 1.0)  # the box of a finding that is only named


@dataclass(frozen=True)
class TextPairs:
    """P pairs of texts, each asked of one region or image.

    Attributes:
        rows: (P,) int64 row of the region, or of the image.
        changes: (P,) str; what differs, one of CHANGES.
        true_texts, false_texts: P strings each.
    """

    rows: np.ndarray
    changes: np.ndarray
    true_texts: list[str]
    false_texts: list[str]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, str, str, str]]) -> TextPairs:
        """From (row, change, true text, false text) of each pair."""
        rows, changes, true_texts, false_texts = zip(*pairs, strict=True) if pairs else ((), (), (), ())
        return cls(np.array(rows, dtype=np.int64), np.array(changes, dtype=str), list(true_texts), list(false_texts))


def false_texts(region: Mapping[str, Any], changed: str) -> list[str]:
    """The texts that differ from the region's in one respect and are false of it; see processing/corpus/negatives.py.

    Args:
        region: a region of an example.
        changed: one of CHANGES; "finding" needs to know what was looked for, and gives none here.
    """
    candidates = list_candidates(state_region(record_of(region)), None, frozenset())
    return [candidate.text for candidate in candidates if candidate.changed == changed]


def list_region_pairs(embedded: EmbeddedSplit) -> TextPairs:
    """The pairs of every region: its text by template against each that differs in one respect and is surely false.

    False: of the region and of all whose boxes overlap its own. Another finding is one that the split shows in images
    of the same source and modality.
    """
    records = [record_of(facts) for facts in embedded.region_facts]
    looked_for = _findings_by_group(embedded)
    pairs = []
    for row, known in _known_at(embedded, records):
        image, record = int(embedded.region_image[row]), records[row]
        for changed, text in _changed_texts(
            record, known, looked_for[_group(embedded, image)], str(embedded.image_studies[image])
        ):
            pairs.append((row, changed, describe_region(record), text))
    return TextPairs.of(pairs)


def list_image_pairs(embedded: EmbeddedSplit, *, seed: int = 0) -> TextPairs:
    """One pair of every image that is surely normal or surely not: "normal" against a finding; `changes`: "finding".

    An image with an abnormal finding has its caption by template against the one of a normal image; a normal one the
    other way round, against an abnormal finding of its source and modality chosen by the seed and the image's name.
    """
    records = [record_of(facts) for facts in embedded.region_facts]
    shown = _findings_by_group(embedded)
    starts = np.searchsorted(embedded.region_image, np.arange(embedded.num_images + 1))
    pairs = []
    for image in range(embedded.num_images):
        study = str(embedded.image_studies[image])
        part, own = part_of_body(study, None), records[starts[image] : starts[image + 1]]
        normal = say_caption(study, (), is_normal=True)
        facts = [know(record) for record in own]
        if any(is_abnormal(fact.finding, part) and fact.is_certain and not fact.is_negated for fact in facts):
            pairs.append((image, "finding", say_caption(study, count_statements(own)), normal))
        elif not own and is_normal_caption(embedded.captions[embedded.image_caption[image]]):
            absent = sorted(set(abnormal_findings(part)) & shown[_group(embedded, image)])
            if absent:
                finding = SeededChoice("normal or not", seed, embedded.image_ids[image]).pick(absent)
                statements = count_statements([RegionRecord(_NOWHERE, finding)])
                pairs.append((image, "finding", normal, say_caption(study, statements)))
    return TextPairs.of(pairs)


def _group(embedded: EmbeddedSplit, image: int) -> tuple[str, str]:
    return str(embedded.image_sources[image]), str(embedded.image_modalities[image])


def _findings_by_group(embedded: EmbeddedSplit) -> dict[tuple[str, str], frozenset[str]]:
    """(source, modality) -> canonical names of the findings that its images show."""
    shown: dict[tuple[str, str], set[str]] = {_group(embedded, image): set() for image in range(embedded.num_images)}
    for row in np.flatnonzero(~embedded.region_is_negated):
        shown[_group(embedded, int(embedded.region_image[row]))].add(str(embedded.region_findings[row]))
    return {group: canonical_findings(frozenset(findings)) for group, findings in shown.items()}


def _known_at(embedded: EmbeddedSplit, records: Sequence[RegionRecord]) -> Iterator[tuple[int, list[RegionRecord]]]:
    """(region, the records of all regions of its image whose boxes overlap its own, itself among them)."""
    starts = np.searchsorted(embedded.region_image, np.arange(embedded.num_images + 1))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        overlaps = pairwise_iou(embedded.region_boxes_pixel_xyxy[start:end]) > 0
        for row in range(start, end):
            others = start + np.flatnonzero(overlaps[row - start])
            yield row, [records[row], *(records[other] for other in others if other != row)]


def _changed_texts(
    record: RegionRecord, known: Sequence[RegionRecord], looked_for: frozenset[str], study: str
) -> Iterator[tuple[str, str]]:
    """(what is changed, the false text) of a region where `known`, the region first, is what its place shows."""
    true_text = describe_region(record)
    facts = [know(other) for other in known]
    candidates = list_candidates(state_region(record), part_of_body(study, None), looked_for)
    for candidate in candidates:
        if is_false(candidate.facts, facts) and not _may_be_said(record, candidate.changed, true_text, candidate.text):
            yield candidate.changed, candidate.text
    if any(candidate.changed == "finding" for candidate in candidates) or true_text != record.finding:
        return
    for finding in sorted(looked_for):  # of a finding that the table of findings lacks, where nothing else is said
        if names_something(finding) and not any(may_be_one(finding, other.finding) for other in known):
            yield "finding", describe_region(replace(record, finding=finding, severity=None, description=""))


def _may_be_said(record: RegionRecord, changed: str, true_text: str, text: str) -> bool:
    """True where the source's own words about the region have all that is new in the text: it may not be false."""
    new_words = set(_WORD.findall(text)) - set(_WORD.findall(true_text))
    own_words = set(_WORD.findall(record.description.lower())) if record.text_origin == "source" else set()
    return bool(new_words) and changed != "negation" and new_words <= own_words
