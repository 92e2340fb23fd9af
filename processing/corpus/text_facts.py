"""What texts state as numbers, so that a loss can tell where one text says less than another without reading either.

Facts are read as `entailment.know` reads them: names of findings that mean the same are one, and a side counts as
laterality wherever it is said. A text says less than another if each of its statements agrees with some statement of
the other in every fact that it states. Whatever `entailment.entails` derives from a text says less in this sense, or
the same. Two choices serve that:

    certainty   a text without doubt says "definite"; a doubtful one leaves the certainty unsaid, for "possible nodule"
                follows from "large nodule". Grades of doubt are not told apart.
    is_negated  is always said: "nodule" does not say less than "no nodule".

A caption also states what kind of image it shows, as a statement of its own, so that "CT with a nodule" says neither
less nor more than "radiograph with a nodule". A count other than one belongs to the finding: captions that differ in
counts alone contradict each other, as counts are stated exactly. What a caption denies it denies as a whole here ("no
left effusion" as "no effusion"): a denial says more the fewer attributes it has, and no equal values would show that.
Of an organ that a caption leaves out as implied (captions.brief) it is not known here that it is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from regionmed_clip.processing.corpus.captions import Statement, clean, study_phrase
from regionmed_clip.processing.corpus.entailment import know
from regionmed_clip.processing.corpus.text_keys import hash_meaning

FACTS = ("finding", "is_negated", "certainty", "size", "severity", "laterality", "place", "anatomy")
NUM_FACTS = len(FACTS)
NO_FACTS = (0,) * NUM_FACTS  # of a text of unknown structure
_ABNORMALITY = "focal abnormality"

Facts = tuple[int, ...]


@lru_cache(maxsize=16384)
def statement_facts(statement: Statement) -> Facts:
    """A 63-bit hash for each of FACTS, 0 where it is unsaid; the first two are never 0."""
    return _counted_facts(statement, "one")


@lru_cache(maxsize=8192)
def caption_facts(
    modality: str,
    view: str | None,
    anatomy: str | None,
    counted_statements: tuple[tuple[Statement, str], ...],
    *,
    is_normal: bool = False,
) -> tuple[Facts, ...]:
    """The facts of a caption by template, one tuple a statement; () for one that states no region.

    Args:
        counted_statements: as `captions.count_statements` gives them.
        is_normal: whether it claims besides that nothing abnormal is seen.
    """
    if not counted_statements:
        return ()
    facts = [_study_facts(modality, view, anatomy), *(_caption_facts(*counted) for counted in counted_statements)]
    if is_normal:
        facts.append(_caption_facts(Statement(_ABNORMALITY, is_negated=True), "one"))
    return tuple(dict.fromkeys(facts))


def says_no_more(facts: Sequence[Facts], others: Sequence[Facts]) -> bool:
    """True where every statement of a text agrees with some statement of the other in all that it states.

    False where either text is of unknown structure.
    """
    if not others or NO_FACTS in (*facts, *others):
        return False
    return bool(facts) and all(any(_agrees(one, other) for other in others) for one in facts)


def _agrees(facts: Facts, other: Facts) -> bool:
    return all(value in (0, said) for value, said in zip(facts, other))


def _caption_facts(statement: Statement, count: str) -> Facts:
    """The facts of a statement as a caption makes it: with its count, and of a denial what it denies alone."""
    if statement.is_negated:
        return statement_facts(Statement(statement.finding, is_negated=True))
    return _counted_facts(statement, count)


def _counted_facts(statement: Statement, count: str) -> Facts:
    known = know(statement)
    said = {
        "finding": known.finding if count == "one" else f"{count} {known.finding}",
        "is_negated": str(known.is_negated),
        "certainty": "definite" if known.is_certain else None,
        "size": known.size,
        "severity": known.severity,
        "laterality": known.side,
        "place": known.place,
        "anatomy": known.anatomy,
    }
    return tuple(_hash(name, said[name]) for name in FACTS)


def _study_facts(modality: str, view: str | None, anatomy: str | None) -> Facts:
    """The kind of image as a statement: the modality as what is there, the view as its place."""
    whole = study_phrase(modality, view, anatomy)
    said_view = clean(view) if whole != study_phrase(modality, None, anatomy) else ""  # not what the modality says too
    said_anatomy = clean(anatomy) if whole != study_phrase(modality, view, None) else ""
    said = {"finding": f"study {clean(modality)}", "is_negated": "False", "place": said_view, "anatomy": said_anatomy}
    return tuple(_hash(name, said.get(name)) for name in FACTS)


def _hash(name: str, value: str | None) -> int:
    """0 for what is unsaid, else a number in [1, 2**63) that no other fact has."""
    return max(1, hash_meaning(("fact", name, value))) if value else 0
