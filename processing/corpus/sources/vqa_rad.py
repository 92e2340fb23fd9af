"""Source `vqa_rad`: VQA-RAD, 2,248 questions by clinicians on 314 radiology images of MedPix, without boxes.

Two layouts are read:
- the OSF release, "VQA_RAD Dataset Public.json" + "VQA_RAD Image Folder/"; a phrase_type with "test" marks the official
  test questions: https://github.com/aioz-ai/MICCAI19-MedVQA/issues/6, and the data set's readme
  https://github.com/Md-Ammar/VQA_RAD_Short_Term_Project-/blob/4429f9a19c5f97bfac61c9d6617edcb451729d61/README.md;
- trainset.json + testset.json + images/, the cut of the OSF file that the first address explains.

The official train and test QUESTION lists share most of their images (203 of 314), so the split here is by IMAGE: an
image with any test question is test and keeps its test questions only; train questions about it are dropped. The
release has one image per MedPix case, so every image is a patient of its own; question_rephrase and question_frame,
which reword the question, and the links to the cases are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regionmed_clip.processing.corpus.records import StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.indexed import IndexedSource
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.jsonl import MIXED_MODALITY
from regionmed_clip.processing.corpus.sources.question_rows import (
    question_rows,
    questions_of,
    read_list,
    strictest_split,
)
from regionmed_clip.processing.corpus.sources.source_files import hash_of_files, open_image_file, path_inside

ABOUT = SourceAbout(
    name="vqa_rad",
    title="VQA-RAD",
    license="CC0 1.0",
    access="https://osf.io/89kps/",
    layout='"VQA_RAD Dataset Public.json" and "VQA_RAD Image Folder/", or trainset.json, testset.json and images/',
    layout_url="https://github.com/aioz-ai/MICCAI19-MedVQA/issues/6",
    options={},
)
PUBLIC_NAME = "VQA_RAD Dataset Public.json"
MIRROR_NAMES = ("trainset.json", "testset.json")
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")
ANATOMY_OF_ORGAN = {"head": "head", "chest": "chest", "abd": "abdomen"}
_FIELDS = ("image_name", "question", "answer", "answer_type")


class VqaRadSource(IndexedSource):
    """The images of a VQA-RAD folder with their questions, split by image.

    Raises:
        ValueError: question files or image folder are missing, or a question file holds something else.
    """

    about = ABOUT

    def check_layout(self) -> None:
        """Nothing; raises ValueError where the question files or the image folder are missing."""
        missing = [path.name for path in self._question_files() if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.root} has neither {PUBLIC_NAME!r} nor {' and '.join(missing)}; a VQA-RAD folder holds "
                f"{ABOUT.layout}. Check the root, or get the data: {ABOUT.access}"
            )
        self._image_folder()

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question with its image, split and organ."""
        for path in self._question_files():
            is_public = path.name == PUBLIC_NAME
            for place, entry in read_list(path, (*_FIELDS, "phrase_type") if is_public else _FIELDS):
                name = entry.get("image_name") if isinstance(entry, dict) else None
                if not isinstance(name, str) or not name.strip():
                    yield BadRow(place, f"{place}: {entry!r} names no image; image_name must be a text. Correct it.")
                    continue
                phrase = entry.get("phrase_type") if is_public else path.name
                if not isinstance(phrase, str) or not phrase.strip():
                    # the image is bad as a whole: with this row it might be one of the test images
                    yield BadRow(name.strip(), f"{place}: phrase_type is {phrase!r}; it tells the split. Correct it.")
                    continue
                organ = str(entry.get("image_organ") or "").strip().lower()
                split = "test" if "test" in phrase.lower() else "train"
                yield from question_rows(place, name.strip(), entry, split=split, organ=organ)

    def record(self, item: Item) -> StudyRecord:
        """The record of an image; ValueError for an unreadable image or an unknown organ."""
        organ = next((row["organ"] for row in item.rows if row["organ"]), "")
        if organ and organ not in ANATOMY_OF_ORGAN:
            raise ValueError(f"{item.key}: image_organ is {organ!r}; it must be HEAD, CHEST or ABD. Correct it.")
        return self.study(
            item,
            open_image_file(path_inside(self._image_folder(), item.key)),
            modality=MIXED_MODALITY,  # the release names the organ of an image, not its modality
            anatomy=ANATOMY_OF_ORGAN.get(organ),
            qa=questions_of(item),
        )

    def split_of(self, item: Item) -> str:
        """Test where any test question is about the image."""
        return strictest_split(item)

    def find_revision(self) -> str:
        """ "osf-" or "sets-", for the layout, and the hash of the question files."""
        paths = self._question_files()
        return f"{'osf' if len(paths) == 1 else 'sets'}-{hash_of_files(self.root, paths)}"

    def _question_files(self) -> list[Path]:
        """The OSF file where it is there, else the two files of the mirrors."""
        public = self.root / PUBLIC_NAME
        return [public] if public.is_file() else [self.root / name for name in MIRROR_NAMES]

    def _image_folder(self) -> Path:
        """The folder of the images; ValueError where there is none."""
        for name in IMAGE_FOLDERS:
            if (self.root / name).is_dir():
                return self.root / name
        raise ValueError(f"{self.root} has no folder {' or '.join(IMAGE_FOLDERS)}; it holds the images. Unpack them.")


open_sources = VqaRadSource.open
