"""Source `chest_imagenome`: Chest ImaGenome 1.0.0, the silver scene graphs of 242,072 frontal images of MIMIC-CXR-JPG.

The root holds silver_dataset/scene_graph/<dicom_id>_SceneGraph.json (unpack scene_graph.zip) and, in
silver_dataset/splits/, train.csv, valid.csv, test.csv and images_to_avoid.csv with the columns subject_id, study_id,
dicom_id, path (of the DICOM file) and ViewPosition. Files, the order of the columns and the fields are read so by
https://github.com/ttanida/rgrg/blob/033a831506dfcc26fb7e7a3de6e736e7755408c6/src/dataset/create_dataset.py
the names of anatomies and findings stand in
https://github.com/PabloMessina/MedVQA/blob/196b0e66d21ff8977911e68aa4826e39ebf5b950/medvqa/datasets/chest_imagenome/__init__.py
and the data set is described at https://physionet.org/content/chest-imagenome/1.0.0/.

A region is an anatomy's box with one finding that the report's sentences state or deny there (scene_graphs.py). The
findings of the record are those sentences. images_to_avoid.csv lists the images of the gold standard's patients, to be
kept out of training and validation: they are in split test. The revision covers the split files, not the scene graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regionmed_clip.processing.corpus.records import StudyRecord
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
from regionmed_clip.processing.corpus.sources.scene_graphs import find_boxes, order_phrases, read_graph, read_regions
from regionmed_clip.processing.corpus.sources.source_fields import get_agreed, join_sentences, parse_split
from regionmed_clip.processing.corpus.sources.source_files import (
    hash_of_files,
    open_image_file,
    path_inside,
    read_csv_rows,
)

ABOUT = SourceAbout(
    name="chest_imagenome",
    title="Chest ImaGenome 1.0.0, silver data set (scene graphs on MIMIC-CXR)",
    license=LICENSE,
    access="credentialed access at https://physionet.org/content/chest-imagenome/1.0.0/, images from MIMIC-CXR-JPG",
    layout=(
        "silver_dataset/scene_graph/<dicom_id>_SceneGraph.json, silver_dataset/splits/*.csv, and files/ of "
        "MIMIC-CXR-JPG unless images=FOLDER has it"
    ),
    layout_url=(
        "https://github.com/ttanida/rgrg/blob/033a831506dfcc26fb7e7a3de6e736e7755408c6/src/dataset/create_dataset.py"
    ),
    options={
        "images": IMAGES_OPTION,
        "negated": "keep (default) or drop findings that the report denies and anatomies that it calls normal",
    },
)
SPLITS_NAME, GRAPHS_NAME = "silver_dataset/splits", "silver_dataset/scene_graph"
SPLIT_FILES = ("train", "valid", "test")
GOLD_FILE = "images_to_avoid"
COLUMNS = ("subject_id", "dicom_id", "path", "ViewPosition")


class ChestImagenomeSource(IndexedSource):
    """Records of the images of Chest ImaGenome; an image's scene graph is read when its record is asked for.

    Args:
        root: the folder with silver_dataset/.
        index_path: see IndexedSource.
        images: the folder with files/ of MIMIC-CXR-JPG; "" means the root.
        negated: "keep" or "drop" the regions that deny a finding.
    """

    about = ABOUT

    def __init__(
        self, root: str | Path, *, index_path: Path | None = None, images: str = "", negated: str = "keep"
    ) -> None:
        if negated not in ("keep", "drop"):
            raise ValueError(f"chest_imagenome: option negated is {negated!r}; it must be keep or drop. Correct it.")
        self._images_option, self._negated = images, negated
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where a split file, the scene graphs or the images are missing."""
        missing = [path.name for path in self._split_files() if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.root / SPLITS_NAME} lacks {', '.join(missing)}; chest_imagenome needs {ABOUT.layout}. "
                "Fetch the files, or name the folder that holds silver_dataset/."
            )
        if not (self.root / GRAPHS_NAME).is_dir():
            raise ValueError(f"{self.root} has no folder {GRAPHS_NAME}; it must be there. Unpack scene_graph.zip.")
        self._images = find_images(self.root, self._images_option)

    def rows(self) -> Iterator[Row | BadRow]:
        """A row for every image of the split files, keyed by its DICOM id."""
        gold = {  # about four thousand
            fields["dicom_id"]
            for _, fields, _ in read_csv_rows(self.root / SPLITS_NAME / f"{GOLD_FILE}.csv", ("dicom_id",))
            if fields is not None
        }
        for split in SPLIT_FILES:
            for line, fields, broken in read_csv_rows(self.root / SPLITS_NAME / f"{split}.csv", COLUMNS):
                where = f"{split}.csv:{line}"
                if fields is None:
                    yield BadRow(where, f"{where} {broken}")
                    continue
                key = fields["dicom_id"]
                try:
                    yield Row(key, _parse_image(fields, "test" if key in gold else split))
                except ValueError as error:
                    yield BadRow(key or where, f"{where}: {error}")

    def split_of(self, item: Item) -> str | None:
        """The split of the release, by patient; "test" for the images of the gold standard's patients."""
        return get_agreed(item, "split")

    def patient_of(self, item: Item) -> str | None:
        """The patient's folder in MIMIC-CXR."""
        return patient_of_name(get_agreed(item, "image"))

    def record(self, item: Item) -> StudyRecord:
        """The record of an image: a region for every finding of every anatomy, and the report's sentences."""
        graph = read_graph(path_inside(self.root, f"{GRAPHS_NAME}/{item.key}_SceneGraph.json"), item.key)
        image = open_image_file(path_inside(self._images, get_agreed(item, "image")))
        boxes = find_boxes(graph, image.width, image.height)
        regions = read_regions(graph, boxes, with_negated=self._negated == "keep")
        return self.study(
            item,
            image,
            modality="chest radiograph",
            anatomy="chest",
            view=get_agreed(item, "view"),
            regions=regions,
            findings=join_sentences(order_phrases(graph)) or None,
        )

    def find_revision(self) -> str:
        """The release, a hash of the split files, and what is done with denied findings."""
        return f"1.0.0-{hash_of_files(self.root, self._split_files())}-negated-{self._negated}"

    def _split_files(self) -> list[Path]:
        return [self.root / SPLITS_NAME / f"{name}.csv" for name in (*SPLIT_FILES, GOLD_FILE)]


open_sources = ChestImagenomeSource.open


def _parse_image(fields: dict[str, str], split: str) -> dict[str, str | None]:
    """What the index keeps of an image: the path of its JPEG (the release names the DICOM file), view and split."""
    if not patient_of_name(fields["path"]).endswith(f":p{fields['subject_id']}"):
        raise ValueError(
            f"subject_id is {fields['subject_id']!r} and path {fields['path']!r}; they must name one patient. "
            "Correct or drop the row."
        )
    view = fields["ViewPosition"]
    return {
        "image": jpeg_name(fields["path"]),
        "view": view if view in ("AP", "PA") else None,
        "split": parse_split(split),
    }
