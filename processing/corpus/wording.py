"""Wordings of what is stated of a region: templates for its text, its attributes and its denial, under all synonyms.

Every function gives all wordings of one meaning, which share its key; multi_level_text.py chooses. No wording adds an
attribute: beside what the statement says there are only words such as "the region shows".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from regionmed_clip.processing.corpus.captions import (
    Statement,
    adjectives,
    bare_phrase,
    brief,
    counted_phrase,
    is_image_place,
    location,
    location_carries_side,
    state_region,
)
from regionmed_clip.processing.corpus.grammar import counted, is_or_are
from regionmed_clip.processing.corpus.records import RegionRecord
from regionmed_clip.processing.corpus.synonyms import names_of_finding


@dataclass(frozen=True, slots=True)
class Phrase:
    """One meaning with all its wordings."""

    statement: Statement
    texts: tuple[str, ...]


def state_shortly(region: RegionRecord) -> Statement:
    """The finding with its place and side: neither size nor severity, and no organ that the place implies.

    A doubt is kept, and a denial stays whole, for both would say more with less words.
    """
    statement = state_region(region)
    return statement if statement.is_negated else brief(replace(statement, size=None, severity=None))


@lru_cache(maxsize=8192)
def word_region(statement: Statement) -> tuple[str, ...]:
    """Region texts that state `statement`; the first is that of `captions.describe_region`."""
    return _under_all_names(statement, _denials if statement.is_negated else _sightings)


@lru_cache(maxsize=8192)
def word_denial(statement: Statement) -> tuple[str, ...]:
    """Sentences that deny a finding: what is normal about the image."""
    return _under_all_names(statement, _denial_sentences)


def word_attributes(region: RegionRecord) -> tuple[tuple[Phrase, ...], ...]:
    """For every stated attribute the phrases that state it, with the finding and without; () for a denied finding."""
    if region.is_negated:
        return ()
    return _attributes(state_region(region), region.laterality)


@lru_cache(maxsize=8192)
def _attributes(statement: Statement, laterality: str | None) -> tuple[tuple[Phrase, ...], ...]:
    subject = Statement(statement.finding, certainty=statement.certainty)
    phrases = []
    if statement.size:
        alone = (f"{statement.size} in size", f"of {statement.size} size")
        phrases.append(_phrases(replace(subject, size=statement.size), _sizes, alone))
    if statement.severity:
        alone = (f"{statement.severity} in severity", f"of {statement.severity} severity")
        phrases.append(_phrases(replace(subject, severity=statement.severity), _severities, alone))
    if statement.place or statement.anatomy:
        side = statement.laterality if location_carries_side(statement) else None
        placed = replace(subject, laterality=side, place=statement.place, anatomy=statement.anatomy)
        where = location(placed)
        phrases.append(_phrases(placed, _locations, (where, f"located {where}", f"found {where}", f"situated {where}")))
    side = statement.laterality or laterality  # the finding or the place may say it already
    if side:
        is_clear = statement.place is None or not is_image_place(statement.place)
        alone = _sides_alone(side) if is_clear else _sides_alone(side)[1:]
        with_finding = _sides if statement.laterality and is_clear else None
        phrases.append(_phrases(replace(subject, laterality=side), with_finding, alone))
    if statement.certainty:
        phrases.append(_phrases(subject, _doubts, ()))
    return tuple(phrases)


def _phrases(
    statement: Statement, say: Callable[[Statement], tuple[str, ...]] | None, alone: tuple[str, ...]
) -> tuple[Phrase, ...]:
    """The phrases of an attribute: `say` of the finding with it, and the words of the attribute alone."""
    phrases = [] if say is None else [Phrase(statement, _under_all_names(statement, say))]
    if alone:
        phrases.append(Phrase(replace(statement, finding="", certainty=None), alone))
    return tuple(phrases)


def _under_all_names(statement: Statement, say: Callable[[Statement], tuple[str, ...]]) -> tuple[str, ...]:
    """The distinct wordings of the statement under each name of its finding, the record's own first."""
    names = names_of_finding(statement.finding)
    return tuple(dict.fromkeys(text for name in names for text in say(replace(statement, finding=name))))


def _sightings(statement: Statement) -> tuple[str, ...]:
    """Region texts of a finding that is there."""
    where, said = location(statement), list(adjectives(statement))
    whole = counted_phrase(statement, "one")
    texts = [bare_phrase(statement), whole, f"the region shows {whole}", f"region with {whole}"]
    if said:
        texts.append(", ".join(filter(None, (statement.finding, *said, where))))
    if where:
        texts.append(f"{where}, {counted(' '.join(said), statement.finding, 'one')}")
    return tuple(texts)


def _denials(statement: Statement) -> tuple[str, ...]:
    """Region texts of a finding that is denied."""
    what = bare_phrase(statement)
    said = ("no", "no evidence of", "absence of", "without", "the region shows no", "region without")
    return tuple(f"{words} {what}" for words in said)


def _denial_sentences(statement: Statement) -> tuple[str, ...]:
    """The denial as sentences of a report."""
    what = bare_phrase(statement)
    return (f"There is no {what}.", f"No {what}.", f"No sign of {what}.", f"The image shows no {what}.")


def _subject(statement: Statement) -> str:
    """The finding with its doubt: "possible nodule"."""
    return " ".join(filter(None, (statement.certainty, statement.finding)))


def _sizes(statement: Statement) -> tuple[str, ...]:
    size, finding = statement.size, statement.finding
    return (
        f"the {_subject(statement)} {is_or_are(finding)} {size} in size",
        counted_phrase(statement, "one"),
        f"{counted(statement.certainty or '', finding, 'one')} of {size} size",
    )


def _severities(statement: Statement) -> tuple[str, ...]:
    severity, finding = statement.severity, statement.finding
    return (
        f"the {_subject(statement)} {is_or_are(finding)} {severity}",
        counted_phrase(statement, "one"),
        f"{counted(statement.certainty or '', finding, 'one')} of {severity} severity",
    )


def _locations(statement: Statement) -> tuple[str, ...]:
    where, is_are = location(statement), is_or_are(statement.finding)
    subject = _subject(statement)
    return (f"the {subject} {is_are} {where}", f"the {subject} {is_are} located {where}", f"{subject} found {where}")


def _sides(statement: Statement) -> tuple[str, ...]:
    subject, is_are = _subject(statement), is_or_are(statement.finding)
    if statement.laterality == "bilateral":
        return (f"the {subject} {is_are} on both sides", f"the {subject} {is_are} bilateral")
    side = statement.laterality
    return (f"the {subject} {is_are} on the {side} side", f"the {subject} {is_are} {side}-sided")


def _sides_alone(side: str) -> tuple[str, ...]:
    """Phrases for a side of the patient; the first could be read of the picture."""
    if side == "bilateral":
        return ("on both sides", "on both sides of the patient", "bilateral")
    return (f"on the {side} side", f"on the {side} side of the patient", f"on the patient's {side}", f"{side}-sided")


def _doubts(statement: Statement) -> tuple[str, ...]:
    finding = counted("", statement.finding, "one")
    return (
        counted_phrase(statement, "one"),
        _subject(statement),
        f"the presence of {finding} is {statement.certainty}",
    )
