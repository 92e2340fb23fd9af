"""The scene graphs of Chest ImaGenome: boxes of anatomies, and what the report's sentences say of each anatomy.

`objects` hold an anatomy's box twice: x1, y1, x2, y2 in a frame of 224 x 224, and original_x1 ... in pixels of the
image, which is the one read. `attributes` hold, for each anatomy (bbox_name), parallel lists with one entry a sentence:
phrases, attributes ("anatomicalfinding|yes|lung opacity"), severity_cues ("severity|yes|mild") and others. The fields
are documented where chest_imagenome.py says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.records import SEVERITIES, RegionRecord
from regionmed_clip.processing.corpus.sources.source_fields import get_list, get_number
from regionmed_clip.processing.corpus.sources.source_files import Box, load_json

FINDING_KINDS = ("anatomicalfinding", "disease", "tubesandlines", "device")  # the image's quality is no finding
CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
UNNAMED_FINDING = "abnormality"  # where a sentence calls an anatomy normal or abnormal and names nothing

# bbox_name without its side -> (anatomy, place). The side, where there is one, is the patient's: reports speak so.
_PLACE_OF_NAME = {
    "upper lung zone": ("lung", "upper zone"),
    "mid lung zone": ("lung", "middle zone"),
    "lower lung zone": ("lung", "lower zone"),
    "apical zone": ("lung", "apical zone"),
    "hilar structures": ("hilum", None),
    "svc": ("superior vena cava", None),
}
_UNSIDED_NAMES = ("right atrium",)  # "right" is part of the organ's name


@dataclass(slots=True)
class _Anatomy:
    """What the sentences say of one anatomy: findings with their severities, denied findings, normal or abnormal."""

    present: dict[str, list[str | None]] = field(default_factory=dict)
    denied: dict[str, None] = field(default_factory=dict)
    is_called_normal: bool = False
    is_called_abnormal: bool = False


def read_graph(path: Path, image_id: str) -> dict[str, Any]:
    """The scene graph at `path`; ValueError where it is missing, no JSON, or that of another image."""
    graph = load_json(path)
    if not isinstance(graph, dict) or graph.get("image_id") != image_id:
        found = graph.get("image_id") if isinstance(graph, dict) else type(graph).__name__
        raise ValueError(f"{path.name} has image_id {found!r}; it must be that of its file name. Fetch it again.")
    return graph


def find_boxes(graph: Mapping[str, Any], width: int, height: int) -> dict[str, Box]:
    """The boxes of the anatomies by bbox_name, in pixels of the image.

    The detector's boxes stick out of some images, and some have no extent or lie outside (the loader named in
    chest_imagenome.py found so): the former are clipped, the latter left out.

    Raises:
        ValueError: a box without a number, or with its corners exchanged.
    """
    boxes = {}
    for entry in get_list(graph, "objects", dict):
        name = str(entry.get("bbox_name"))
        try:
            x0, y0, x1, y1 = (get_number(entry, corner) for corner in CORNERS)
        except ValueError as error:
            raise ValueError(f"object {name!r}: {error}") from error
        if x1 < x0 or y1 < y0:
            raise ValueError(
                f"object {name!r} has corners {(x0, y0, x1, y1)}; x2 and y2 must not lie before x1 and y1. "
                "Fetch the scene graph again."
            )
        # That loader clips x2 at the image's width, not one below it: x2 lies just outside, as ours does.
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if box[0] < box[2] and box[1] < box[3]:
            boxes[name] = box
    return boxes


def read_regions(graph: Mapping[str, Any], boxes: Mapping[str, Box], *, with_negated: bool) -> list[RegionRecord]:
    """A region for every finding that is stated, or with `with_negated` denied, of an anatomy that has a box.

    A finding that one sentence states and another denies of the same anatomy is left out. Where sentences call an
    anatomy abnormal, or only normal, and name no finding there, the region says "abnormality", or denies it.
    """
    regions = []
    for name, anatomy in _read_anatomies(graph).items():
        if name not in boxes:
            continue
        where, side, place = locate(name)
        region = RegionRecord(boxes[name], UNNAMED_FINDING, anatomy=where, laterality=side, place=place)
        present = {finding: said for finding, said in anatomy.present.items() if finding not in anatomy.denied}
        denied = [finding for finding in anatomy.denied if finding not in anatomy.present]
        if anatomy.is_called_abnormal and not anatomy.present:
            present[UNNAMED_FINDING] = []
        if anatomy.is_called_normal and not anatomy.is_called_abnormal and not anatomy.present:
            denied.append(UNNAMED_FINDING)
        for finding, severities in present.items():
            severity = severities[0] if len(set(severities)) == 1 else None
            regions.append(replace(region, finding=finding, severity=severity))
        if with_negated:
            regions += [replace(region, finding=finding, is_negated=True) for finding in denied]
    return regions


def order_phrases(graph: Mapping[str, Any]) -> list[str]:
    """The distinct sentences that the attributes come from, in the order of the report.

    A sentence has an id such as "55916528|6", the study and its number in the report; those without follow at the end.
    """
    number_of_phrase: dict[str, float] = {}
    for entry in get_list(graph, "attributes", dict):
        ids = get_list(entry, "phrase_IDs", str)
        for phrase, phrase_id in zip_longest(get_list(entry, "phrases", str), ids):
            if phrase:
                number = (phrase_id or "").rpartition("|")[2]
                number_of_phrase.setdefault(phrase, float(number) if number.isdigit() else math.inf)
    return sorted(number_of_phrase, key=lambda phrase: number_of_phrase[phrase])


def locate(name: str) -> tuple[str, str | None, str | None]:
    """(anatomy, the patient's side, place) that a bbox_name says: "right mid lung zone" -> lung, right, middle zone."""
    side, _, rest = name.partition(" ")
    if side not in ("left", "right") or name in _UNSIDED_NAMES:
        side, rest = "", name
    anatomy, place = _PLACE_OF_NAME.get(rest, (rest, None))
    return anatomy, side or None, place


def name_finding(label: str) -> str:
    """The finding in plain English: "mass/nodule (not otherwise specified)" -> "mass or nodule"."""
    return label.partition(" (")[0].replace("/", " or ").lower()


def _read_anatomies(graph: Mapping[str, Any]) -> dict[str, _Anatomy]:
    """What all sentences say of every anatomy, by bbox_name, in the order in which they are first spoken of."""
    anatomies: dict[str, _Anatomy] = {}
    for entry in get_list(graph, "attributes", dict):
        name = str(entry.get("bbox_name"))
        anatomy = anatomies.setdefault(name, _Anatomy())
        cues = get_list(entry, "severity_cues", list)
        for labels, severity_cues in zip_longest(get_list(entry, "attributes", list), cues, fillvalue=[]):
            _read_sentence(anatomy, [_split_label(name, label) for label in labels], severity_cues)
    return anatomies


def _read_sentence(anatomy: _Anatomy, labels: list[tuple[str, bool, str]], severity_cues: list[str]) -> None:
    """Nothing; adds what one sentence says to `anatomy`. A severity is that of the finding if there is only one."""
    stated = [label for kind, is_present, label in labels if kind in FINDING_KINDS and is_present]
    cues = {str(cue).rpartition("|")[2] for cue in severity_cues} & set(SEVERITIES)
    severity = cues.pop() if len(stated) == len(cues) == 1 else None
    for kind, is_present, label in labels:
        if kind == "nlp" and is_present:
            anatomy.is_called_normal |= label == "normal"
            anatomy.is_called_abnormal |= label == "abnormal"
        elif kind in FINDING_KINDS and is_present:
            anatomy.present.setdefault(name_finding(label), []).append(severity)
        elif kind in FINDING_KINDS:
            anatomy.denied.setdefault(name_finding(label))


def _split_label(name: str, label: Any) -> tuple[str, bool, str]:
    """(kind, whether it is present, name) of an attribute such as "disease|no|pneumonia"."""
    parts = label.split("|") if isinstance(label, str) else []
    if len(parts) != 3 or parts[1] not in ("yes", "no") or not parts[2].strip():
        raise ValueError(
            f"attribute of {name!r} is {label!r}; it must be KIND|yes|NAME or KIND|no|NAME. "
            "Fetch the scene graph again."
        )
    return parts[0], parts[1] == "yes", parts[2].strip()
