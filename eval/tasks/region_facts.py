"""What is stated of a region, as the record that the rules of the corpus read: which texts are true of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regionmed_clip.processing.corpus.captions import describe_region
from regionmed_clip.processing.corpus.entailment import Facts, entails, know
from regionmed_clip.processing.corpus.records import RegionRecord

_ATTRIBUTES = ("anatomy", "laterality", "place", "size", "severity", "certainty")


def record_of(region: Mapping[str, Any]) -> RegionRecord:
    """The record of a region given as an example or an embedded split has it; attributes it lacks are not known."""
    return RegionRecord(
        box=tuple(float(edge) for edge in region["box"]),
        finding=region["finding"],
        is_negated=bool(region.get("is_negated")),
        description=region.get("description") or "",
        text_origin=region.get("text_origin") or "template",
        **{name: region.get(name) for name in _ATTRIBUTES},
    )


def facts_of(region: Mapping[str, Any]) -> Facts:
    """The facts of a region; see `record_of`."""
    return know(record_of(region))


def is_template_text(record: RegionRecord) -> bool:
    """Whether the region's text says what its attributes say and nothing else, so that it can be read by rule."""
    return record.text_origin == "template" and record.description in ("", describe_region(record))


def is_true_of(text_of: RegionRecord, other: RegionRecord) -> bool:
    """Whether the text of a region is true of another one too: where it says no more than is known of the other.

    A text that cannot be read by rule is true of a region that bears the very same one.
    """
    if text_of.description == other.description and text_of.description:
        return True
    return is_template_text(text_of) and entails(know(other), know(text_of))
