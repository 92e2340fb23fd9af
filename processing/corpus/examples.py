"""Examples: study records as plain dicts, the form in which the `datasets` builder hands them on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from regionmed_clip.processing.corpus.captions import describe_region
from regionmed_clip.processing.corpus.records import MaskRle, RegionRecord, StudyRecord
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
_STUDY_FIELDS = tuple(name for name in StudyRecord.__dataclass_fields__ if name not in ("image", "regions", "qa"))


def example_from_record(record: StudyRecord, *, seed: int = 0, phash: str | None = None) -> dict[str, Any]:
    """The example of `record`: its fields, `image` as a dict of bytes and path, and the keys of its texts."""
    is_path = isinstance(record.image, str)
    return {
        "image": {"path": record.image, "bytes": None} if is_path else {"path": None, "bytes": record.image},
        **{name: getattr(record, name) for name in _STUDY_FIELDS},
        "window": None if record.window is None else list(record.window),
        "phash": phash,
        "caption_key": caption_key(record),
        "regions": [_region_example(region) for region in record.regions],
        "qa": [asdict(question) for question in record.qa],
        "texts": [],
        "negatives": [],
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
