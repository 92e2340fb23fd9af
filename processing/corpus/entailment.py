"""What follows from a record: whether a statement about its image is true, or surely false, by its regions.

Two assumptions, as far as the annotation itself makes them: a region is what its record says and nothing that excludes
it, and what a record names it names wherever it is, so a finding that is stated only elsewhere is false here. Of a
finding that no region states this holds only where the source looked for it: negatives.py asks for no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from regionmed_clip.processing.corpus.captions import Statement, clean, is_image_place
from regionmed_clip.processing.corpus.finding_table import is_general, may_be_one
from regionmed_clip.processing.corpus.places import exclude_each_other
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.synonyms import canonical_finding

_SIDES = re.compile(r"\b(left|right)\b")
_ORGANS = frozenset("lung heart liver kidney spleen pancreas stomach bladder brain breast thyroid prostate".split())


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one region, said or not; `side` is left, right, bilateral or None."""

    finding: str
    is_negated: bool
    is_certain: bool
    side: str | None
    place: str | None
    size: str | None
    severity: str | None
    anatomy: str | None


def know(said: RegionRecord | Statement) -> Facts:
    """The facts of a region, or those that a statement claims."""
    certain = said.certainty in (None, "definite")
    words = (said.finding, said.laterality, said.place, said.size, said.severity, said.anatomy)
    return _know(said.is_negated, certain, *words)


@lru_cache(maxsize=16384)
def _know(
    is_negated: bool,
    is_certain: bool,
    finding: str,
    laterality: str | None,
    place: str | None,
    size: str | None,
    severity: str | None,
    anatomy: str | None,
) -> Facts:
    """The facts with the side taken from the place, the organ or the finding where it is not stated apart."""
    finding, place, anatomy = clean(finding), clean(place), clean(anatomy)
    sides = set(_SIDES.findall(f"{finding} {anatomy} {'' if is_image_place(place) else place}"))
    sides.update((laterality,) if laterality else ())
    side = sides.pop() if len(sides) == 1 else None  # where a record names two, it is not known which holds
    where = place if is_image_place(place) else _without_side(place)
    return Facts(
        finding=canonical_finding(finding),
        is_negated=is_negated,
        is_certain=is_certain,
        side=side,
        place=where or None,
        size=size,
        severity=severity,
        anatomy=_without_side(anatomy) or None,
    )


def _without_side(name: str) -> str:
    """ "left lower lobe" -> "lower lobe"."""
    return " ".join(_SIDES.sub("", name).split())


def entails(known: Facts, claim: Facts) -> bool:
    """True where the claim says no more than what is known, of a finding that is there: it is true of the image."""
    if known.is_negated or claim.is_negated or known.finding != claim.finding:
        return False
    if claim.is_certain and not known.is_certain:
        return False
    return _says_no_more(known, claim)


def is_false(claim: Facts, known: Sequence[Facts]) -> bool:
    """True where the claim is surely false of an image of which all regions are known.

    A denial is false if a certain region entails what it denies. What is claimed to be there is false if a region
    denies it, or if every region that is there differs from it in a stated attribute. Where regions contradict each
    other, what one of them says is not false; nor is a general word ("abnormality") that one denies and that another
    with a finding may mean.
    """
    is_denied = any(_denies(fact, claim) for fact in known)
    if claim.is_negated:
        return not is_denied and any(_affirms(fact, claim) for fact in known)
    if any(entails(fact, claim) for fact in known):
        return False
    return (is_denied and not is_general(claim.finding)) or all(_differs(fact, claim) for fact in known)


def _affirms(known: Facts, denial: Facts) -> bool:
    """True where what `denial` denies is certainly there."""
    is_there = not known.is_negated and known.is_certain and known.finding == denial.finding
    return is_there and _says_no_more(known, denial)


def _denies(known: Facts, claim: Facts) -> bool:
    """True where what the claim says, or denies, is of a kind that is denied: "no pneumothorax" denies a large one."""
    return known.is_negated and known.finding == claim.finding and _says_no_more(claim, known)


@lru_cache(maxsize=65536)
def _differs(known: Facts, claim: Facts) -> bool:
    """True where the region cannot be what the claim says is there; a denied finding is nothing that is there."""
    if known.is_negated or not may_be_one(known.finding, claim.finding):
        return True
    if {known.side, claim.side} == {"left", "right"}:
        return True
    if _are_two(known.size, claim.size) or _are_two(known.severity, claim.severity):
        return True
    if known.place and claim.place and exclude_each_other(known.place, claim.place):
        return True
    return _are_two(known.anatomy, claim.anatomy) and {known.anatomy, claim.anatomy} <= _ORGANS


def _says_no_more(known: Facts, claim: Facts) -> bool:
    """True where every attribute of the claim is left open or as known."""
    return (
        claim.side in (None, known.side)
        and claim.place in (None, known.place)
        and claim.size in (None, known.size)
        and claim.severity in (None, known.severity)
        and claim.anatomy in (None, known.anatomy)
    )


def _are_two(first: str | None, second: str | None) -> bool:
    """True for two stated values that differ."""
    return first is not None and second is not None and first != second
