"""Source `rsna_pneumonia`: RSNA Pneumonia Detection Challenge (Kaggle, stage 2), lung opacities boxed by radiologists.

The root holds stage_2_train_labels.csv (patientId, x, y, width, height, Target; read so by `RSNA_Pneumonia_Dataset` of
https://github.com/mlmed/torchxrayvision/blob/891eae4ce2c99e869072f02e6281eed3cc71cf51/torchxrayvision/datasets.py),
stage_2_detailed_class_info.csv (patientId, class; the three classes stand so in
https://github.com/SanoScience/FederatedLearning_MSc/blob/5deb4e55d68bb46bc224ae32343a0f17d646b99b/classification/
datasets/RSNA/prepare_labels.csv.py, an address without a break) and stage_2_train_images/*.dcm. Of an image of the
class "No Lung Opacity / Not Normal" no text says what it shows.

A "patientId" is an image: the challenge drew several images of some patients of NIH ChestX-ray14. Put RSNA's
pneumonia-challenge-dataset-mappings_2018.json (a list of objects with subset_img_id and img_id) beside the CSV files,
and the splits are by true patient, whose number is then the same as in the source `nih_bbox`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from regionmed_clip.processing.corpus.dicom import read_dicom
from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.nih_bbox import patient_of_number
from regionmed_clip.processing.corpus.sources.source_files import (
    fit_box,
    hash_of_files,
    load_json,
    parse_number,
    path_inside,
    read_csv_rows,
)

LABELS_NAME, CLASSES_NAME = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
IMAGES_NAME = "stage_2_train_images"
MAPPING_NAME = "pneumonia-challenge-dataset-mappings_2018.json"
ABOUT = SourceAbout(
    name="rsna_pneumonia",
    title="RSNA Pneumonia Detection Challenge 2018, stage 2",
    license="RSNA Pneumonia Detection Challenge terms (Kaggle competition rules)",
    access="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, after accepting the rules",
    layout=f"{LABELS_NAME}, {CLASSES_NAME}, {IMAGES_NAME}/*.dcm and, if there, {MAPPING_NAME}",
    layout_url=(
        "https://github.com/mlmed/torchxrayvision/blob/891eae4ce2c99e869072f02e6281eed3cc71cf51/"
        "torchxrayvision/datasets.py"
    ),
    options={},
)
BOX_COLUMNS = ("x", "y", "width", "height")
OPACITY, NORMAL = "Lung Opacity", "Normal"
CLASSES = (OPACITY, "No Lung Opacity / Not Normal", NORMAL)
FINDING = "lung opacity"  # what was boxed: an opacity suspicious of pneumonia, which a radiograph alone cannot prove


class RsnaPneumoniaSource(IndexedSource):
    """One record per radiograph of the training set, the only one with labels; see the head of this file."""

    about = ABOUT

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the folder of the images is missing (`rows` does so for the CSV files)."""
        if not (self.root / IMAGES_NAME).is_dir():
            raise ValueError(
                f"{self.root} has no {IMAGES_NAME}; its layout must be {ABOUT.layout}. Unpack the images there, or "
                "check the root."
            )

    def rows(self) -> Iterator[Row | BadRow]:
        """A row per line of the labels, with the patient, and a row per line of the classes."""
        patients = self._patients()
        for line, fields, reason in read_csv_rows(self.root / LABELS_NAME, ("patientId", *BOX_COLUMNS, "Target")):
            where = f"{LABELS_NAME}:{line}"
            if fields is None or not fields["patientId"]:
                yield BadRow(where, reason or "has no patientId; every row names its image. Correct it.")
                continue
            key = fields["patientId"]
            try:
                box = parse_target(fields)
                if patients is not None and key not in patients:
                    raise ValueError(
                        f"{key!r} is not in {MAPPING_NAME}; every image has its patient. Fetch both again."
                    )
                yield Row(key, {"box": box, "class": None, "patient": key if patients is None else patients[key]})
            except ValueError as error:
                yield BadRow(key, f"{where}: {error}")
        for line, fields, reason in read_csv_rows(self.root / CLASSES_NAME, ("patientId", "class")):
            where = f"{CLASSES_NAME}:{line}"
            if fields is None or not fields["patientId"]:
                yield BadRow(where, reason or "has no patientId; every row names its image. Correct it.")
            elif fields["class"] not in CLASSES:
                rule = f"class is {fields['class']!r}; it must be one of {', '.join(CLASSES)}. Correct or drop the row."
                yield BadRow(fields["patientId"], f"{where}: {rule}")
            else:
                yield Row(fields["patientId"], {"box": None, "class": fields["class"], "patient": None})

    def record(self, item: Item) -> StudyRecord:
        """The record of a radiograph; ValueError where labels and class disagree."""
        boxes = [row["box"] for row in item.rows if row["box"] is not None]
        classes = {row["class"] for row in item.rows if row["class"] is not None}
        if len(classes) != 1 or (OPACITY in classes) != bool(boxes):
            raise ValueError(
                f"{item.key}: it has {len(boxes)} boxes and the classes {sorted(classes)}; an image has one class, and "
                f"boxes exactly where that is {OPACITY!r}. Correct {LABELS_NAME} and {CLASSES_NAME}."
            )
        image = read_dicom(path_inside(self.root / IMAGES_NAME, f"{item.key}.dcm"))
        # x and y are the upper left corner in pixels of the DICOM image; x + width lies just outside
        return self.study(
            item,
            image.image,
            modality="chest radiograph",
            anatomy="chest",
            view=image.view,
            regions=[
                RegionRecord(fit_box((x, y, x + width, y + height), image.image.width, image.image.height), FINDING)
                for x, y, width, height in boxes
            ],
            is_normal=classes == {NORMAL},
        )

    def patient_of(self, item: Item) -> str | None:
        """NIH's number of the patient where the mapping is there, else the patientId."""
        patients = {row["patient"] for row in item.rows if row["patient"] is not None}
        if not patients:
            raise ValueError(f"{item.key} has no row in {LABELS_NAME}; every image has one. Fetch both files again.")
        return patients.pop()

    def find_looked_for(self) -> Iterable[str]:
        """The one finding that was boxed."""
        return (FINDING,)

    def find_revision(self) -> str:
        """The stage and a hash of the annotation files."""
        paths = [self.root / name for name in (LABELS_NAME, CLASSES_NAME, MAPPING_NAME)]
        return f"stage_2 {hash_of_files(self.root, [path for path in paths if path.is_file()])}"

    def _patients(self) -> dict[str, str] | None:
        """patientId -> NIH's number of the patient; None without the mapping."""
        path = self.root / MAPPING_NAME
        if not path.is_file():
            return None
        try:  # img_id is PATIENT_FOLLOWUP.png
            return {
                entry["subset_img_id"]: patient_of_number(entry["img_id"].split("_")[0]) for entry in load_json(path)
            }
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is no list of objects with subset_img_id and img_id ({error!r}); fetch it again or remove it."
            ) from error


def parse_target(fields: Mapping[str, str]) -> tuple[float, ...] | None:
    """(x, y, width, height) of a line of the labels, None where Target is 0; ValueError where they disagree."""
    texts = [fields[name] for name in BOX_COLUMNS]
    if fields["Target"] not in ("0", "1") or (fields["Target"] == "0" and any(texts)):
        raise ValueError(
            f"Target is {fields['Target']!r} and the box {texts}; Target is 1 with a box or 0 without. Correct the row."
        )
    if fields["Target"] == "0":
        return None
    box = tuple(parse_number(text, name) for name, text in zip(BOX_COLUMNS, texts))
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"the box is {box}; width and height must exceed 0. Correct or drop the row.")
    return box


open_sources = RsnaPneumoniaSource.open
