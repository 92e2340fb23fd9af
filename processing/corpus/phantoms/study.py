"""One phantom as a study record: image, boxes, masks, texts and questions, a pure function of (seed, split, index)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from regionmed_clip.processing.corpus.captions import (
    describe_region,
    write_caption,
    write_findings,
    write_impression,
)
from regionmed_clip.processing.corpus.phantoms import abdominal_ct, blood_smear, chest_radiograph, fundus
from regionmed_clip.processing.corpus.phantoms.canvas import Dice, encode_png, tight_box
from regionmed_clip.processing.corpus.phantoms.findings import Lesion, pick_index, plan_findings
from regionmed_clip.processing.corpus.phantoms.questions import write_questions
from regionmed_clip.processing.corpus.records import SPLITS, MaskRle, RegionRecord, StudyRecord

SOURCE_NAME = "phantom"
LICENSE = "Apache-2.0"
MODALITIES = (chest_radiograph.MODALITY, abdominal_ct.MODALITY, fundus.MODALITY, blood_smear.MODALITY)
_MODALITY_SHARES = (0.27, 0.23, 0.30, 0.20)  # those with more distinct region texts come more often
_NUM_FINDINGS_SHARES = (0.18, 0.25, 0.30, 0.27)  # of images planned with 0, 1, 2 and 3 findings


def phantom_revision(seed: int, difficulty: float) -> str:
    """The name under which all phantoms of this seed and difficulty are recorded."""
    return f"phantom-v1:seed={seed}:difficulty={difficulty:g}"


def draw_phantom(seed: int, index: int, difficulty: float = 0.4, split: str = "train") -> StudyRecord:
    """The phantom number `index` of `split`; equal arguments give equal bytes.

    Args:
        seed: non-negative; another seed gives other patients.
        index: non-negative position within the split; the splits draw from streams of their own.
        difficulty: in [0, 1]; more of it means fainter lesions, more noise and more varied patients.
        split: "train", "validation" or "test".

    Raises:
        ValueError: an argument is out of its range.
    """
    if split not in SPLITS:
        raise ValueError(f"Phantom split is {split!r}; it must be one of {', '.join(SPLITS)}. Name one of these.")
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"Phantom difficulty is {difficulty}; it must lie in [0, 1]. Use 0.4 for the default corpus.")
    if seed < 0 or index < 0:
        raise ValueError(f"Phantom seed is {seed} and index {index}; both must be at least 0. Count from 0.")
    dice = Dice(np.random.default_rng([seed, SPLITS.index(split), index]), difficulty)
    modality = MODALITIES[pick_index(dice, _MODALITY_SHARES)]
    num_findings = pick_index(dice, _NUM_FINDINGS_SHARES)
    drawing = modality.draw(dice, plan_findings(dice, modality.meanings, num_findings))
    regions = tuple(_region_record(lesion) for lesion in drawing.lesions)
    image = encode_png(drawing.pixels)
    is_normal = not regions
    return StudyRecord(
        image_id=f"phantom-{seed}-{split}-{index:06d}",
        image=image,
        width=drawing.pixels.shape[1],
        height=drawing.pixels.shape[0],
        modality=modality.name,
        anatomy=modality.anatomy,
        view=modality.view,
        caption=write_caption(modality.name, modality.view, regions, anatomy=modality.anatomy, is_normal=is_normal),
        findings=write_findings(regions, is_normal=is_normal),
        impression=write_impression(regions, is_normal=is_normal),
        regions=regions,
        qa=write_questions(dice, modality, [lesion.meaning for lesion in drawing.lesions]),
        patient_id=f"phantom-{seed}-{split}-patient-{index:06d}",
        split=split,
        source=SOURCE_NAME,
        source_revision=phantom_revision(seed, difficulty),
        license=LICENSE,
        sha256=hashlib.sha256(image).hexdigest(),
    )


def _region_record(lesion: Lesion) -> RegionRecord:
    """The region of a drawn lesion; its box is the tight box of its mask."""
    meaning = lesion.meaning
    box = tight_box(lesion.mask)
    assert box is not None, "an empty mask is never kept as a lesion"
    region = RegionRecord(
        box=tuple(float(side) for side in box),  # type: ignore[arg-type]
        finding=meaning.finding,
        anatomy=meaning.anatomy,
        laterality=meaning.laterality,
        place=meaning.place,
        size=meaning.size,
        severity=meaning.severity,
        mask_rle=MaskRle.from_array(lesion.mask),
    )
    return replace(region, description=describe_region(region))
