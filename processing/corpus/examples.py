"""Examples: study records as plain dicts, the rows of a built corpus and what the `datasets` builder hands on."""

from __future__ import annotations

from typing import Any

from regionmed_clip.processing.corpus.captions import describe_region
from regionmed_clip.processing.corpus.multi_level_text import write_texts
from regionmed_clip.processing.corpus.negatives import write_negatives
from regionmed_clip.processing.corpus.records import (
    MaskRle,
    NegativeRecord,
    QARecord,
    RegionRecord,
    StudyRecord,
    TextRecord,
)
from regionmed_clip.processing.corpus.text_keys import caption_key, region_text_key

_REGION_FIELDS = (
    "finding",
    "anatomy",
    "laterality",
    "place",
    "size",
    "severity",
    "certainty",
    "is_negated",
    "text_origin",
)
_STUDY_FIELDS = tuple(
    name for name in StudyRecord.__dataclass_fields__ if name not in ("image", "regions", "qa", "window")
)


def example_from_record(
    record: StudyRecord, *, seed: int = 0, phash: str | None = None, looked_for: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The example of a record; docs/data_contract.md lists its columns.

    Args:
        record: the record; its image becomes a dict of `bytes` and `path`, exactly one of them filled.
        seed: of the choice among templates, synonyms and hard negatives; see `write_texts` and `write_negatives`.
        phash: the image's perceptual hash as 80 hex digits, where it is known.
        looked_for: the findings that a negative may put in the place of another: `Source.looked_for_in(record)`.
    """
    is_path = isinstance(record.image, str)
    return {
        "image": {"path": record.image, "bytes": None} if is_path else {"path": None, "bytes": record.image},
        **{name: getattr(record, name) for name in _STUDY_FIELDS},
        "window": None if record.window is None else list(record.window),
        "phash": phash,
        "caption_key": caption_key(record),
        "regions": [_region_example(region) for region in record.regions],
        "qa": [_question_example(question) for question in record.qa],
        "texts": [_text_example(text) for text in write_texts(record, seed)],
        "negatives": [_negative_example(negative) for negative in write_negatives(record, seed, looked_for=looked_for)],
    }


def _region_example(region: RegionRecord) -> dict[str, Any]:
    """The region as a dict, its description filled in and its text key added."""
    return {
        "box": list(region.box),
        **{name: getattr(region, name) for name in _REGION_FIELDS},
        "description": region.description or describe_region(region),
        "key": region_text_key(region),
        "mask": _mask_example(region.mask_rle),
    }


def _mask_example(mask: MaskRle | None) -> dict[str, list[int]] | None:
    return None if mask is None else {"size": list(mask.size), "counts": list(mask.counts)}


def _question_example(question: QARecord) -> dict[str, str]:
    return {"question": question.question, "answer": question.answer, "kind": question.kind}


def _text_example(text: TextRecord) -> dict[str, Any]:
    return {"level": text.level, "region": text.region, "text": text.text, "key": text.key, "origin": text.origin}


def _negative_example(negative: NegativeRecord) -> dict[str, Any]:
    return {
        "region": negative.region,
        "text": negative.text,
        "key": negative.key,
        "changed": negative.changed,
    }
