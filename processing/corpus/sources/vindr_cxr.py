"""Source `vindr_cxr`: VinDr-CXR, 18,000 chest radiographs in which radiologists boxed 22 kinds of finding.

Two layouts are read:

- PhysioNet 1.0.0: annotations/annotations_{train,test}.csv with image_id, [rad_id,] class_name, x_min, y_min, x_max,
  y_max; annotations/image_labels_{train,test}.csv with image_id, [rad_id,] and a column 0/1 per label, "No finding"
  among them; train/*.dicom and test/*.dicom. Files and columns are read so by
  https://github.com/function2-llx/MMMM/blob/0cd4d23a91cbc1e7fc11eae175d0d046c0da8fe2/scripts/data/local/processors/VinDrCXR.py
- Kaggle (VinBigData): train.csv with the columns of annotations_train.csv and class_id; train/*.dicom; 14 findings.
  Read so by `VinBrain_Dataset` of
  https://github.com/mlmed/torchxrayvision/blob/891eae4ce2c99e869072f02e6281eed3cc71cf51/torchxrayvision/datasets.py
  It labels no test images, so a hash of the image makes the splits.

Three radiologists read each training image alone; five agreed on each test image (https://vindr.ai/vi/datasets/cxr,
which also says that all images are PA). `merge_marks` makes one set of boxes of the three. An image counts as normal
only where every reader says "No finding". What too few readers drew is left out, and no hard negative states it.
Patients are not told apart: PhysioNet's own split is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from regionmed_clip.processing.corpus.captions import write_impression
from regionmed_clip.processing.corpus.dicom import read_dicom
from regionmed_clip.processing.corpus.finding_table import may_be_one
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.source_fields import get_agreed
from regionmed_clip.processing.corpus.sources.source_files import (
    Box,
    fit_box,
    hash_of_files,
    parse_number,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="vindr_cxr",
    title="VinDr-CXR 1.0.0",
    license="PhysioNet Credentialed Health Data License 1.5.0",
    access="credentialed access at https://physionet.org/content/vindr-cxr/1.0.0/",
    layout=(
        "annotations/annotations_{train,test}.csv, annotations/image_labels_{train,test}.csv and {train,test}/*.dicom; "
        "or, of the Kaggle competition, train.csv and train/*.dicom"
    ),
    layout_url=(
        "https://github.com/function2-llx/MMMM/blob/0cd4d23a91cbc1e7fc11eae175d0d046c0da8fe2/"
        "scripts/data/local/processors/VinDrCXR.py"
    ),
    options={
        "readers": "majority: boxes that more than half of an image's readers drew (default); union: of any reader"
    },
)
READER_RULES = ("majority", "union")
MIN_SAME_IOU = 0.4  # of two readers' boxes of one lesion: the overlap at which the Kaggle competition counts a hit
BOX_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
NO_FINDING = "No finding"
CONSENSUS = "consensus"  # the one reader of files without rad_id
FINDING_OF_CLASS = {  # the local labels
    "Aortic enlargement": "aortic enlargement",
    "Atelectasis": "atelectasis",
    "Calcification": "calcification",
    "Cardiomegaly": "cardiomegaly",
    "Clavicle fracture": "clavicle fracture",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Emphysema": "emphysema",
    "Enlarged PA": "enlarged pulmonary artery",
    "ILD": "interstitial lung disease",
    "Infiltration": "infiltration",
    "Lung cavity": "lung cavity",
    "Lung cyst": "lung cyst",
    "Lung Opacity": "lung opacity",
    "Mediastinal shift": "mediastinal shift",
    "Nodule/Mass": "mass or nodule",
    "Other lesion": "other lesion",
    "Pleural effusion": "pleural effusion",
    "Pleural thickening": "pleural thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary fibrosis": "pulmonary fibrosis",
    "Rib fracture": "rib fracture",
}
NOT_ON_KAGGLE = (  # it gives such boxes no name of their own
    *("Clavicle fracture", "Edema", "Emphysema", "Enlarged PA", "Lung cavity", "Lung cyst", "Mediastinal shift"),
    "Rib fracture",
)
DIAGNOSIS_OF_LABEL = {  # the global labels, which have no box; "Other diseases" names none
    "COPD": "chronic obstructive pulmonary disease",
    "Lung tumor": "lung tumor",
    "Pneumonia": "pneumonia",
    "Tuberculosis": "tuberculosis",
}
UNNAMED_LABELS = ("Other disease", "Other diseases")  # the test file has the first, the training file the second
Mark = tuple[str, str, Box]  # reader, finding, box


class VinDrCxrSource(IndexedSource):
    """One record per radiograph; see the head of this file.

    Args:
        root: the folder, in one of the two layouts.
        index_path: as in `IndexedSource`.
        readers: "majority" or "union", see `merge_marks`.
    """

    about = ABOUT

    def __init__(self, root: str | Path, *, index_path: Path | None = None, readers: str = "majority") -> None:
        if readers not in READER_RULES:
            raise ValueError(
                f"{ABOUT.name}: readers is {readers!r}; it must be one of {', '.join(READER_RULES)}. "
                "Correct the option."
            )
        self.readers = readers
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the annotation files of neither layout are there."""
        if not self._annotation_files():
            raise ValueError(
                f"{self.root} has neither annotations/annotations_train.csv, annotations/annotations_test.csv nor "
                f"train.csv; its layout must be {ABOUT.layout}. Check the root."
            )

    def rows(self) -> Iterator[Row | BadRow]:
        """A row per reader of an image (what the image labels say), then a row per line of the annotations."""
        for split, (boxes, labels) in self._annotation_files().items():
            if labels is not None:
                yield from self._rows_of(labels, split, ("image_id", NO_FINDING))
            yield from self._rows_of(boxes, split, BOX_COLUMNS)

    def record(self, item: Item) -> StudyRecord:
        """The record of a radiograph; `impression` also names the diagnoses, which have no box."""
        image = read_dicom(path_inside(self.root / item.rows[0]["folder"], f"{item.key}.dicom"))
        readers = {row["reader"] for row in item.rows}
        marks: list[Mark] = [
            (row["reader"], row["finding"], tuple(row["box"])) for row in item.rows if row["box"] is not None
        ]
        min_readers = len(readers) // 2 + 1 if self.readers == "majority" else 1
        # x_min, y_min, x_max, y_max are edges in pixels of the DICOM image, in fractions: half-open as they are
        regions = [
            RegionRecord(fit_box(box, image.image.width, image.image.height), finding)
            for finding, box, num_readers in merge_marks(marks)
            if num_readers >= min_readers
        ]
        record = self.study(
            item,
            image.image,
            modality="chest radiograph",
            anatomy="chest",
            view=image.view or "PA",
            regions=regions,
            is_normal=all(row["is_normal"] for row in item.rows),
        )
        says = {(row["reader"], diagnosis) for row in item.rows for diagnosis in row["diagnoses"]}
        diagnoses = [name for name in DIAGNOSIS_OF_LABEL.values() if sum(n == name for _, n in says) >= min_readers]
        if not diagnoses:
            return record
        whole = (0.0, 0.0, float(record.width), float(record.height))
        named = [*regions, *(RegionRecord(whole, diagnosis) for diagnosis in diagnoses)]
        return replace(record, impression=write_impression(named))

    def find_looked_for(self) -> Iterable[str]:
        """The local labels of the layout: what readers were asked to box."""
        is_kaggle = None in self._annotation_files()
        return (finding for name, finding in FINDING_OF_CLASS.items() if not (is_kaggle and name in NOT_ON_KAGGLE))

    def looked_for_in(self, record: StudyRecord) -> frozenset[str]:
        """Those of `looked_for` that cannot be what any reader named, a minority of them included."""
        rows = self._index.item(record.image_id.removeprefix(f"{self.name}/")).rows
        named = {name for row in rows for name in (row["finding"], *row["diagnoses"]) if name is not None}
        return frozenset(finding for finding in self.looked_for if not any(may_be_one(finding, name) for name in named))

    def split_of(self, item: Item) -> str | None:
        """PhysioNet's own split; None for Kaggle's files."""
        return get_agreed(item, "split")

    def find_revision(self) -> str:
        """The release and a hash of the annotation files."""
        paths = [path for pair in self._annotation_files().values() for path in pair if path is not None]
        return f"1.0.0 {hash_of_files(self.root, paths)}"

    def _annotation_files(self) -> dict[str | None, tuple[Path, Path | None]]:
        """Split -> (boxes, image labels) of the files there; the split None, without labels, is Kaggle's."""
        folder = self.root / "annotations"
        pairs = {
            split: (folder / f"annotations_{split}.csv", folder / f"image_labels_{split}.csv")
            for split in ("train", "test")
        }
        found: dict[str | None, tuple[Path, Path | None]] = {s: pair for s, pair in pairs.items() if pair[0].is_file()}
        if not found and (self.root / "train.csv").is_file():
            found[None] = (self.root / "train.csv", None)
        return found

    def _rows_of(self, path: Path, split: str | None, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
        """The rows of one annotation file."""
        name = path.relative_to(self.root).as_posix()
        parse = parse_box_row if columns == BOX_COLUMNS else parse_label_row
        for line, fields, reason in read_csv_rows(path, columns):
            if fields is None or not fields["image_id"]:
                yield BadRow(f"{name}:{line}", reason or "has no image_id; every row names its image. Correct it.")
                continue
            try:
                parsed = parse(fields)
            except ValueError as error:
                yield BadRow(fields["image_id"], f"{name}:{line}: {error}")
                continue
            reader = fields.get("rad_id") or CONSENSUS
            place = {"split": split, "folder": split or "train", "reader": reader}
            yield Row(fields["image_id"], {**place, **parsed})


def parse_box_row(fields: Mapping[str, str]) -> dict[str, object]:
    """What a line of the annotations says: a finding with its box, a diagnosis without one, or nothing found."""
    name, texts = fields["class_name"], [fields[column] for column in BOX_COLUMNS[2:]]
    is_global = name in DIAGNOSIS_OF_LABEL or name in UNNAMED_LABELS
    if name == NO_FINDING or (is_global and not any(texts)):
        diagnoses = [DIAGNOSIS_OF_LABEL[name]] if name in DIAGNOSIS_OF_LABEL else []
        return {"finding": None, "box": None, "is_normal": name == NO_FINDING, "diagnoses": diagnoses}
    if name not in FINDING_OF_CLASS:
        raise ValueError(
            f"class_name is {name!r}; it must be {NO_FINDING!r} or one of the {len(FINDING_OF_CLASS)} local labels. "
            "Correct or drop the row."
        )
    x0, y0, x1, y1 = (parse_number(text, column) for column, text in zip(BOX_COLUMNS[2:], texts))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"the box of {name!r} is {(x0, y0, x1, y1)}; x_max must exceed x_min and y_max must exceed y_min. "
            "Correct or drop the row."
        )
    return {"finding": FINDING_OF_CLASS[name], "box": (x0, y0, x1, y1), "is_normal": False, "diagnoses": []}


def parse_label_row(fields: Mapping[str, str]) -> dict[str, object]:
    """What a line of the image labels says: whether nothing was found, and the diagnoses. An empty field states no."""
    labels = {}
    for name in (NO_FINDING, *DIAGNOSIS_OF_LABEL, *UNNAMED_LABELS):
        value = parse_number(fields.get(name) or "0", name)
        if value not in (0, 1):
            raise ValueError(f"{name} is {value:g}; it must be 0 or 1. Correct or drop the row.")
        labels[name] = value == 1
    diagnoses = [diagnosis for label, diagnosis in DIAGNOSIS_OF_LABEL.items() if labels[label]]
    is_normal = labels[NO_FINDING] and not any(labels[name] for name in (*DIAGNOSIS_OF_LABEL, *UNNAMED_LABELS))
    return {"finding": None, "box": None, "is_normal": is_normal, "diagnoses": diagnoses}


def merge_marks(marks: Iterable[Mark]) -> list[tuple[str, Box, int]]:
    """(finding, box, number of readers who drew it) of every lesion, sorted; the order of `marks` does not matter.

    Boxes of one finding by different readers are one lesion where they overlap by MIN_SAME_IOU or more; the pairs are
    joined from the highest overlap down, and never so that a lesion has two boxes of one reader: who drew two boxes
    saw two lesions. The box of a lesion is the mean of its readers' boxes, edge by edge.
    """
    marks = sorted(set(marks), key=lambda mark: (mark[1], mark[2], mark[0]))
    lesion_of = list(range(len(marks)))  # mark -> the number of its lesion
    pairs = [
        (iou, first, second)
        for first, second in combinations(range(len(marks)), 2)
        if marks[first][1] == marks[second][1] and (iou := box_iou(marks[first][2], marks[second][2])) >= MIN_SAME_IOU
    ]
    for _, first, second in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        kept, joined = lesion_of[first], lesion_of[second]
        readers = [marks[index][0] for index, lesion in enumerate(lesion_of) if lesion in (kept, joined)]
        if kept != joined and len(set(readers)) == len(readers):
            lesion_of = [kept if lesion == joined else lesion for lesion in lesion_of]
    lesions = []
    for number in sorted(set(lesion_of)):
        members = [mark for mark, lesion in zip(marks, lesion_of) if lesion == number]
        x0, y0, x1, y1 = (sum(edges) / len(members) for edges in zip(*(box for _, _, box in members)))
        lesions.append((members[0][1], (x0, y0, x1, y1), len(members)))
    return sorted(lesions)


def box_iou(first: Box, second: Box) -> float:
    """The area that two boxes share over the area that they cover together, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return shared / (sum(areas) - shared)


open_sources = VinDrCxrSource.open
