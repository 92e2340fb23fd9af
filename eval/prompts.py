"""Prompts: the one place where class names become sentences, each with the source of its wording.

Three sets speak of one finding:

    presence   two sentences that say it is shown; every published `macro_auroc` was taken with exactly these.
    absence    the same two, denied; presence against absence is the second way in which the field asks.
    ensemble   presence in more templates, under every synonym of the finding, and what it looks like in plain words.
"""

from __future__ import annotations

from typing import NamedTuple

from regionmed_clip.processing.corpus.grammar import capitalize, counted
from regionmed_clip.processing.corpus.synonyms import canonical_finding, names_of_finding

_CORPUS = "wording of our corpus (processing/corpus/captions.py, image_wording.py)"
_CHEXZERO = "Tiu et al. 2022, Nat. Biomed. Eng. 6:1399 (CheXzero): '{}' against 'no {}'"
_BIOMEDCLIP = "Zhang et al. 2023, arXiv:2303.00915 (BiomedCLIP), zero-shot example of the model card"
_FLAIR = "after the expert descriptions of FLAIR, Silva-Rodriguez et al. 2023, arXiv:2308.07898"
_FLEISCHNER = "after Hansell et al. 2008, Fleischner Society glossary, Radiology 246:697"
_MESH = "after the definition in MeSH"
_SYNONYM = "synonyms of the corpus (processing/corpus/synonyms.py)"


class Wording(NamedTuple):
    """A template or phrase and where its wording comes from; templates know {study}, {one_finding} and {finding}."""

    text: str
    source: str


PRESENCE_TEMPLATES = (Wording("{study} with {one_finding}.", _CORPUS), Wording("{finding}", _CHEXZERO))
ABSENCE_TEMPLATES = (Wording("{study} without {finding}.", _CORPUS), Wording("no {finding}", _CHEXZERO))
ENSEMBLE_TEMPLATES = (
    *PRESENCE_TEMPLATES,
    Wording("{study} showing {one_finding}.", _CORPUS),
    Wording("{study}: {one_finding}.", _CORPUS),
    Wording("this is a photo of {finding}", _BIOMEDCLIP),
)
NORMAL_TEMPLATES = (
    Wording("normal {study} without focal abnormality.", _CORPUS),
    Wording("no focal abnormality", _CORPUS),
)
CLASS_WORDINGS: dict[str, tuple[Wording, ...]] = {  # canonical finding -> what it looks like, never more than it says
    # Chest.
    "cardiomegaly": (Wording("enlarged heart", "HPO HP:0001640, exact synonym"),),
    "cavity": (Wording("gas-filled space within a consolidation, mass or nodule of the lung", _FLEISCHNER),),
    "consolidation": (Wording("opacity of the lung that hides vessels and airway walls", _FLEISCHNER),),
    "pleural effusion": (Wording("fluid in the pleural cavity", _MESH),),
    "pneumothorax": (Wording("air or gas in the pleural cavity", _MESH),),
    "pulmonary nodule": (Wording("rounded opacity of the lung, up to three centimetres across", _FLEISCHNER),),
    # Abdomen.
    "hydronephrosis": (Wording("dilated renal pelvis and calices", _MESH),),
    # Eye.
    "cotton wool spot": (Wording("pale area of the retina with ill-defined edges", _FLAIR),),
    "drusen": (Wording("yellow deposits under the retina", _FLAIR),),
    "hard exudate": (Wording("small yellowish deposits with sharp margins", _FLAIR),),
    "hard exudate cluster": (Wording("group of small yellowish deposits with sharp margins", _FLAIR),),
    "microaneurysm": (Wording("small red dot on the retina", _FLAIR),),
    "microaneurysm cluster": (Wording("group of small red dots on the retina", _FLAIR),),
    "retinal haemorrhage": (Wording("dark red, sharply outlined lesion of the retina", _FLAIR),),
    # Blood.
    "eosinophil": (Wording("white blood cell with a two-lobed nucleus and coarse granules that take eosin", _MESH),),
    "lymphocyte": (Wording("white blood cell with a round nucleus and little pale cytoplasm", _MESH),),
    "neutrophil": (Wording("white blood cell with a nucleus of three to five lobes", _MESH),),
    "malaria ring form": (Wording("red blood cell with a ring-shaped malaria parasite", "after CDC DPDx, Malaria"),),
    "platelet": (Wording("small cell fragment without a nucleus", _MESH),),
    "sickle cell": (Wording("sickle-shaped red blood cell", _MESH),),
    # Brain.
    "intracranial hemorrhage": (Wording("bleeding within the skull", _MESH),),
    "pituitary tumor": (Wording("tumor of the pituitary gland", _MESH),),
}


def presence_prompts(study: str, finding: str) -> tuple[str, ...]:
    """The sentences that say that an image shows `finding`; their embeddings are averaged.

    Args:
        study: what the images are, as captions name it: "axial CT of the abdomen".
        finding: lower case noun phrase: "pulmonary nodule".
    """
    return tuple(_fill(template, study, finding) for template in PRESENCE_TEMPLATES)


def absence_prompts(study: str, finding: str) -> tuple[str, ...]:
    """The sentences that deny `finding`: those of `presence_prompts`, one by one; arguments as there."""
    return tuple(_fill(template, study, finding) for template in ABSENCE_TEMPLATES)


def normal_prompts(study: str) -> tuple[str, ...]:
    """The sentences that say that an image shows nothing abnormal; `study` as for `presence_prompts`."""
    return tuple(_fill(template, study, "") for template in NORMAL_TEMPLATES)


def ensemble_prompts(study: str, finding: str) -> tuple[Wording, ...]:
    """Every way to say that an image shows `finding`, each text once, with its source; arguments as above.

    The finding's own name comes first; further templates, its synonyms in all of them, and its description follow.
    """
    own, *others = names_of_finding(finding)
    wordings = [Wording(_fill(template, study, own), template.source) for template in ENSEMBLE_TEMPLATES]
    wordings += [
        Wording(_fill(template, study, name), f"{template.source}; {_SYNONYM}")
        for name in others
        for template in ENSEMBLE_TEMPLATES
    ]
    wordings += CLASS_WORDINGS.get(canonical_finding(finding), ())
    return tuple({wording.text: wording for wording in reversed(wordings)}.values())[::-1]


def _fill(template: Wording, study: str, finding: str) -> str:
    """The template's sentence; it begins with a capital where it begins with the study."""
    one_finding = counted("", finding, "one") if finding else ""
    text = template.text.format(study=study, one_finding=one_finding, finding=finding)
    return capitalize(text) if template.text.endswith(".") else text
