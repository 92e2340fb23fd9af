"""Which findings may be one and the same thing, and which are plausible instead of another: a curated table.

A site is a place of the body with the findings seen there, in groups. Findings of one group may be said of the same
thing (a consolidation is often called pneumonia), so one never contradicts another; findings of different groups are
different things, and of each group the first that the source looks for in every image may be put instead of one of
another group, unless most sources leave it unsaid where it is there. Sites are named by the part of the body they
belong to. Findings are compared under their canonical names (synonyms.py).

When in doubt two findings share a group: a missing negative costs little, a true text taken for false costs more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from regionmed_clip.processing.corpus.grammar import plural
from regionmed_clip.processing.corpus.synonyms import SYNONYMS, canonical_finding

Groups = tuple[tuple[str, ...], ...]


def _groups(*groups: str) -> Groups:
    """Groups of findings, each a list of names as one text."""
    return tuple(tuple(names.split(", ")) for names in groups)


SITES: dict[str, tuple[Groups, ...]] = {
    "chest": (
        _groups(
            "pulmonary nodule, nodule, pulmonary mass, mass, nodule/mass, mass or nodule, granuloma, calcification, "
            "lung tumor, lung cancer",
            "consolidation, pneumonia, infiltration, infiltrate, atelectasis, lobar/segmental collapse, aspiration, "
            "airspace opacity, airspace disease, ground-glass opacity, ground glass opacity, pulmonary edema, edema, "
            "vascular congestion, pulmonary fibrosis, fibrosis, interstitial lung disease, ild",
            "cavity, cavitation, lung cavity, lung cyst, bulla, emphysema, chronic obstructive pulmonary disease, copd",
        ),
        _groups(
            "pleural effusion, effusion, pleural thickening, costophrenic angle blunting, "
            "blunting of the costophrenic angle, hemothorax",
            "pneumothorax",
        ),
        _groups("cardiomegaly, enlarged cardiac silhouette, enlarged cardiomediastinum, pericardial effusion"),
        _groups("aortic enlargement", "enlarged pulmonary artery", "mediastinal shift"),
        _groups("rib fracture", "clavicle fracture"),
        _groups("hernia, hiatal hernia"),
    ),
    "abdomen": (
        _groups(
            "hepatic cyst",
            "hepatic metastasis, hepatocellular carcinoma, liver cancer, liver tumor",
            "hepatic haemangioma",
        ),
        _groups(
            "renal cyst",
            "renal mass, renal cell carcinoma, kidney cancer, kidney tumor",
            "kidney stone",
            "hydronephrosis",
        ),
        _groups("splenic laceration", "splenic infarct"),
    ),
    "eye": (
        _groups(
            "hard exudate cluster, hard exudate",
            "retinal haemorrhage, haemorrhage, hemorrhage",
            "cotton wool spot, soft exudate",
            "microaneurysm cluster, microaneurysm",
            "drusen",
        ),
    ),
    "blood": (
        _groups("red blood cell", "white blood cell", "platelet"),
        _groups("neutrophil", "lymphocyte", "eosinophil", "platelet clump", "sickle cell", "malaria ring form"),
    ),
    "brain": (
        _groups("glioma", "meningioma", "pituitary tumor"),
        _groups(
            "epidural hematoma, epidural hemorrhage",
            "subdural hematoma, subdural hemorrhage",
            "subarachnoid hemorrhage",
            "intraventricular hemorrhage",
        ),
    ),
    "skin": (_groups("melanoma", "melanocytic nevus, nevus", "basal cell carcinoma", "seborrheic keratosis"),),
}

_LUNG, _PLEURA, _HEART, _VESSELS = ([name for group in site for name in group] for site in SITES["chest"][:4])

# More general names: what they are said of may have any of the particular names too.
_KINDS = {
    "tuberculosis": frozenset((*_LUNG, *SITES["chest"][1][0])),
    "calcification": frozenset((*SITES["chest"][1][0], *_HEART, "aortic enlargement")),  # of pleura, heart or aorta
    "emphysema": frozenset(("pneumothorax",)),
    "bulla": frozenset(("pneumothorax",)),
    "hydropneumothorax": frozenset(_PLEURA),
    "enlarged cardiomediastinum": frozenset(_VESSELS),
    "enlarged cardiac silhouette": frozenset(_VESSELS),
    "white blood cell": frozenset(("neutrophil", "lymphocyte", "eosinophil", "basophil", "monocyte")),
    "red blood cell": frozenset(("sickle cell", "malaria ring form")),
    "intracranial hemorrhage": frozenset(name for group in SITES["brain"][1] for name in group),
    "brain tumor": frozenset(name for group in SITES["brain"][0] for name in group),
}
_GENERAL_WORDS = frozenset(("lesion", "lesions", "abnormality", "opacity", "tumor", "tumour", "finding", "interest"))
_RARELY_SAID = frozenset(  # in most sources their absence says nothing: they are never put instead
    (*_VESSELS, "rib fracture", "clavicle fracture", "hernia")
)
_ORGANS = frozenset(  # where a source boxes them beside its findings, they are no name of a finding
    (
        *("lung", "heart", "liver", "spleen", "kidney", "stomach", "pancreas", "bladder", "brain", "breast", "thyroid"),
        *("trachea", "aorta", "spinal cord", "esophagus", "colon", "rectum", "duodenum", "small bowel", "eye"),
        *("optic disc", "macula", "nerve", "blood vessel"),
    )
)
_NO_FINDING = "region of interest"  # of sources whose own text says what a box shows
_SAID_ELSEWHERE_TOO = frozenset(  # these mean what the table says only in a study of that part of the body
    (
        *("nodule", "mass", "nodule/mass", "granuloma", "infiltration", "infiltrate", "edema", "fibrosis", "bulla"),
        *("calcification", "emphysema", "hernia"),
        *("aspiration", "cavity", "cavitation", "effusion", "haemorrhage", "hemorrhage"),
    )
)
_NORMAL_IN_BLOOD = ("red blood cell", "white blood cell", "platelet", "neutrophil", "lymphocyte", "eosinophil")
_PART_OF_WORD = {
    "chest": "chest",
    "thorax": "chest",
    "lung": "chest",
    "abdomen": "abdomen",
    "abdominal": "abdomen",
    "fundus": "eye",
    "retina": "eye",
    "retinal": "eye",
    "eye": "eye",
    "blood": "blood",
    "brain": "brain",
    "head": "brain",
    "dermoscopy": "skin",
    "skin": "skin",
}
_PLACE_OF_FINDING = {
    name: (part, site, number)
    for part, sites in SITES.items()
    for site, groups in enumerate(sites)
    for number, group in enumerate(groups)
    for name in group
}

_NAMES = {  # as texts write them -> the finding
    written: name
    for name in (
        *_PLACE_OF_FINDING,
        *_KINDS,
        *(name for row in SYNONYMS for name in row),
        *("opacity", "opacification", "lesion", "tumor", "tumour", "collapse", "congestion"),
    )
    for written in (name, plural(name), f"{name}s")
}
_NAME = re.compile(rf"\b({'|'.join(map(re.escape, sorted(_NAMES, key=len, reverse=True)))})\b")


@lru_cache(maxsize=8192)
def may_be_one(first: str, second: str) -> bool:
    """True where both names may be said of the same thing; False only for what is surely different.

    A finding that the table does not know may be any that it knows, but for organs ("left lung"). Two that it does not
    know are different unless one name holds all words of the other ("cyst" and "renal cyst") or is a general one ("lung
    lesion", "opacity").
    """
    first, second = canonical_finding(first), canonical_finding(second)
    place, other = _PLACE_OF_FINDING.get(first), _PLACE_OF_FINDING.get(second)
    words, others = set(first.split()), set(second.split())
    if words <= others or others <= words:
        return True
    if (place is None and words & _GENERAL_WORDS) or (other is None and others & _GENERAL_WORDS):
        return True
    if second in _KINDS.get(first, ()) or first in _KINDS.get(second, ()):
        return True
    unknown = [name for name in (first, second) if name not in _PLACE_OF_FINDING and name not in _KINDS]
    if unknown:
        return len(unknown) == 1 and not is_organ(unknown[0])
    return place is not None and place == other


def is_general(finding: str) -> bool:
    """True for a name that leaves open what is seen, such as "abnormality" or "lung opacity"."""
    name = canonical_finding(finding)
    return name not in _PLACE_OF_FINDING and bool(_GENERAL_WORDS & set(name.split()))


def findings_named(text: str) -> frozenset[str]:
    """The findings that a text in lower case names, denied ones too, each by the longest name known here."""
    return frozenset(_NAMES.get(name, name) for name in _NAME.findall(text))


@lru_cache(maxsize=1024)
def part_of_body(modality: str, anatomy: str | None) -> str | None:
    """The part of the body (a key of SITES) that a study shows by its name; None where the words do not say."""
    words = f"{anatomy or ''} {modality}".lower().split()
    return next((_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD), None)


@lru_cache(maxsize=1024)
def canonical_findings(findings: frozenset[str]) -> frozenset[str]:
    """The names in lower case with single spaces, each as the one that stands for it (synonyms.py)."""
    return frozenset(canonical_finding(" ".join(finding.lower().split())) for finding in findings)


@lru_cache(maxsize=1024)
def findings_instead(finding: str, part: str | None, looked_for: frozenset[str]) -> tuple[str, ...]:
    """Findings of the same site that are plausible instead and surely something else.

    Args:
        finding: the finding's name.
        part: the part of the body that the study shows, see `part_of_body`.
        looked_for: canonical names; no other finding is put instead.

    Returns:
        Names; () where the table does not know the finding, or knows it in another part of the body only.
    """
    place = _locate(finding, part)
    if place is None:
        return ()
    groups = SITES[place[0]][place[1]]
    return _one_of_each((group for number, group in enumerate(groups) if number != place[2]), looked_for)


@lru_cache(maxsize=1024)
def findings_elsewhere(finding: str, part: str | None, looked_for: frozenset[str]) -> tuple[str, ...]:
    """Findings of the other sites of the same part of the body; otherwise as `findings_instead`."""
    place = _locate(finding, part)
    if place is None:
        return ()
    sites = SITES[place[0]]
    others = (group for number, groups in enumerate(sites) if number != place[1] for group in groups)
    return _one_of_each(others, looked_for)


@lru_cache(maxsize=64)
def abnormal_findings(part: str | None) -> tuple[str, ...]:
    """What a study of this part of the body could show and a normal one does not; () where the table has none."""
    names = (group[0] for groups in SITES.get(part or "", ()) for group in groups)
    return tuple(name for name in _often_said(names) if name not in _NORMAL_IN_BLOOD)


def _one_of_each(groups: Iterable[tuple[str, ...]], looked_for: frozenset[str]) -> tuple[str, ...]:
    """The first name of each group that is looked for, without groups that most sources leave unsaid."""
    often = (group for group in groups if group[0] not in _RARELY_SAID)
    found = (next((name for name in group if name in looked_for), None) for group in often)
    return tuple(name for name in found if name is not None)


def _often_said(names: Iterable[str]) -> tuple[str, ...]:
    """The names without those that most sources leave unsaid."""
    return tuple(name for name in names if name not in _RARELY_SAID)


def _locate(finding: str, part: str | None) -> tuple[str, int, int] | None:
    """(part of the body, site, group) of a finding, or None."""
    name = canonical_finding(finding)
    place = _PLACE_OF_FINDING.get(name)
    return None if place is None or (name in _SAID_ELSEWHERE_TOO and place[0] != part) else place


def is_organ(name: str) -> bool:
    """True for an organ, with its side or without."""
    return " ".join(word for word in name.split() if word not in ("left", "right")) in _ORGANS


def names_something(finding: str) -> bool:
    """False for the word that stands where a source does not say what a region shows."""
    return finding.strip().lower() != _NO_FINDING


def is_abnormal(finding: str, part: str | None) -> bool:
    """True where the table knows the finding in this part of the body and no normal image shows it."""
    return _locate(finding, part) is not None and canonical_finding(finding) not in _NORMAL_IN_BLOOD
