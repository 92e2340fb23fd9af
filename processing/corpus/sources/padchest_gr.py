"""Source `padchest_gr`: PadChest-GR, 4,555 frontal chest radiographs with grounded sentences in English and Spanish.

The root holds grounded_reports_20240819.json, a list of {StudyID, ImageID, findings}, where a finding has sentence_en,
abnormal and, if abnormal, boxes (x0, y0, x1, y1 as fractions of the image), labels and locations; master_table.csv with
ImageID, PatientID and split (train, validation, test), several rows an image; and the 16-bit PNG files. Both files,
ImageID, split, sentence_en and boxes are read so by
https://github.com/rfahrn/RadVLM/blob/380c8cbb0866506e3d96620cbd3bd64b9245ae53/radvlm/data/datasets.py
and the data set is described at https://arxiv.org/html/2411.05085v1. That boxes are fractions, that labels, locations
and boxes may be absent, the column PatientID and the folder Padchest_GR_files/PadChest_GR/ were read in loaders at no
known address.

A sentence with n boxes has n regions with its text; all sentences, also those that deny a finding, are the record's
findings. The second reader's boxes (extra_boxes) mark the same findings again and are not read. The record has no
window: the table gives none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.grammar import join_list
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_fields import as_box, get_list, join_sentences, parse_split
from regionmed_clip.processing.corpus.sources.source_files import (
    Box,
    fit_box,
    hash_of_files,
    load_json,
    open_image_file,
    parse_number,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="padchest_gr",
    title="PadChest-GR (grounded reports of 2024-08-19)",
    license="BIMCV terms of PadChest-GR (on request)",
    access="on request at https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
    layout="grounded_reports_20240819.json, master_table.csv and the PNG files (Padchest_GR_files/PadChest_GR/)",
    layout_url=(
        "https://github.com/rfahrn/RadVLM/blob/380c8cbb0866506e3d96620cbd3bd64b9245ae53/radvlm/data/datasets.py"
    ),
    options={"images": "folder of the PNG files (default: the first of the usual ones that the root has)"},
)
REPORTS_NAME, TABLE_NAME = "grounded_reports_20240819.json", "master_table.csv"
COLUMNS = ("ImageID", "PatientID", "split")
IMAGE_FOLDERS = ("Padchest_GR_files/PadChest_GR", "PadChest_GR", "images_grounding", "Padchest_GR_files")
FRACTION_SLACK = 0.01  # by so much a fraction may leave [0, 1]; a box in pixels leaves it by far
PIXEL_DIGITS = 2  # fractions have six digits or more: their hundredths of a pixel are noise
PLACE_OF_LOCATION = {  # locations of PadChest's tree that are one place; others stay unsaid
    "apical": "apex",
    "basal": "base",
    "hilar": "hilum",
    "lingula": "lingula",
    "upper lobe": "upper lobe",
    "middle lobe": "middle lobe",
    "lower lobe": "lower lobe",
    "upper lung field": "upper lung field",
    "middle lung field": "middle lung field",
    "lower lung field": "lower lung field",
    "costophrenic angle": "costophrenic angle",
    "cardiophrenic angle": "cardiophrenic angle",
}

_SIDES = ("left", "right", "bilateral")


class PadchestGrSource(IndexedSource):
    """Records of the images of PadChest-GR.

    Args:
        root: the folder with the JSON file and the table.
        index_path: see IndexedSource.
        images: the folder of the PNG files; "" means the first of IMAGE_FOLDERS that is there.
    """

    about = ABOUT

    def __init__(self, root: str | Path, *, index_path: Path | None = None, images: str = "") -> None:
        self._images_option = images
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where a file or the folder of the images is missing."""
        missing = [path.name for path in self._annotations() if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.root} lacks {', '.join(missing)}; padchest_gr needs {ABOUT.layout}. Fetch them, or unpack "
                "master_table.csv.zip."
            )
        option = self._images_option
        candidates = [Path(option).expanduser()] if option else [self.root / name for name in IMAGE_FOLDERS]
        found = [folder.resolve() for folder in candidates if folder.is_dir()]
        if not found:
            raise ValueError(
                f"No folder {' or '.join(map(str, candidates))}; one must hold the PNG files. Unpack "
                "PadChest_GR.zip.001 and the following parts, or name the folder by the option images=FOLDER."
            )
        self._images = found[0]

    def rows(self) -> Iterator[Row | BadRow]:
        """A row for every report and every row of the table, keyed by ImageID, the reports first."""
        reports = load_json(self.root / REPORTS_NAME)  # one release of 4,555 studies, some megabytes
        if not isinstance(reports, list):
            raise ValueError(f"{REPORTS_NAME} holds a {type(reports).__name__}; it must be a list. Fetch it again.")
        for number, report in enumerate(reports):
            key = str(report.get("ImageID") or "") if isinstance(report, dict) else ""
            where = f"{REPORTS_NAME}[{number}]"
            try:
                if not key:
                    raise ValueError(
                        f"report is {report!r:.200}; it must be an object with ImageID. Correct or drop it."
                    )
                yield Row(key, {"findings": _parse_findings(report)})
            except ValueError as error:
                yield BadRow(key or where, f"{where}: {error}")
        for line, fields, broken in read_csv_rows(self.root / TABLE_NAME, COLUMNS):
            where = f"{TABLE_NAME}:{line}"
            if fields is None:
                yield BadRow(where, f"{where} {broken}")
                continue
            try:
                yield Row(fields["ImageID"], {"split": parse_split(fields["split"]), "patient": fields["PatientID"]})
            except ValueError as error:
                yield BadRow(fields["ImageID"] or where, f"{where}: {error}")

    def split_of(self, item: Item) -> str | None:
        """The split of the table, which keeps patients apart."""
        return _of_table(item, "split")

    def patient_of(self, item: Item) -> str | None:
        """PatientID of the table, the release's pseudonym."""
        return _of_table(item, "patient")

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; its findings are all sentences of its report."""
        reports = [row["findings"] for row in item.rows if "findings" in row]
        if len(reports) != 1:
            raise ValueError(
                f"{item.key} has {len(reports)} reports in {REPORTS_NAME}; an image has one. Correct the file, or drop "
                f"its rows from {TABLE_NAME}."
            )
        image = open_image_file(path_inside(self._images, item.key))
        regions = [region for finding in reports[0] for region in _make_regions(finding, image.width, image.height)]
        findings = join_sentences(finding["text"] for finding in reports[0])
        return self.study(
            item,
            image,
            modality="chest radiograph",
            anatomy="chest",
            view="frontal",
            regions=regions,
            findings=findings or None,
        )

    def find_revision(self) -> str:
        """The release and a hash of its two annotation files."""
        return f"20240819-{hash_of_files(self.root, self._annotations())}"

    def _annotations(self) -> list[Path]:
        return [self.root / REPORTS_NAME, self.root / TABLE_NAME]


open_sources = PadchestGrSource.open


def _of_table(item: Item, name: str) -> str:
    """What the table's rows of an image say of it; ValueError where there is none, or they differ."""
    values = {row[name] for row in item.rows if name in row}
    if len(values) != 1:
        raise ValueError(
            f"{item.key} has {name} {sorted(values)} in {TABLE_NAME}; every image has one. Correct the table, or drop "
            "the image."
        )
    return values.pop()


def _parse_findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the index keeps of a report: for each sentence its text, boxes in fractions, labels and locations."""
    findings = []
    for number, finding in enumerate(get_list(report, "findings", dict)):
        try:
            findings.append(_parse_finding(finding))
        except ValueError as error:
            raise ValueError(f"findings[{number}]: {error}") from error
    return findings


def _parse_finding(finding: dict[str, Any]) -> dict[str, Any]:
    """What the index keeps of a sentence."""
    text, is_abnormal = finding.get("sentence_en"), finding.get("abnormal", False)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"sentence_en is {text!r}; it must be a sentence. Fill it or drop the finding.")
    if not isinstance(is_abnormal, bool):
        raise ValueError(f"abnormal is {is_abnormal!r}; it must be true or false. Correct it.")
    boxes = [_parse_box(box) for box in get_list(finding, "boxes", list)]
    labels = [label.strip().lower() for label in get_list(finding, "labels", str) if label.strip()]
    if boxes and not (is_abnormal and labels):
        raise ValueError(
            f"{text!r} has {len(boxes)} boxes, abnormal {is_abnormal} and labels {labels}; a sentence with boxes is "
            "abnormal and names what they show. Correct it, or drop its boxes."
        )
    return {"text": text, "boxes": boxes, "labels": labels, "locations": get_list(finding, "locations", str)}


def _parse_box(box: list[Any]) -> list[float]:
    """The four fractions of a box; ValueError where it has others, or its corners are exchanged."""
    numbers = [parse_number(str(value), "boxes") for value in box]
    low, high = -FRACTION_SLACK, 1 + FRACTION_SLACK
    is_box = len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]
    if not is_box or not all(low <= number <= high for number in numbers):
        raise ValueError(
            f"boxes holds {box}; a box is [x0, y0, x1, y1] in fractions of the image, x1 above x0 and y1 above y0. "
            "Correct or drop it."
        )
    return numbers


def _make_regions(finding: dict[str, Any], width: int, height: int) -> list[RegionRecord]:
    """The regions of a sentence, one a box; several labels are one finding ("pleural effusion and atelectasis")."""
    locations = [location.lower().removeprefix("loc ").strip() for location in finding["locations"]]
    return [
        RegionRecord(
            _to_pixels(box, width, height),
            join_list(list(dict.fromkeys(finding["labels"]))),
            laterality=_find_side(locations, len(finding["boxes"])),
            place=_find_place(locations),
            description=" ".join(finding["text"].split()),
            text_origin="source",
        )
        for box in finding["boxes"]
    ]


def _to_pixels(box: list[float], width: int, height: int) -> Box:
    """The box in pixels: fractions are of the whole image, 1 being its far edge, so x1 and y1 lie just outside."""
    x0, y0, x1, y1 = box
    pixels = (x0 * width, y0 * height, x1 * width, y1 * height)
    return fit_box(as_box([round(value, PIXEL_DIGITS) for value in pixels]), width, height)


def _find_side(locations: list[str], num_boxes: int) -> str | None:
    """The patient's side of a sentence; of both sides and several boxes it is not known which box is on which."""
    words = {word for location in locations for word in location.split()}
    sides = words & set(_SIDES)
    if len(sides) == 1 and "bilateral" not in sides:
        return sides.pop()
    return "bilateral" if sides and num_boxes == 1 else None


def _find_place(locations: list[str]) -> str | None:
    """The place of a sentence where its locations, sides apart, are one that PLACE_OF_LOCATION knows."""
    names = {" ".join(word for word in location.split() if word not in _SIDES) for location in locations} - {""}
    return PLACE_OF_LOCATION.get(names.pop()) if len(names) == 1 else None
