"""Source `slake`: SLAKE 1.0, 642 CT, MRI and X-ray images with organ boxes and questions in English and Chinese.

Layout as documented by public loaders and pages:
- boxes, `detection.json` = [{"Liver": [x, y, width, height]}, ...] in pixels of source.jpg, and imgs/xmlabN/:
  https://github.com/MSIIP/Uni-Med/blob/f1e64360cdbd0b69ffbbcf50855168af95b2afdf/uni_med/datasets/datasets/slake_dataset.py
- question fields:
  https://github.com/pengyuheng-github/MedFLM/blob/2a0d6fb668c25a4683ba10d8190d89fda2493916/minigpt4/datasets/datasets/slake_dataset.py
- file list and licence; validate.json is called validation.json there: https://huggingface.co/datasets/BoKelvin/SLAKE/tree/main

One record per image. Not read: mask.png, because no public document was found that says how mask.txt maps its values;
question.json, which repeats the questions of the split files; the knowledge graph. That the split files never share an
image could not be verified in a document; the rule of question_rows.py holds where they do. Which slices come from one
patient is not published: there are no patient ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regionmed_clip.processing.corpus.records import RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.question_rows import (
    question_rows,
    questions_of,
    read_list,
    strictest_split,
)
from regionmed_clip.processing.corpus.sources.source_files import (
    Box,
    fit_box,
    hash_of_files,
    load_json,
    open_image_file,
    path_inside,
)

ABOUT = SourceAbout(
    name="slake",
    title="SLAKE 1.0",
    license="CC BY 4.0",
    access="https://www.med-vqa.com/slake or https://huggingface.co/datasets/BoKelvin/SLAKE (unpack imgs.zip)",
    layout="train.json, validate.json (or validation.json), test.json and imgs/xmlabN/{source.jpg,detection.json}",
    layout_url="https://github.com/MSIIP/Uni-Med/blob/f1e64360cdbd0b69ffbbcf50855168af95b2afdf/uni_med/datasets/datasets/"
    "slake_dataset.py",
    options={"lang": "language of the questions: en (default), zh or all"},
)
LANGUAGES = ("en", "zh", "all")
FILES_OF_SPLIT = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
MODALITY_OF_NAME = {"ct": "CT", "mri": "MRI", "x-ray": "radiograph"}
_FIELDS = ("img_name", "question", "answer", "q_lang", "location", "modality", "answer_type")


class SlakeSource(IndexedSource):
    """The images of a SLAKE folder with their organ boxes and the questions of one language, or of both.

    Args:
        root: the unpacked folder, see ABOUT.layout.
        index_path: see IndexedSource.
        lang: "en", "zh" or "all"; an image keeps its boxes when it has no question in that language.

    Raises:
        ValueError: an unknown language; a split file or imgs/ is missing, or a split file holds something else.
    """

    about = ABOUT

    def __init__(self, root: str | Path, *, index_path: Path | None = None, lang: str = "en") -> None:
        if lang not in LANGUAGES:
            raise ValueError(f"slake: lang is {lang!r}; it must be one of {', '.join(LANGUAGES)}. Choose one.")
        self.lang = lang
        super().__init__(root, index_path=index_path)

    def check_layout(self) -> None:
        """Nothing; raises ValueError where a split file or imgs/ is missing."""
        for split in FILES_OF_SPLIT:
            self._file_of(split)
        if not (self.root / "imgs").is_dir():
            raise ValueError(f"{self.root} has no folder imgs; it holds the images. Unpack imgs.zip there.")

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question with its image, split, language, modality and body part."""
        for split in FILES_OF_SPLIT:
            for place, entry in read_list(self._file_of(split), _FIELDS):
                if not isinstance(entry, dict) or not isinstance(entry.get("img_name"), str) or not entry["img_name"]:
                    yield BadRow(place, f"{place}: {entry!r} names no image; img_name must be a path. Correct it.")
                    continue
                stated = {name: str(entry.get(name) or "").strip() for name in ("q_lang", "modality", "location")}
                yield from question_rows(place, entry["img_name"], entry, split=split, **stated)

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; ValueError for an unreadable image or box file, or an unknown modality."""
        image = open_image_file(path_inside(self.root / "imgs", item.key))
        rows = tuple(row for row in item.rows if self.lang in ("all", row["q_lang"]))
        english = next((row for row in item.rows if row["q_lang"] == "en"), item.rows[0])
        return self.study(
            item,
            image,
            modality=_modality(item.key, english["modality"]),
            anatomy=_body_part(english["location"]),
            regions=self._regions(item.key, image.width, image.height),
            qa=questions_of(Item(item.key, rows, item.patient_id, item.split)),
        )

    def split_of(self, item: Item) -> str:
        """The strictest split that has a question about the image, in whatever language."""
        return strictest_split(item)

    def find_revision(self) -> str:
        """ "1.0-", the language and the hash of the split files and all box files."""
        boxes = (self.root / "imgs").glob("*/detection.json")
        questions = (self._file_of(split) for split in FILES_OF_SPLIT)
        return f"1.0-{self.lang}-{hash_of_files(self.root, [*questions, *boxes])}"

    def _file_of(self, split: str) -> Path:
        """The path of a split's questions; ValueError where it is missing."""
        names = FILES_OF_SPLIT[split]
        for name in names:
            if (self.root / name).is_file():
                return self.root / name
        raise ValueError(
            f"{self.root} has no {' or '.join(names)}; a SLAKE folder holds {ABOUT.layout}. Check the root, or get "
            f"the data: {ABOUT.access}"
        )

    def _regions(self, image_name: str, width: int, height: int) -> tuple[RegionRecord, ...]:
        """The organs and lesions of detection.json beside the image; ValueError names an entry that is no box."""
        path = path_inside(self.root / "imgs", str(Path(image_name).with_name("detection.json")))
        entries = load_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} holds {entries!r}; it must be a list of objects name: box. Fetch it again.")
        regions = []
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise ValueError(f"{path}:{number}: {entry!r} is no object name: [x, y, width, height]. Correct it.")
            for name, values in entry.items():
                finding, laterality = _split_side(name)
                box = fit_box(_corners(f"{path}:{number}: {name}", values), width, height)
                regions.append(RegionRecord(box, finding, laterality=laterality))
        return tuple(regions)


open_sources = SlakeSource.open


def _corners(where: str, values: Any) -> Box:
    """(x0, y0, x1, y1), half-open, of an [x, y, width, height] in pixels of source.jpg (how Uni-Med reads them)."""
    is_box = isinstance(values, list) and len(values) == 4
    if not is_box or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{where} is {values!r}; a box is [x, y, width, height] in pixels. Correct it.")
    x, y, box_width, box_height = (float(value) for value in values)
    return x, y, x + box_width, y + box_height


def _split_side(name: str) -> tuple[str, str | None]:
    """Finding and laterality of a box's name: "Left Lung" -> ("lung", "left"); an organ's side is the patient's."""
    words = name.replace("_", " ").lower().split()
    if len(words) > 1 and words[0] in ("left", "right"):
        return " ".join(words[1:]), words[0]
    return " ".join(words), None


def _modality(image_name: str, name: str) -> str:
    """The modality in our words; ValueError for an unknown one."""
    modality = MODALITY_OF_NAME.get(name.lower())
    if modality is None:
        raise ValueError(
            f"{image_name}: modality is {name!r}; SLAKE has {', '.join(MODALITY_OF_NAME)}. Correct the split file."
        )
    return modality


def _body_part(location: str) -> str | None:
    """The body part in lower case; of "Chest_lung" the first word, which is true whatever the second adds."""
    return location.split("_")[0].strip().lower() or None
