"""Hard negatives by rule: true texts with one attribute changed, each false of its image by the image's own record.

The rules, by the name of what they change:

    laterality  left for right and right for left, also where the side is part of the place or the finding.
    place       another value of the place's own axis (places.py): the zones of a lung, the segments of a liver ...
    size        large for small and small for large, either for medium: never the next grade, which readers confuse.
    severity    in the same way: severe for mild, mild for severe, either for moderate.
    negation    what is there is denied, as it is described and altogether; what is denied is said to be there.
    finding     another finding of the same site (finding_table.py); where there is none, one of another site. Only one
                that the source looked for in every image: of others, being unsaid says nothing. An image that the
                source calls normal as a whole gets any finding added, as that claim denies them all.

A candidate is dropped unless it is surely false (entailment.py): what may be true of any region of the image is not
false, and a doubtful finding cannot be denied. Texts count too: a finding that the record names without a region (a
diagnosis, an answer) is put nowhere, nor are a side, place or grade that a text of the source names. Like all texts by
template, negatives state no attribute that the record leaves open: they come from the statement of a region, not from
its wording, so a text of the source gets them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest

from regionmed_clip.processing.corpus.captions import (
    MAX_CAPTION_STATEMENTS,
    Statement,
    clean,
    count_statements,
    describe_region,
    is_image_place,
    say_caption,
    state_region,
    study_phrase,
)
from regionmed_clip.processing.corpus.entailment import Facts, is_false, know
from regionmed_clip.processing.corpus.finding_table import (
    SITES,
    abnormal_findings,
    canonical_findings,
    findings_elsewhere,
    findings_instead,
    findings_named,
    is_abnormal,
    may_be_one,
    names_something,
    part_of_body,
)
from regionmed_clip.processing.corpus.multi_level_text import claims_normality
from regionmed_clip.processing.corpus.places import other_places
from regionmed_clip.processing.corpus.records import NegativeRecord, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.seeded_choice import SeededChoice
from regionmed_clip.processing.corpus.synonyms import canonical_finding
from regionmed_clip.processing.corpus.text_keys import (
    stated_caption_key,
    statement_key,
)

MAX_IMAGE_NEGATIVES = 4
_WORD = re.compile(r"[a-z0-9]+")
_NOWHERE = (0.0, 0.0, 1.0, 1.0)  # the box of a region that only carries attributes
_OTHER_SIZES: dict[str | None, tuple[str, ...]] = {
    "small": ("large",),
    "medium": ("small", "large"),
    "large": ("small",),
}
_OTHER_SEVERITIES: dict[str | None, tuple[str, ...]] = {
    "mild": ("severe",),
    "moderate": ("mild", "severe"),
    "severe": ("mild",),
}
_INSTEAD = tuple(name for sites in SITES.values() for groups in sites for group in groups for name in group)
_DENYING_ANSWERS = ("no", "none", "0")
_OTHER_SIDE = {"left": "right", "right": "left"}
_SAME_WORDS = {  # of a report -> of a template: what the first says, the second may say too
    **dict.fromkeys(("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical"), ("left", "right")),
    **dict.fromkeys(("tiny", "little", "minimal", "minor", "slight", "trace"), ("small", "mild")),
    **dict.fromkeys(("big", "huge", "massive", "marked", "extensive"), ("large", "severe")),
    **dict.fromkeys(("severely", "moderately", "mildly"), ("severe", "moderate", "mild")),
    **dict.fromkeys(("basal", "basilar", "base", "bases", "bibasilar"), ("lower", "left", "right")),
    **dict.fromkeys(("apical", "apex", "apices", "biapical"), ("upper", "left", "right")),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement that differs from a region's in `changed`; `region` carries it, `facts` are what it claims."""

    changed: str
    region: RegionRecord
    facts: Facts
    text: str
    key: int


def write_negatives(
    record: StudyRecord, seed: int = 0, max_per_region: int = 8, looked_for: frozenset[str] = frozenset()
) -> tuple[NegativeRecord, ...]:
    """False texts of a record, equal for equal arguments; those of the regions in order, then the image's.

    Args:
        record: the record; its regions need not be described.
        seed: of the choice among more candidates than are wanted; every kind of change comes before a second of any.
        max_per_region: at most so many for each region, and MAX_IMAGE_NEGATIVES for the image; at least 0.
        looked_for: the findings that may be put in the place of another: see `Source.looked_for_in`.
    """
    if max_per_region < 0:
        raise ValueError(f"max_per_region is {max_per_region}; it must be at least 0. Use 0 for none of the regions.")
    choice = SeededChoice("negatives", seed, record.image_id)
    part = part_of_body(record.modality, record.anatomy)
    known = tuple(dict.fromkeys(know(region) for region in record.regions))
    own_words = {region.description.lower() for region in record.regions}
    unplaced, source_words = _named_without_region(record), _words_of_source(record)
    statements = dict.fromkeys(state_region(region) for region in record.regions)
    true_keys = {statement_key(statement) for statement in statements}
    false_of = {
        statement: [
            candidate
            for candidate in list_candidates(statement, part, canonical_findings(looked_for))
            if candidate.key not in true_keys
            and candidate.text not in own_words
            and is_false(candidate.facts, known)
            and not _may_be_said(candidate, statement, unplaced, source_words)
        ]
        for statement in statements
    }
    negatives = []
    for index, region in enumerate(record.regions):
        for candidate in _take_turns(false_of[state_region(region)], choice)[:max_per_region]:
            negatives.append(NegativeRecord(candidate.text, candidate.key, candidate.changed, index))
    return (*negatives, *_image_negatives(record, part, known, false_of, unplaced, choice))


@lru_cache(maxsize=8192)
def list_candidates(statement: Statement, part: str | None, looked_for: frozenset[str]) -> tuple[Candidate, ...]:
    """Every candidate of a statement in a study of this part of the body, no two of one meaning; some may be true."""
    found: dict[int, Candidate] = {}
    for changed, region in _changes(statement, part, looked_for):
        stated = state_region(region)
        key = statement_key(stated)
        if key != statement_key(statement):
            found.setdefault(key, Candidate(changed, region, know(stated), describe_region(region), key))
    return tuple(found.values())


@lru_cache(maxsize=16384)
def read_negative(statement: Statement, text: str, key: int) -> Statement | None:
    """What a negative of a region that states `statement` states itself, read from its text and key; None: no rule's.

    A row of a built corpus has no more of it, nor the findings that its source looked for.
    """
    region = carry(statement)
    changed = [region for _, region in _changes(statement, None, frozenset())]
    for finding in (name for name in _INSTEAD if name in text):
        changed.append(replace(region, finding=finding, severity=None))
        changed.append(RegionRecord(_NOWHERE, finding, laterality=region.laterality, certainty=region.certainty))
    stated = (state_region(other) for other in changed)
    return next((other for other in stated if statement_key(other) == key), None)


def _changes(statement: Statement, part: str | None, looked_for: frozenset[str]) -> Iterator[tuple[str, RegionRecord]]:
    """(what is changed, the changed region) for every rule."""
    region = carry(statement)
    if not names_something(region.finding):
        return
    if region.is_negated:
        yield "negation", replace(region, is_negated=False, certainty=None)
        return
    swapped = _swap_side(region)
    if swapped is not None:
        yield "laterality", swapped
    for place in other_places(region.place, region.laterality) if region.place else ():
        yield "place", replace(region, place=place)
    for size in _OTHER_SIZES.get(region.size, ()):
        yield "size", replace(region, size=size)
    for severity in _OTHER_SEVERITIES.get(region.severity, ()):
        yield "severity", replace(region, severity=severity)
    if region.certainty is None:
        yield "negation", replace(region, is_negated=True)
        yield "negation", RegionRecord(_NOWHERE, region.finding, is_negated=True)
    instead = findings_instead(region.finding, part, looked_for)
    for finding in instead:
        yield "finding", replace(region, finding=finding, severity=None)
    if not instead:
        for finding in findings_elsewhere(region.finding, part, looked_for):
            yield "finding", RegionRecord(_NOWHERE, finding, laterality=region.laterality, certainty=region.certainty)


def carry(statement: Statement) -> RegionRecord:
    """A region with the attributes of a statement; `state_region` of it gives the statement back."""
    return RegionRecord(
        box=_NOWHERE,
        finding=statement.finding,
        anatomy=statement.anatomy,
        laterality=statement.laterality,
        place=statement.place,
        size=statement.size,
        severity=statement.severity,
        certainty=statement.certainty,
        is_negated=statement.is_negated,
    )


def _swap_side(region: RegionRecord) -> RegionRecord | None:
    """The region on the other side of the patient; None where no side is stated, or both, or the other has no such."""
    if region.place and "middle lobe" in region.place:
        return None
    if region.laterality is not None:
        other = _OTHER_SIDE.get(region.laterality)
        return None if other is None else replace(region, laterality=other)
    place = region.place if region.place is None or is_image_place(region.place) else _swap_words(region.place)
    anatomy = None if region.anatomy is None else _swap_words(region.anatomy)
    swapped = replace(region, finding=_swap_words(region.finding), place=place, anatomy=anatomy)
    return None if swapped == region else swapped


def _swap_words(name: str) -> str:
    """`name` with left and right exchanged."""
    return " ".join(_OTHER_SIDE.get(word, word) for word in name.split())


def _take_turns(candidates: Sequence[Candidate], choice: SeededChoice) -> list[Candidate]:
    """All candidates in an order of chance in which the kinds of change take turns."""
    by_change: dict[str, list[Candidate]] = {}
    for candidate in choice.shuffled(candidates):
        by_change.setdefault(candidate.changed, []).append(candidate)
    rounds = zip_longest(*by_change.values())
    return [candidate for one_round in rounds for candidate in one_round if candidate is not None]


def _named_without_region(record: StudyRecord) -> frozenset[str]:
    """The findings that no region has and that its texts name, or deny; a question answered by no names none."""
    asked = (pair for pair in record.qa if pair.answer.strip().lower() not in _DENYING_ANSWERS)
    questions = (text for pair in asked for text in (pair.question, pair.answer))
    descriptions = (region.description for region in record.regions if region.text_origin == "source")
    texts = (record.caption, record.findings, record.impression, *questions, *descriptions)
    named = findings_named("\n".join(dict.fromkeys(texts)).lower())
    regions = {region.finding for region in record.regions}
    own = [{canonical_finding(clean(finding)), *clean(finding).split()} for finding in regions]
    return frozenset(
        name
        for name in named
        if not any(canonical_finding(name) in words or set(name.split()) <= words for words in own)
    )


def _words_of_source(record: StudyRecord) -> frozenset[str]:
    """The words of all texts of a record that its source has written, with those of a template that mean the same."""
    texts = [region.description for region in record.regions if region.text_origin == "source"]
    if record.text_origin == "source":
        texts += [record.caption, record.findings, record.impression]
    words = set(_WORD.findall("\n".join(texts).lower()))
    return frozenset(words.union(*(_SAME_WORDS.get(word, ()) for word in words)))


def _may_be_said(
    candidate: Candidate, statement: Statement, unplaced: frozenset[str], source_words: frozenset[str]
) -> bool:
    """True where a text of the record may mean what the candidate says beyond the statement."""
    if candidate.changed == "finding":
        return _may_be_any(candidate.facts.finding, unplaced)
    new_words = set(_WORD.findall(candidate.text)) - set(_WORD.findall(describe_region(carry(statement))))
    return bool(new_words) and candidate.changed != "negation" and new_words <= source_words


def _may_be_any(finding: str, others: frozenset[str]) -> bool:
    return any(may_be_one(finding, other) for other in others)


def _image_negatives(
    record: StudyRecord,
    part: str | None,
    known: Sequence[Facts],
    false_of: dict[Statement, list[Candidate]],
    unplaced: frozenset[str],
    choice: SeededChoice,
) -> list[NegativeRecord]:
    """False captions: the image's, by template, with one statement changed, added to a normal image, or all denied."""
    study, is_normal = study_phrase(record.modality, record.view, record.anatomy), claims_normality(record)
    found = []
    if is_normal and not record.regions:
        absent = [finding for finding in abnormal_findings(part) if not _may_be_any(finding, unplaced)]
        for finding in choice.shuffled(absent)[:MAX_IMAGE_NEGATIVES]:
            found.append(_false_caption(study, [RegionRecord(_NOWHERE, finding)], "finding"))
    if not is_normal:
        if any(is_abnormal(fact.finding, part) and fact.is_certain and not fact.is_negated for fact in known):
            found.append(_false_caption(study, [], "negation", is_normal=True))
        pool = [(statement, candidate) for statement, candidates in false_of.items() for candidate in candidates]
        for statement, candidate in choice.shuffled(pool):
            if len(found) == MAX_IMAGE_NEGATIVES or len(false_of) > MAX_CAPTION_STATEMENTS:
                break  # a caption with more statements is coarser, and may be true
            if is_false(replace(candidate.facts, anatomy=None), known):  # a caption leaves organs out
                regions = [candidate.region if state_region(r) == statement else r for r in record.regions]
                found.append(_false_caption(study, regions, candidate.changed))
    return [negative for negative in dict.fromkeys(found) if negative.text.lower() != record.caption.lower()]


def _false_caption(
    study: str, regions: Sequence[RegionRecord], changed: str, *, is_normal: bool = False
) -> NegativeRecord:
    """The caption of an image with these regions."""
    statements = count_statements(regions)
    text = say_caption(study, statements, is_normal=is_normal)
    return NegativeRecord(text, stated_caption_key(study, statements, is_normal=is_normal), changed)
