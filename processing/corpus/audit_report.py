"""What an audit can find, and the report of what it found: item, value, rule, way out; never personal data itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from regionmed_clip.processing.corpus.phi_patterns import PHI_KINDS, find_phi

MAX_KEPT = 1000  # findings of a rule that the report holds; beyond it counts alone
KINDS_OF_IDS = ("name", "email", "ssn")  # what may not be a pseudonym; numbers and UIDs are pseudonyms of data sets
MAX_SHOWN = 5  # findings of a rule that a person is shown
_STRIP = "Strip it without touching the pixels (exiftool -all= FILE; first turn images with an EXIF orientation)"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the audit: whether breaking it is an error or a warning, what it says, and what to do."""

    severity: str
    statement: str
    way_out: str


_PHI_WAY_OUT = "Remove it at the source and build again; if a person has looked and it is none, accept the rule"
RULES: dict[str, Rule] = {
    "shard-unreadable": Rule("error", "every shard is a whole Parquet file", "Restore the file or build again"),
    "shard-unlisted": Rule("error", "data/ holds the shards of the manifest alone", "Remove the file"),
    "shard-hash": Rule("error", "a shard has the size and sha256 of the manifest", "Restore the file or build again"),
    "schema": Rule("error", "a shard has the columns and types of this version", "Build again with this version"),
    "count": Rule("error", "the manifest counts what the shards hold", "Restore the files or build again"),
    "image-hash": Rule("error", "sha256 and phash are those of the image bytes", "Build again"),
    "image-decode": Rule("error", "every image decodes", "Replace the file at its source and build again"),
    "image-size": Rule("error", "width and height are those of the image as shown", "Correct the source's sizes"),
    "box": Rule("error", "a box is finite, in order and inside its image", "Correct the box at its source"),
    "mask": Rule(
        "error",
        "a mask has the size of its image and its tight box is the region's box within 1 pixel",
        "Derive the boxes from the masks, or drop the masks",
    ),
    "record": Rule("error", "every row is a sound study record", "Correct the row at its source"),
    "text": Rule("error", "every text is filled and of a known level and origin", "Correct the text at its source"),
    "key": Rule("error", "keys are those of the texts; a negative has no key of a true text", "Build again"),
    "duplicate-id": Rule("error", "image_id is unique", "Rename the images at their source"),
    "duplicate-image": Rule("error", "no two images have equal bytes", "Build again, which drops exact duplicates"),
    "patient-in-splits": Rule("error", "a patient is in one split", "Build again, or correct the patient ids"),
    "near-duplicate-in-splits": Rule("error", "near duplicates are in one split", "Build again, or with --drop-near"),
    **{f"phi-{kind}": Rule("error", f"no text holds {what}", _PHI_WAY_OUT) for kind, what in PHI_KINDS.items()},
    "file-phi": Rule(
        "error", "no image file carries identifying metadata", f"{_STRIP} and build again, or accept the rule"
    ),
    "file-text": Rule(
        "warning",
        "image files carry no text beside their pixels",
        f"Look at it. {_STRIP} if it tells more than it should",
    ),
    "burnt-in-text": Rule(
        "warning", "no text is burnt into the pixels near the border", "Look at the image; mask or drop it"
    ),
    "dicom-tags": Rule(
        "error",
        "identifying elements of a DICOM header are empty",
        "De-identify the files by DICOM PS3.15, or build from them: a build takes nothing but listed elements over",
    ),
    "dicom-unreadable": Rule("error", "every DICOM file can be read", "Replace or remove the file"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach: the rule, the item (image id or file) and what is wrong there, without personal data."""

    rule: str
    item: str
    value: str


@dataclass
class AuditReport:
    """What was looked at, and what was found; `accepted` rules are reported and do not count as errors."""

    subject: str
    num_items: int = 0
    accepted: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    kept: dict[str, list[Finding]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.accepted) - set(RULES))
        if unknown:
            raise ValueError(f"rules {unknown} are not known; a rule is one of {', '.join(RULES)}. Correct --accept.")

    def add(self, rule: str, item: str, value: str) -> None:
        """Nothing; notes a breach. A value in which personal data can be seen is withheld."""
        assert rule in RULES, rule
        if find_phi(value):
            value = "(withheld: the value looks like personal data)"
        if any(hit.kind in KINDS_OF_IDS for hit in find_phi(item)):
            item = f"(withheld: the id looks like personal data; its sha256 is {_sha256_of(item)})"
        self.counts[rule] = self.counts.get(rule, 0) + 1
        kept = self.kept.setdefault(rule, [])
        if len(kept) < MAX_KEPT:
            kept.append(Finding(rule, item, value))

    def merge(self, other: AuditReport) -> None:
        """Nothing; takes over the items and breaches of another part."""
        self.num_items += other.num_items
        for rule, count in other.counts.items():
            self.counts[rule] = self.counts.get(rule, 0) + count
            kept = self.kept.setdefault(rule, [])
            kept += other.kept[rule][: MAX_KEPT - len(kept)]

    @property
    def num_errors(self) -> int:
        """Breaches of rules that are errors and not accepted."""
        return sum(count for rule, count in self.counts.items() if self._weight(rule) == "error")

    @property
    def num_warnings(self) -> int:
        """Breaches of rules that are warnings and not accepted."""
        return sum(count for rule, count in self.counts.items() if self._weight(rule) == "warning")

    def lines(self) -> Iterator[str]:
        """The report for a person: every broken rule with its first breaches."""
        for rule in (name for name in RULES if name in self.counts):
            yield f"{self._weight(rule).upper()} {rule}: {self.counts[rule]} x. Rule: {RULES[rule].statement}."
            for finding in self.kept[rule][:MAX_SHOWN]:
                yield f"    {finding.item}: {finding.value}"
            if self.counts[rule] > MAX_SHOWN:
                yield f"    ... and {self.counts[rule] - MAX_SHOWN} more"
            yield f"    Way out: {RULES[rule].way_out}."
        yield (
            f"{self.subject}: {self.num_items:,} items checked, {self.num_errors:,} errors, "
            f"{self.num_warnings:,} warnings."
        )

    def as_json(self) -> str:
        """The report as JSON: the rules with their counts and up to MAX_KEPT findings each."""
        rules: dict[str, Any] = {
            rule: {
                "severity": self._weight(rule),
                "rule": RULES[rule].statement,
                "way_out": RULES[rule].way_out,
                "count": count,
                "findings": [{"item": finding.item, "value": finding.value} for finding in self.kept[rule]],
            }
            for rule, count in sorted(self.counts.items())
        }
        content = {
            "subject": self.subject,
            "num_items": self.num_items,
            "num_errors": self.num_errors,
            "num_warnings": self.num_warnings,
            "rules": rules,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def _weight(self, rule: str) -> str:
        """error, warning or accepted."""
        return "accepted" if rule in self.accepted else RULES[rule].severity


def _sha256_of(text: str) -> str:
    """The sha256 of a text in hex, by which whoever holds the corpus finds the item again."""
    return hashlib.sha256(text.encode()).hexdigest()


def phi_place(what: str, where: str, start: int, stop: int) -> str:
    """How a report names personal data: its kind and its place."""
    return f"{what} in {where}, characters {start} to {stop}"


def joined(names: Sequence[str], limit: int = 5) -> str:
    """The first names, with how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
