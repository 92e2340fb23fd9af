"""Texts by template: region texts, captions, findings and impressions that state what the record states, never more.

One `Statement` holds what a text says of a region; the wording and the key of the text both come from it.
Region texts stand alone ("large pulmonary nodule in the right upper zone of the lung"); captions leave out the organ
that the place implies, group equal statements with counts in words, and get coarser when there is too much to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from regionmed_clip.processing.corpus.grammar import capitalize, count_in_words, counted, join_list
from regionmed_clip.processing.corpus.records import RegionRecord

MAX_CAPTION_STATEMENTS = 4  # above it the caption drops places, then all attributes but the finding

_IMAGE_PLACES = re.compile(r"(upper|lower|middle|central)?\s*(left|right|center|centre|middle|top|bottom)|upper|lower")
_SIDED_PLACES = re.compile(r".*\b(zone|lobe|base|apex|hilum|hemisphere|angle|field)")  # the side is said of the place
_IMPLYING_PLACES = re.compile(r".*\b(zone|lobe)")  # a caption needs no "of the lung" after these
_NAMED_PLACES = re.compile(r"(segment|level|quadrant|zone)\s+\S*\d\S*|[a-z]?\d\S*")  # "segment 7": no article
_ORGAN_STEMS = {  # adjectives by which a finding already names the organ
    "lung": ("lung", "pulmonary"),
    "hilum": ("hilum", "hilar"),
    "pleura": ("pleura",),
    "pleural space": ("pleura", "pneumothorax"),
    "heart": ("heart", "cardi", "cardiac"),
    "retina": ("retina", "macula", "fovea", "optic disc"),
    "kidney": ("kidney", "renal"),
    "liver": ("liver", "hepatic"),
    "spleen": ("spleen", "splenic", "splenomegaly"),
    "brain": ("brain", "cerebral", "intracranial"),
    "macula": ("macula",),
    "optic disc": ("optic disc",),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a text says of one region; None is left unsaid."""

    finding: str
    is_negated: bool = False
    certainty: str | None = None
    size: str | None = None
    severity: str | None = None
    laterality: str | None = None
    place: str | None = None
    anatomy: str | None = None

    def parts(self) -> tuple[str, ...]:
        """The meaning as named strings, for hashing and sorting."""
        said = ("certainty", "size", "severity", "laterality", "place", "anatomy")
        values = [f"{name}={getattr(self, name)}" for name in said if getattr(self, name) is not None]
        return (f"finding={self.finding}", f"is_negated={self.is_negated}", *values)


def state_region(region: RegionRecord) -> Statement:
    """What the region text says: every known attribute that the finding or the place does not say already.

    A side is stated as laterality wherever the record has it: "left lower lobe" is the lower lobe on the left.
    """
    return _state(
        region.finding,
        region.is_negated,
        region.certainty,
        region.size,
        region.severity,
        region.laterality,
        region.place,
        region.anatomy,
    )


@lru_cache(maxsize=8192)
def _state(
    finding: str,
    is_negated: bool,
    certainty: str | None,
    size: str | None,
    severity: str | None,
    laterality: str | None,
    place: str | None,
    anatomy: str | None,
) -> Statement:
    """The statement of a region with these attributes; corpora repeat few of them many times."""
    finding = clean(finding)
    place = clean(place) or None
    anatomy = clean(anatomy) or None
    if anatomy:
        laterality, anatomy = _split_side(laterality, anatomy, finding)
    if anatomy and (names_organ(place or "", anatomy) or (place is None and names_organ(finding, anatomy))):
        # "in the right lung" is worth saying of a pulmonary nodule; "of the pleura" of a pleural effusion is not
        anatomy = anatomy if place is None and laterality in ("left", "right") and _is_paired(anatomy) else None
    if place and is_image_place(place):
        anatomy = None
    elif place:
        side, rest = _split_side(laterality, place, finding)
        if not (is_image_place(rest) or _is_named(rest)) and (anatomy is None or _SIDED_PLACES.match(rest)):
            laterality, place = side, rest
    return Statement(
        finding=finding,
        is_negated=is_negated,
        certainty=None if certainty == "definite" else _unless_said(certainty, finding),
        size=_unless_said(size, finding),
        severity=_unless_said(severity, finding),
        laterality=_unless_said(laterality, f"{finding} {'' if place and is_image_place(place) else place or ''}"),
        place=place,
        anatomy=anatomy,
    )


def describe_region(region: RegionRecord) -> str:
    """The region text: a noun phrase without article that stands alone, e.g. "small cyst in segment 7 of the liver"."""
    statement = state_region(region)
    phrase = " ".join(part for part in (*adjectives(statement), statement.finding, location(statement)) if part)
    return f"no {phrase}" if statement.is_negated else phrase


def count_statements(regions: Sequence[RegionRecord]) -> list[tuple[Statement, str]]:
    """Distinct statements of a caption with their counts in words ("one", "several"), in the order of the caption.

    The order is that of the counts, then of the statements' words: it does not depend on the order of the regions.
    """
    counts = Counter(brief(state_region(region)) for region in regions)
    for unsaid in (("place", "anatomy"), ("size", "severity", "laterality")):
        if len(counts) > MAX_CAPTION_STATEMENTS:
            counts = _coarsen(counts, unsaid)
    return _in_order(counts)


@lru_cache(maxsize=1024)
def study_phrase(modality: str, view: str | None = None, anatomy: str | None = None) -> str:
    """How texts name the study: "axial CT of the abdomen"; what the modality already says is not repeated."""
    noun = _clean_case(modality)
    if view and not re.search(rf"\b{re.escape(clean(view))}\b", noun.lower()):  # "radiograph" does not say "AP"
        noun = f"{_clean_case(view)} {noun}"
    if anatomy and not names_organ(noun.lower(), clean(anatomy)):
        noun = f"{noun} of the {clean(anatomy)}"
    return noun


def write_caption(
    modality: str,
    view: str | None,
    regions: Sequence[RegionRecord],
    *,
    anatomy: str | None = None,
    is_normal: bool = False,
) -> str:
    """The image text, one sentence; `is_normal=True` alone lets it say that nothing abnormal is seen.

    Without regions and with `is_normal=False` it names the study and claims nothing.
    """
    return say_caption(study_phrase(modality, view, anatomy), count_statements(regions), is_normal=is_normal)


def say_caption(study: str, counted_statements: Sequence[tuple[Statement, str]], *, is_normal: bool = False) -> str:
    """The image text of a study (see `study_phrase`) with the statements of `count_statements`."""
    present = [counted_phrase(statement, count) for statement, count in counted_statements if not statement.is_negated]
    absent = [bare_phrase(statement) for statement, _ in counted_statements if statement.is_negated]
    text = f"normal {study}" if is_normal else study
    if present:
        text += f" with {join_list(present)}"
    if absent:
        text += f"{',' if present else ''} without {join_list(absent, 'or')}"
    elif is_normal:
        text += f"{',' if present else ''} without focal abnormality"
    return f"{capitalize(text)}."


def is_normal_caption(caption: str) -> bool:
    """True for a template caption that claims normality (written with `is_normal=True`)."""
    return caption.lower().startswith("normal ")


def write_findings(regions: Sequence[RegionRecord], *, is_normal: bool = False) -> str:
    """The findings section: one sentence per statement in full; "" where there is nothing to say."""
    sentences = [
        f"No {bare_phrase(statement)}." if statement.is_negated else f"{capitalize(counted_phrase(statement, count))}."
        for statement, count in count_full_statements(regions)
    ]
    if is_normal:
        sentences.append("No focal abnormality.")
    return " ".join(sentences)


def count_full_statements(regions: Sequence[RegionRecord]) -> list[tuple[Statement, str]]:
    """Distinct statements of the findings section with their counts in words, nothing left out or coarsened."""
    return _in_order(Counter(state_region(region) for region in regions))


def write_impression(regions: Sequence[RegionRecord], *, is_normal: bool = False) -> str:
    """The impression: the distinct findings that are present, e.g. "Pleural effusion and pulmonary nodule."."""
    findings = [bare_phrase(statement) for statement in list_impressions(regions)]
    if is_normal:
        return "No focal abnormality."
    return f"{capitalize(join_list(findings))}." if findings else ""


def list_impressions(regions: Sequence[RegionRecord]) -> list[Statement]:
    """The distinct findings that are present, each with its doubt and nothing else, in the order of the impression."""
    stated = (state_region(region) for region in regions if not region.is_negated)
    return sorted(
        {Statement(statement.finding, certainty=statement.certainty) for statement in stated}, key=bare_phrase
    )


def _in_order(counts: Counter[Statement]) -> list[tuple[Statement, str]]:
    """The statements with their counts in words: denials last, then by count, then by words; no denial is counted."""
    said = {statement: 1 if statement.is_negated else count for statement, count in counts.items()}
    ordered = sorted(said.items(), key=lambda item: (item[0].is_negated, item[1], item[0].parts()))
    return [(statement, count_in_words(count)) for statement, count in ordered]


@lru_cache(maxsize=8192)
def brief(statement: Statement) -> Statement:
    """The statement as a caption says it: no organ where the place, or the finding beside a place, implies it."""
    place, anatomy, side = statement.place, statement.anatomy, statement.laterality
    is_implied = place is not None and anatomy is not None and _IMPLYING_PLACES.match(place) is not None
    if place is not None and anatomy is not None and side is None:
        is_implied = is_implied or names_organ(statement.finding, anatomy)
    return replace(statement, anatomy=None) if is_implied else statement


def _coarsen(counts: Counter[Statement], unsaid: tuple[str, ...]) -> Counter[Statement]:
    """The statements without the attributes `unsaid`; denials stay whole: "no left effusion" is not "no effusion"."""
    nothing: dict[str, None] = dict.fromkeys(unsaid)
    coarser: Counter[Statement] = Counter()
    for statement, count in counts.items():
        coarser[statement if statement.is_negated else replace(statement, **nothing)] += count
    return coarser


def adjectives(statement: Statement) -> Iterable[str]:
    """What stands before the finding; the side stands there if no place or organ can carry it."""
    for value in (statement.certainty, statement.size, statement.severity):
        if value:
            yield value
    if statement.laterality and not location_carries_side(statement):
        yield statement.laterality


def location_carries_side(statement: Statement) -> bool:
    """True where the side is said in the location: "in the right upper zone", "in the left kidney"."""
    if statement.laterality not in ("left", "right"):
        return False
    if statement.place is None:
        return statement.anatomy is not None
    return not is_image_place(statement.place) and (statement.anatomy is not None or not _is_named(statement.place))


def location(statement: Statement) -> str:
    """ "in the right upper zone of the lung", "in segment 7 of the liver", "in the left kidney", "" if nowhere."""
    side = f"{statement.laterality} " if location_carries_side(statement) else ""
    place, anatomy = statement.place, statement.anatomy
    if place is None:
        return f"in the {side}{anatomy}" if anatomy else ""
    if is_image_place(place):
        return f"in the {place} of the image"
    is_side_of_place = not _is_named(place) and (anatomy is None or _SIDED_PLACES.match(place) is not None)
    where = place if _is_named(place) else f"the {side if is_side_of_place else ''}{place}"
    return f"in {where}" + (f" of the {'' if is_side_of_place else side}{anatomy}" if anatomy else "")


@lru_cache(maxsize=8192)
def counted_phrase(statement: Statement, count: str) -> str:
    """The statement with an article or a count and, for many, the plural: "two small cysts in segment 7"."""
    phrase = counted(" ".join(adjectives(statement)), statement.finding, count)
    where = location(statement)
    return f"{phrase} {where}" if where else phrase


@lru_cache(maxsize=8192)
def bare_phrase(statement: Statement) -> str:
    """The statement without article, count or negation."""
    return " ".join(part for part in (*adjectives(statement), statement.finding, location(statement)) if part)


def clean(text: str | None) -> str:
    """`text` in lower case with single spaces."""
    return " ".join((text or "").lower().split())


def _clean_case(text: str) -> str:
    """`text` with single spaces, abbreviations kept or put in capitals ("axial ct" -> "axial CT")."""
    return " ".join(word.upper() if word in ("ct", "mri", "pa", "ap", "oct", "mr") else word for word in text.split())


def _unless_said(value: str | None, text: str) -> str | None:
    """`value`, or None where `text` says the word already."""
    return None if value is None or value in text.split() else value


def names_organ(text: str, anatomy: str) -> bool:
    """True where a word of `text` names the organ, as itself or by its adjective ("renal" of the kidney)."""
    stems = _ORGAN_STEMS.get(anatomy, (anatomy,))
    return any(re.search(rf"\b{re.escape(stem)}", text) for stem in stems)


def _split_side(laterality: str | None, name: str, finding: str) -> tuple[str | None, str]:
    """(side, the rest of `name`) where it starts with a side and nothing else names one; else both as they are."""
    side, _, rest = name.partition(" ")
    is_side = bool(rest) and side in ("left", "right") and laterality in (None, side)
    return (side, rest) if is_side and not {"left", "right"} & set(finding.split()) else (laterality, name)


def _is_paired(anatomy: str) -> bool:
    """True for organs of which a side can be told by the organ alone: "in the left kidney"."""
    return anatomy in ("lung", "kidney", "breast", "adrenal gland", "eye", "hip", "knee", "retina")


def is_image_place(place: str) -> bool:
    """True for a place in the image frame, such as "upper left"."""
    return _IMAGE_PLACES.fullmatch(place) is not None


def _is_named(place: str) -> bool:
    """True for a place that takes no article, such as "segment 7"."""
    return _NAMED_PLACES.fullmatch(place) is not None
