"""Synonyms of findings: a small table of names that mean the same, so that texts may say either under one key.

A name enters a row only if it can replace the others in any text without saying more, less or something else:

    forms     the same words in another form: the organ's noun for its adjective (lung, pulmonary), word order, British
              and American spelling. They need no source.
    terms     another term; the row names the vocabulary that gives both for one concept.

Left out on purpose: "enlarged cardiac silhouette" (a pericardial effusion enlarges it too), "collapsed lung" for
pneumothorax (it is also said of atelectasis), "infiltrate" for consolidation, "soft exudate" for cotton wool spot (two
labels of one data set would merge), "hydrothorax" for pleural effusion, and everything that is merely more general.

The first name of a row stands for all of them in a key (text_keys.py). A name that published data use must come first
in its row, or their keys would change.
"""

from __future__ import annotations

from functools import lru_cache

SYNONYMS: tuple[tuple[str, ...], ...] = (
    # Chest. MeSH "Cardiomegaly" is defined as "Enlargement of the heart"; HPO HP:0001640 has "Enlarged heart" as EXACT.
    ("cardiomegaly", "cardiac enlargement", "heart enlargement"),
    # MeSH "Pleural Effusion" is defined as "Presence of fluid in the pleural cavity"; forms otherwise.
    ("pleural effusion", "pleural fluid"),
    ("pulmonary nodule", "lung nodule"),
    ("pulmonary mass", "lung mass"),
    ("pulmonary edema", "lung edema", "pulmonary oedema"),
    ("pulmonary fibrosis", "lung fibrosis"),
    ("lung opacity", "pulmonary opacity"),
    ("lung lesion", "pulmonary lesion"),
    ("rib fracture", "fracture of the rib"),
    ("clavicle fracture", "clavicular fracture", "fracture of the clavicle"),
    # Abdomen. MeSH "Kidney Calculi" has the entry terms "Kidney Stones" and "Renal Calculi"; forms otherwise.
    ("kidney stone", "renal stone", "renal calculus"),
    ("renal cyst", "kidney cyst"),
    ("renal mass", "kidney mass"),
    ("hepatic cyst", "liver cyst"),
    ("hepatic metastasis", "liver metastasis"),
    ("hepatic haemangioma", "liver haemangioma", "hepatic hemangioma", "liver hemangioma"),
    ("splenic laceration", "spleen laceration", "laceration of the spleen"),
    # MeSH "Splenic Infarction" has the entry term "Splenic Infarct".
    ("splenic infarct", "splenic infarction"),
    # Eye.
    ("hard exudate cluster", "cluster of hard exudates"),
    ("microaneurysm cluster", "cluster of microaneurysms"),
    ("retinal haemorrhage", "retinal hemorrhage"),
    ("cotton wool spot", "cotton-wool spot"),
    # Blood. MeSH "Erythrocytes" is defined as "Red blood cells", "Leukocytes" as "White blood cells"; "Blood Platelets"
    # has the entry term "Thrombocytes".
    ("red blood cell", "erythrocyte"),
    ("white blood cell", "leukocyte", "leucocyte"),
    ("platelet", "thrombocyte"),
    # Brain. MeSH "Hematoma, Epidural, Cranial" has the entry term "Extradural Hematoma"; forms otherwise.
    ("intracranial hemorrhage", "intracranial haemorrhage"),
    ("subarachnoid hemorrhage", "subarachnoid haemorrhage"),
    ("subdural hematoma", "subdural haematoma"),
    ("epidural hematoma", "extradural hematoma", "epidural haematoma", "extradural haematoma"),
    ("brain tumor", "brain tumour"),
    ("pituitary tumor", "pituitary tumour"),
)

_ROW_OF_NAME = {name: row for row in SYNONYMS for name in row}


def canonical_finding(finding: str) -> str:
    """The name that stands for `finding` in keys: the first of its row, or itself where it has no synonym."""
    row = _ROW_OF_NAME.get(finding)
    return finding if row is None else row[0]


@lru_cache(maxsize=1024)
def names_of_finding(finding: str) -> tuple[str, ...]:
    """All names of `finding`, its own first."""
    row = _ROW_OF_NAME.get(finding, (finding,))
    return (finding, *(name for name in row if name != finding))
