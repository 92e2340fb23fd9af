"""Records of any kind for property tests: regions with attributes of the usual vocabularies, and their words."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from regionmed_clip.processing.corpus.captions import write_caption, write_findings, write_impression
from regionmed_clip.processing.corpus.records import LATERALITIES, RegionRecord, StudyRecord

BOX = (0.0, 0.0, 1.0, 1.0)
FINDINGS = (
    *("pulmonary nodule", "lung nodule", "nodule", "consolidation", "pneumonia", "cavity", "pleural effusion"),
    *("pneumothorax", "cardiomegaly", "renal cyst", "hepatic metastasis", "drusen", "hard exudate", "red blood cell"),
    *("small vessel disease", "left ventricular hypertrophy", "lung opacity", "strange thing"),
)
PLACES = (
    *("upper zone", "lower zone", "left lower lobe", "right middle lobe", "segment 7", "segment 4a", "macula"),
    *("superotemporal quadrant", "nasal quadrant", "upper left", "lower right", "centre", "left upper pole", "apex"),
)
IMAGE_PLACES = ("upper left", "lower right", "centre")
ANATOMIES = ("lung", "left lung", "heart", "liver", "kidney", "pleural space", "retina", "blood", "right atrium")


def names_one_side(region: RegionRecord) -> bool:
    """False where a region contradicts itself on its side, as no record should."""
    names = (region.finding, region.anatomy, region.laterality, "" if region.place in IMAGE_PLACES else region.place)
    return len({word for name in names if name for word in name.split() if word in LATERALITIES}) <= 1


regions_of_any_kind = st.builds(
    RegionRecord,
    box=st.just(BOX),
    finding=st.sampled_from(FINDINGS),
    anatomy=st.none() | st.sampled_from(ANATOMIES),
    laterality=st.none() | st.sampled_from(["left", "right", "bilateral"]),
    place=st.none() | st.sampled_from(PLACES),
    size=st.none() | st.sampled_from(["small", "medium", "large"]),
    severity=st.none() | st.sampled_from(["mild", "moderate", "severe"]),
    certainty=st.none() | st.sampled_from(["possible", "probable", "definite"]),
    is_negated=st.booleans(),
).filter(names_one_side)


def make_study(regions=(), *, is_normal=False, modality="chest radiograph", anatomy="chest", **changes) -> StudyRecord:
    """A record with these regions, its texts by template."""
    record = StudyRecord(
        image_id="demo/1",
        image=b"png",
        width=40,
        height=30,
        modality=modality,
        anatomy=anatomy,
        view="frontal",
        caption=write_caption(modality, "frontal", regions, anatomy=anatomy, is_normal=is_normal),
        findings=write_findings(regions, is_normal=is_normal),
        impression=write_impression(regions, is_normal=is_normal),
        regions=tuple(regions),
        qa=(),
        patient_id=None,
        split="train",
        source="demo",
        source_revision="1",
        license="CC0 1.0",
        sha256="0" * 64,
    )
    return replace(record, **changes)


studies_of_any_kind = st.builds(
    make_study,
    st.lists(regions_of_any_kind, max_size=5),
    is_normal=st.booleans(),
    image_id=st.text("abc", min_size=1, max_size=3),
)
