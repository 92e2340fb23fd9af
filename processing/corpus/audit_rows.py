"""The checks of one row of a built corpus; see audit_report.RULES for what each rule says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from regionmed_clip.processing.corpus.audit_report import KINDS_OF_IDS, AuditReport, joined, phi_place
from regionmed_clip.processing.corpus.burnt_in_text import find_burnt_in_text
from regionmed_clip.processing.corpus.image_metadata import metadata_texts
from regionmed_clip.processing.corpus.perceptual_hash import hash_of_bytes, hex_of_hash
from regionmed_clip.processing.corpus.phi_patterns import PHI_KINDS, find_phi
from regionmed_clip.processing.corpus.records import (
    NEGATIVE_CHANGES,
    TEXT_LEVELS,
    TEXT_ORIGINS,
    MaskRle,
    QARecord,
    RegionRecord,
    StudyRecord,
)
from regionmed_clip.processing.corpus.text_keys import caption_key, region_text_key
from regionmed_clip.processing.image_errors import DECODE_ERRORS

MAX_KEY = 2**63
MASK_TOLERANCE_PIXELS = 1.0
_IDS = ("patient_id", "image_id")
_MAY_BE_NULL = frozenset(
    {"anatomy", "view", "patient_id", "window", "laterality", "place", "size", "severity", "certainty", "mask"}
    | {"region"}  # of a text or a negative: the whole image
    | {"image"}  # which `_check_image` reports
)
_SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF: shown with width and height exchanged


def check_row(row: dict[str, Any], report: AuditReport) -> None:
    """Nothing; adds every breach of the row to the report."""
    report.num_items += 1
    empty = list(_empty_fields(row))
    if empty:
        report.add("record", row["image_id"] or f"a row of {report.subject}", f"nothing in {joined(empty)}")
        return
    _check_image(row, report)
    has_sound_boxes = _check_boxes(row, report)
    masks = [_check_mask(row, index, report) for index in range(len(row["regions"]))]
    if has_sound_boxes:
        _check_record(row, masks, report)
    _check_texts(row, report)
    for where, text in (*texts_of(row), *((name, row[name] or "") for name in _IDS)):
        for hit in find_phi(text):
            if where in _IDS and hit.kind not in KINDS_OF_IDS:
                continue
            report.add(f"phi-{hit.kind}", row["image_id"], phi_place(PHI_KINDS[hit.kind], where, hit.start, hit.stop))


def texts_of(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(place, text) of everything in a row that a person may have written; empty texts are left out."""
    for name in ("caption", "findings", "impression", "modality", "anatomy", "view"):
        yield from ((name, row[name]) for _ in range(bool(row[name])))
    for index, region in enumerate(row["regions"]):
        for name in ("finding", "anatomy", "place", "description"):
            if region[name]:
                yield f"regions[{index}].{name}", region[name]
    for index, pair in enumerate(row["qa"]):
        yield f"qa[{index}].question", pair["question"] or ""
        yield f"qa[{index}].answer", pair["answer"] or ""
    for index, text in enumerate(row["texts"]):
        if text["origin"] == "source":
            yield f"texts[{index}]", text["text"] or ""


def tight_box_of_runs(mask: MaskRle) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1), half-open, of the ones of a mask, without drawing it; None for an empty one."""
    height = mask.size[0]
    ends = np.cumsum(mask.counts, dtype=np.int64)
    starts, stops = ends[:-1:2], ends[1::2]  # of the runs of ones
    is_filled = stops > starts
    starts, lasts = starts[is_filled], stops[is_filled] - 1
    if len(starts) == 0:
        return None
    first_columns, last_columns = starts // height, lasts // height
    spans = first_columns != last_columns  # a run over the end of a column holds its last row and the next one's first
    y0 = 0 if spans.any() else int((starts % height).min())
    y1 = height if spans.any() else int((lasts % height).max()) + 1
    return int(first_columns.min()), y0, int(last_columns.max()) + 1, y1


def _empty_fields(row: dict[str, Any]) -> Iterator[str]:
    """The places of a row that hold null and must not."""
    yield from (name for name, value in row.items() if value is None and name not in _MAY_BE_NULL)
    for name in ("regions", "qa", "texts", "negatives"):
        for index, part in enumerate(row[name] or ()):
            fields = {"": None} if part is None else {f".{key}": value for key, value in part.items()}
            fields |= {f".mask.{key}": value for key, value in (fields.get(".mask") or {}).items()}
            for key, value in fields.items():
                if value is None and key[1:] not in _MAY_BE_NULL:
                    yield f"{name}[{index}]{key}"


def region_of(region: dict[str, Any], mask: MaskRle | None = None) -> RegionRecord:
    """The region record that a row's region was made from."""
    names = ("finding", "anatomy", "laterality", "place", "size", "severity", "certainty", "is_negated")
    return RegionRecord(
        box=tuple(region["box"]),
        **{name: region[name] for name in (*names, "description", "text_origin")},
        mask_rle=mask,
    )


def mask_of(region: dict[str, Any]) -> MaskRle | None:
    """The mask of a row's region; ValueError where its run lengths do not fill its size."""
    mask = region["mask"]
    return None if mask is None else MaskRle(tuple(mask["size"]), tuple(mask["counts"]))


def _check_image(row: dict[str, Any], report: AuditReport) -> None:
    """Nothing; checks the hashes, the size, the metadata and the borders of the image."""
    item, content = row["image_id"], row["image"]["bytes"] if row["image"] else None
    if not content:
        report.add("image-decode", item, "the image column is empty")
        return
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        report.add("image-hash", item, f"sha256 is {row['sha256']!r}, the bytes have another")
    try:
        with Image.open(BytesIO(content)) as image:
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            size = image.size[::-1] if orientation in _SWAPPED_ORIENTATIONS else image.size
            metadata = metadata_texts(image)
            boxes = find_burnt_in_text(image)
        phash = hex_of_hash(hash_of_bytes(content))
    except DECODE_ERRORS as error:
        report.add("image-decode", item, f"{type(error).__name__}: {error}")
        return
    if phash != row["phash"]:
        report.add("image-hash", item, f"phash is {row['phash']!r}, the image has {phash}")
    if size != (row["width"], row["height"]):
        report.add("image-size", item, f"row says {row['width']}x{row['height']}, image is {size[0]}x{size[1]}")
    if boxes:
        shown = joined([str(box) for box in boxes], 3)
        report.add("burnt-in-text", item, f"looks like text at (x0, y0, x1, y1) = {shown}")
    for found in metadata:
        kinds = sorted({PHI_KINDS[hit.kind] for hit in find_phi(found.text)})
        if found.is_identifying or kinds:
            what = " and ".join(kinds) or "identifying by its place"
            report.add("file-phi", item, f"{found.place}: {what}, {len(found.text)} characters")
        else:
            report.add("file-text", item, f"{found.place}: {len(found.text)} characters")


def _check_boxes(row: dict[str, Any], report: AuditReport) -> bool:
    """Whether every box is sound."""
    is_sound = True
    for index, region in enumerate(row["regions"]):
        box = region["box"]
        if box is None or len(box) != 4 or not all(value is not None and math.isfinite(value) for value in box):
            problem = "is not four finite numbers"
        elif box[2] <= box[0] or box[3] <= box[1]:
            problem = "has x1 <= x0 or y1 <= y0"
        elif box[0] < 0 or box[1] < 0 or box[2] > row["width"] or box[3] > row["height"]:
            problem = f"leaves the image of {row['width']}x{row['height']}"
        else:
            continue
        is_sound = False
        report.add("box", row["image_id"], f"region {index} ({region['finding']!r}): box {box} {problem}")
    return is_sound


def _check_mask(row: dict[str, Any], index: int, report: AuditReport) -> MaskRle | None:
    """The mask of a region where it is sound; breaches are added."""
    region = row["regions"][index]
    where = f"region {index} ({region['finding']!r})"
    try:
        mask = mask_of(region)
    except ValueError as error:
        report.add("mask", row["image_id"], f"{where}: {error}")
        return None
    if mask is None:
        return None
    if mask.size != (row["height"], row["width"]):
        size = (row["height"], row["width"])
        report.add("mask", row["image_id"], f"{where}: mask is {mask.size} (height, width), image is {size}")
        return None
    box = tight_box_of_runs(mask)
    if box is None:
        report.add("mask", row["image_id"], f"{where}: mask is empty")
    elif max(abs(a - b) for a, b in zip(box, region["box"])) > MASK_TOLERANCE_PIXELS:
        report.add("mask", row["image_id"], f"{where}: tight box of the mask is {box}, the region's is {region['box']}")
    return mask


def _check_record(row: dict[str, Any], masks: list[MaskRle | None], report: AuditReport) -> None:
    """Nothing; rebuilds the record, checks it as a source does, and recomputes its keys."""
    regions = tuple(region_of(region, mask) for region, mask in zip(row["regions"], masks))
    window = row["window"]
    names = [name for name in StudyRecord.__dataclass_fields__ if name not in ("image", "regions", "qa", "window")]
    try:
        record = StudyRecord(
            image="checked by _check_image",
            regions=regions,
            qa=tuple(QARecord(**pair) for pair in row["qa"]),
            window=None if window is None else (window[0], window[1]),
            **{name: row[name] for name in names},
        )
        record.check()
    except (ValueError, TypeError, AttributeError) as error:
        report.add("record", row["image_id"], str(error))
        return
    if row["caption_key"] != caption_key(record):
        report.add(
            "key", row["image_id"], f"caption_key is {row['caption_key']}, the record's is {caption_key(record)}"
        )
    for index, region in enumerate(regions):
        key = region_text_key(region)
        if row["regions"][index]["key"] != key:
            found = row["regions"][index]["key"]
            report.add("key", row["image_id"], f"region {index} ({region.finding!r}): key is {found}, its own is {key}")


def _check_texts(row: dict[str, Any], report: AuditReport) -> None:
    """Nothing; checks the texts of all levels and the negatives, and their keys."""
    item, num_regions = row["image_id"], len(row["regions"])
    key_of_text: dict[tuple[int | None, str], int] = {}
    true_keys = {row["caption_key"], *(region["key"] for region in row["regions"])}
    undescribed = [str(index) for index, region in enumerate(row["regions"]) if not region["description"].strip()]
    if undescribed or not row["texts"]:
        shown = joined(undescribed) or "none"
        report.add("text", item, f"regions without description: {shown}; {len(row['texts'])} texts")
    for index, text in enumerate(row["texts"]):
        where = f"texts[{index}]"
        if not (text["text"] or "").strip():
            report.add("text", item, f"{where} of level {text['level']!r} is empty")
        if text["level"] not in TEXT_LEVELS or text["origin"] not in TEXT_ORIGINS:
            report.add("text", item, f"{where} has level {text['level']!r} and origin {text['origin']!r}")
        if text["region"] is not None and not 0 <= text["region"] < num_regions:
            report.add("text", item, f"{where} speaks of region {text['region']} of {num_regions}")
        known = key_of_text.setdefault((text["region"], text["text"]), text["key"])
        if not _is_key(text["key"]) or known != text["key"]:
            report.add("key", item, f"{where} has key {text['key']}; an equal text has {known}")
        true_keys.add(text["key"])
    true_texts = {text for _, text in key_of_text}
    for index, negative in enumerate(row["negatives"]):
        where = f"negatives[{index}]"
        region = negative["region"]
        is_placed = region is None or 0 <= region < num_regions
        if not (negative["text"] or "").strip() or negative["changed"] not in NEGATIVE_CHANGES or not is_placed:
            report.add("text", item, f"{where} is empty or has changed {negative['changed']!r}, region {region}")
        if not _is_key(negative["key"]) or negative["key"] in true_keys or negative["text"] in true_texts:
            report.add("key", item, f"{where} has key {negative['key']}: it equals a true text of the image")


def _is_key(value: Any) -> bool:
    """Whether `value` is a key of a text."""
    return isinstance(value, int) and 0 <= value < MAX_KEY
