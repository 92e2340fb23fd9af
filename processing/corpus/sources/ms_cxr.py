"""Source `ms_cxr`: MS-CXR, 1,162 phrases that radiologists boxed on images of MIMIC-CXR-JPG.

The root holds MS_CXR_Local_Alignment_v1.1.0.csv or, in its place, the JSON file of the same name (of several versions
the newest is read, of one version the CSV file); v1.0.0 has no split. Its columns dicom_id, path, category_name,
label_text, x, y, w, h, image_width, image_height and, since v1.1.0, split (train, val, test), are read so by
https://github.com/PabloMessina/MedVQA/blob/d70c87c497a62e38fb3ee76bfb63326d05062d61/medvqa/datasets/ms_cxr/__init__.py
and the data set is described at https://www.physionet.org/content/ms-cxr/. The JSON file is COCO's with `path` in
images and `label_text` in annotations: so reads it a copy, at no known address, of the script that makes the CSV file.

A phrase with several boxes has several regions with the same text. Side, size and severity stand in the phrase only:
they are not parsed out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.mimic_jpg import (
    IMAGES_OPTION,
    LICENSE,
    find_images,
    jpeg_name,
    patient_of_name,
)
from regionmed_clip.processing.corpus.sources.source_fields import (
    as_box,
    get_agreed,
    get_list,
    get_number,
    join_sentences,
    parse_split,
)
from regionmed_clip.processing.corpus.sources.source_files import (
    fit_box,
    hash_of_files,
    load_json,
    open_image_file,
    parse_number,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="ms_cxr",
    title="MS-CXR 1.1.0 (phrase grounding on MIMIC-CXR)",
    license=LICENSE,
    access="credentialed access at https://physionet.org/content/ms-cxr/1.1.0/, images from MIMIC-CXR-JPG",
    layout="MS_CXR_Local_Alignment_v1.1.0.csv (or .json), and files/ of MIMIC-CXR-JPG unless images=FOLDER has it",
    layout_url=(
        "https://github.com/PabloMessina/MedVQA/blob/d70c87c497a62e38fb3ee76bfb63326d05062d61/"
        "medvqa/datasets/ms_cxr/__init__.py"
    ),
    options={"images": IMAGES_OPTION},
)
COLUMNS = (
    "dicom_id",
    "path",
    "category_name",
    "label_text",
    "x",
    "y",
    "w",
    "h",
    "image_width",
    "image_height",
)
FINDINGS = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "lung opacity",
    "pleural effusion",
    "pneumonia",
    "pneumothorax",
)

_ANNOTATIONS_NAME = re.compile(r"MS_CXR_Local_Alignment_v(?P<version>\d+(\.\d+)*)\.(csv|json)")


class MsCxrSource(IndexedSource):
    """Records of the images of MS-CXR, one for each image with all its phrases.

    Args:
        root: the folder with the annotation file.
        index_path: see IndexedSource.
        images: the folder with files/ of MIMIC-CXR-JPG; "" means the root.
    """

    about = ABOUT

    def __init__(self, root: str | Path, *, index_path: Path | None = None, images: str = "") -> None:
        self._images_option = images
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the annotation file or the folder of the images is missing."""
        self._annotations, self._version = _find_annotations(self.root)
        self._images = find_images(self.root, self._images_option)

    def rows(self) -> Iterator[Row | BadRow]:
        """A row for every box, and one for an image of the JSON file without any; keyed by the DICOM id."""
        return self._csv_rows() if self._annotations.suffix == ".csv" else self._json_rows()

    def split_of(self, item: Item) -> str | None:
        """The split of v1.1.0; None for v1.0.0, which has none."""
        return get_agreed(item, "split")

    def patient_of(self, item: Item) -> str | None:
        """The patient's folder in MIMIC-CXR."""
        return patient_of_name(get_agreed(item, "image"))

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; its findings are the phrases, which are the report's or a radiologist's words."""
        width, height = get_agreed(item, "size")
        image = open_image_file(path_inside(self._images, get_agreed(item, "image")), (width, height))
        regions = [
            RegionRecord(
                fit_box(as_box(row["box"]), width, height),
                row["finding"],
                description=row["text"],
                text_origin="source",
            )
            for row in item.rows
            if row["box"] is not None
        ]
        findings = join_sentences(region.description for region in regions)
        return self.study(
            item, image, modality="chest radiograph", anatomy="chest", regions=regions, findings=findings or None
        )

    def find_revision(self) -> str:
        """The version and a hash of the annotation file."""
        return f"{self._version}-{hash_of_files(self.root, [self._annotations])}"

    def _csv_rows(self) -> Iterator[Row | BadRow]:
        for line, fields, broken in read_csv_rows(self._annotations, COLUMNS):
            where = f"{self._annotations.name}:{line}"
            if fields is None:
                yield BadRow(where, f"{where} {broken}")
                continue
            try:
                box = [parse_number(fields[name], name) for name in ("x", "y", "w", "h")]
                size = [int(parse_number(fields[name], name)) for name in ("image_width", "image_height")]
                parsed = _parse_phrase(fields["category_name"], fields["label_text"], box)
                yield Row(fields["dicom_id"], {**_parse_image(fields["dicom_id"], fields, size), **parsed})
            except ValueError as error:
                yield BadRow(fields["dicom_id"] or where, f"{where}: {error}")

    def _json_rows(self) -> Iterator[Row | BadRow]:
        name = self._annotations.name
        images, annotations, categories = _load_coco(self._annotations)
        name_of_category = {str(category.get("id")): str(category.get("name")) for category in categories}
        key_of_image: dict[str, str] = {}  # about a thousand images
        image_of_key: dict[str, dict[str, Any]] = {}
        for number, image in enumerate(images):
            key = Path(str(image.get("file_name", ""))).stem
            key_of_image[str(image.get("id"))] = key
            try:
                size = [int(get_number(image, side)) for side in ("width", "height")]
                image_of_key[key] = _parse_image(key, image, size)
            except ValueError as error:
                yield BadRow(key or f"{name}:images[{number}]", f"{name}:images[{number}]: {error}")
        annotated = set()
        for number, annotation in enumerate(annotations):
            where = f"{name}:annotations[{number}]"
            key = key_of_image.get(str(annotation.get("image_id")), "")
            annotated.add(key)
            if key in image_of_key:
                yield _json_row(key, where, image_of_key[key], annotation, name_of_category)
            elif not key:
                reason = (
                    f"image_id is {annotation.get('image_id')!r}; it must be the id of an image. Correct or drop it."
                )
                yield BadRow(where, f"{where}: {reason}")
        for key, image in image_of_key.items():
            if key not in annotated:
                yield Row(key, {**image, "box": None})


open_sources = MsCxrSource.open


def _load_coco(path: Path) -> tuple[list[dict[str, Any]], ...]:
    """The lists images, annotations and categories of the file; ValueError where it is no such file."""
    content = load_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(part not in content for part in parts):
        raise ValueError(
            f"{path} is no COCO file; it must be an object with the lists {', '.join(parts)}. Fetch it again."
        )
    return tuple(get_list(content, part, dict) for part in parts)


def _json_row(
    key: str, where: str, image: dict[str, Any], annotation: dict[str, Any], name_of_category: dict[str, str]
) -> Row | BadRow:
    """The row of an annotation of the JSON file."""
    try:
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f"bbox is {box!r}; it must be [x, y, width, height]. Correct or drop it.")
        numbers = [parse_number(str(value), "bbox") for value in box]
        category = name_of_category.get(str(annotation.get("category_id")), str(annotation.get("category_id")))
        fields = _parse_phrase(category, str(annotation.get("label_text") or ""), numbers)
        split = annotation.get("split")
        return Row(key, {**image, **({"split": parse_split(split)} if split else {}), **fields})
    except ValueError as error:
        return BadRow(key, f"{where}: {error}")


def _find_annotations(root: Path) -> tuple[Path, str]:
    """The newest annotation file, CSV before JSON, and its version; ValueError where there is none."""
    found = [(path, _ANNOTATIONS_NAME.fullmatch(path.name)) for path in sorted(root.iterdir())]
    versions = [
        (tuple(int(part) for part in match["version"].split(".")), path.suffix == ".csv", path, match["version"])
        for path, match in found
        if match is not None
    ]
    if not versions:
        raise ValueError(f"{root} has no MS_CXR_Local_Alignment_v*.csv or .json; ms_cxr needs one. {ABOUT.access}.")
    _, _, path, version = max(versions)
    return path, version


def _parse_image(key: str, fields: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    """What the index keeps of an image: the path of its JPEG, its size and its split (None for v1.0.0)."""
    image, split = jpeg_name(str(fields.get("path", ""))), fields.get("split")
    if Path(image).stem != key:
        raise ValueError(f"path is {image!r} and the image {key!r}; they must name one image. Correct or drop the row.")
    return {
        "image": image,
        "size": size,
        "split": parse_split(split) if split else None,
    }


def _parse_phrase(category: str, text: str, box: list[float]) -> dict[str, Any]:
    """What the index keeps of a phrase and one of its boxes, given as (x, y, width, height) in pixels of the image."""
    finding = category.strip().lower()
    if finding not in FINDINGS:
        raise ValueError(f"category is {category!r}; it must be one of {', '.join(FINDINGS)}. Correct or drop the row.")
    if not text.strip():
        raise ValueError(f"label_text is {text!r}; every box has its phrase. Fill it or drop the row.")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"box is {box}; its width and height must be above 0. Correct or drop the row.")
    # x and y are the top left corner and w and h the extent, so x + w and y + h lie just outside, as ours do.
    return {"finding": finding, "text": " ".join(text.split()), "box": [x, y, x + width, y + height]}
