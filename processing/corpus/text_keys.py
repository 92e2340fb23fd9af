"""Keys of texts: stable 63-bit hashes of everything a text STATES, equal in every process and on every machine.

Two wordings of one meaning share a key, synonyms (synonyms.py) included; a known attribute that the text leaves out
does not enter it. A text taken over from a source cannot be read by rule, so its key is that of its words. What a
template states of a region never has the key of what one states of the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from regionmed_clip.processing.corpus.captions import (
    Statement,
    count_full_statements,
    count_statements,
    describe_region,
    is_normal_caption,
    list_impressions,
    say_caption,
    state_region,
    study_phrase,
)
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.synonyms import canonical_finding

_SEPARATOR = "\x1f"  # the unit separator of ASCII: ("a", "bc") and ("ab", "c") differ


def hash_meaning(parts: Iterable[str]) -> int:
    """Hash of `parts`, order included, in [0, 2**63): blake2b, so it never changes between runs."""
    said = "".join(f"{part}{_SEPARATOR}" for part in parts)
    return int.from_bytes(hashlib.blake2b(said.encode("utf-8"), digest_size=8).digest(), "big") >> 1


def free_text_key(text: str) -> int:
    """Key of a text of unknown structure: its words, whatever their case and spacing."""
    return hash_meaning(("text", *text.lower().split()))


@lru_cache(maxsize=8192)
def statement_key(statement: Statement) -> int:
    """Key of a region text that states `statement`; a statement without a finding is that of an attribute phrase."""
    return hash_meaning(("region", *_parts(statement)))


def region_text_key(region: RegionRecord) -> int:
    """Key of the text of `region`: what `describe_region` states, or the words of a text given by the source."""
    if region.text_origin == "source" and region.description.lower() != describe_region(region):
        return free_text_key(region.description)
    return statement_key(state_region(region))


def caption_key(record: StudyRecord) -> int:
    """Key of the caption of `record`: its modality and the sorted stated regions with their stated counts.

    A caption of the source, or one that states no region, is keyed by its words.
    """
    if record.text_origin == "source" or not record.regions:
        return free_text_key(record.caption)
    study = study_phrase(record.modality, record.view, record.anatomy)
    return stated_caption_key(study, count_statements(record.regions), is_normal=is_normal_caption(record.caption))


def stated_caption_key(
    study: str, counted_statements: Sequence[tuple[Statement, str]], *, is_normal: bool = False
) -> int:
    """Key of what `captions.say_caption` says of the same arguments, in whatever words."""
    if not counted_statements:
        return free_text_key(say_caption(study, (), is_normal=is_normal))
    return hash_meaning(("caption", study, "normal" if is_normal else "", *_counted_parts(counted_statements)))


def findings_key(regions: Sequence[RegionRecord], *, is_normal: bool = False) -> int:
    """Key of what `captions.write_findings` says of the same arguments, in whatever words."""
    statements = count_full_statements(regions)
    if is_normal and not statements:
        return normal_key()
    bare = list_impressions(regions)
    if not is_normal and all(count == "one" and statement in bare for statement, count in statements):
        return impression_key(regions)  # the findings say no more: "Cardiomegaly." is both
    said = _counted_parts(statements)
    return hash_meaning(("findings", "normal" if is_normal else "", *said))


def impression_key(regions: Sequence[RegionRecord], *, is_normal: bool = False) -> int:
    """Key of what `captions.write_impression` says of the same arguments, in whatever words."""
    if is_normal:
        return normal_key()
    statements = sorted(_parts(statement) for statement in list_impressions(regions))
    return hash_meaning(("impression", *(part for parts in statements for part in parts)))


def normal_key() -> int:
    """Key of the image text that says nothing but that nothing abnormal is seen."""
    return hash_meaning(("normal",))


@lru_cache(maxsize=8192)
def _parts(statement: Statement) -> tuple[str, ...]:
    """The parts of a statement with the finding under its canonical name."""
    return replace(statement, finding=canonical_finding(statement.finding)).parts()


def _counted_parts(counted_statements: Sequence[tuple[Statement, str]]) -> tuple[str, ...]:
    """The parts of all statements and counts in an order that does not depend on that of the regions."""
    statements = sorted((count, *_parts(statement)) for statement, count in counted_statements)
    return tuple(part for statement in statements for part in statement)
