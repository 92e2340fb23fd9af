"""Keys of texts: stable 63-bit hashes of everything a text STATES, equal in every process and on every machine.

Two wordings of one meaning share a key; a known attribute that the text leaves out does not enter it.
A text taken over from a source cannot be read by rule, so its key is that of its words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from regionmed_clip.processing.corpus.captions import (
    count_statements,
    describe_region,
    is_normal_caption,
    state_region,
    study_phrase,
)
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord

_SEPARATOR = b"\x1f"  # the unit separator of ASCII: ("a", "bc") and ("ab", "c") differ


def hash_meaning(parts: Iterable[str]) -> int:
    """Hash of `parts`, order included, in [0, 2**63): blake2b, so it never changes between runs."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8"))
        digest.update(_SEPARATOR)
    return int.from_bytes(digest.digest(), "big") >> 1


def free_text_key(text: str) -> int:
    """Key of a text of unknown structure: its words, whatever their case and spacing."""
    return hash_meaning(("text", *text.lower().split()))


def region_text_key(region: RegionRecord) -> int:
    """Key of the text of `region`: what `describe_region` states, or the words of a text given by the source."""
    if region.text_origin == "source" and region.description.lower() != describe_region(region):
        return free_text_key(region.description)
    return hash_meaning(("region", *state_region(region).parts()))


def caption_key(record: StudyRecord) -> int:
    """Key of the caption of `record`: its modality and the sorted stated regions with their stated counts.

    A caption of the source, or one that states no region, is keyed by its words.
    """
    if record.text_origin == "source" or not record.regions:
        return free_text_key(record.caption)
    statements = sorted((count, *statement.parts()) for statement, count in count_statements(record.regions))
    is_normal = "normal" if is_normal_caption(record.caption) else ""
    study = study_phrase(record.modality, record.view, record.anatomy)
    return hash_meaning(("caption", study, is_normal, *(part for statement in statements for part in statement)))
