"""Source `mask_folder`: images with mask files beside them, in the layouts of Kvasir-SEG, BUSI, ISIC 2018 or as pairs.

Layouts, chosen by the option `layout`:
- kvasir: images/NAME.jpg and masks/NAME.jpg; where kavsir_bboxes.json (its spelling) is there, one region per box,
  else per mask. https://github.com/DebeshJha/Kvasir-SEG/blob/1a281486b26c4652af8218c5ffc8962ad5b69004/README.md
- busi: Dataset_BUSI_with_GT, the folders benign, malignant and normal with "benign (1).png", "benign (1)_mask.png" and,
  for further masses, "benign (1)_mask_1.png". The empty masks of normal give no region.
  https://github.com/constantinpape/torch-em, torch_em/data/datasets/medical/busi.py (the commit is in `ABOUT`)
- isic: ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg and ISIC2018_Task1_Training_GroundTruth/
  ISIC_0000000_segmentation.png, likewise Validation and Test, which are its splits.
  https://github.com/constantinpape/torch-em, torch_em/data/datasets/medical/isic.py
- pairs: any two folders with equal names, told by options.

One mask file is one region, since a lesion may be seen in several pieces; with `components=true` every 8-connected part
of at least `min_area` pixels is one. The box is the tight box of the mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from regionmed_clip.processing.corpus.records import MaskRle, RegionRecord, StudyRecord
from regionmed_clip.processing.corpus.sources import SourceAbout
from regionmed_clip.processing.corpus.sources.generic_folder import (
    GENERIC_ACCESS,
    GENERIC_LICENSE,
    GENERIC_OPTIONS,
    UNKNOWN_LICENSE,
    UNKNOWN_MODALITY,
    GenericFolder,
    finding_of_label,
    one_of,
    split_of_words,
)
from regionmed_clip.processing.corpus.sources.item_index import BadRow, Item, Row
from regionmed_clip.processing.corpus.sources.region_masks import connected_parts, read_mask, tight_box
from regionmed_clip.processing.corpus.sources.source_files import (
    list_images,
    load_json,
    open_image_file,
    parse_number,
    path_inside,
)

KVASIR_BOXES = "kavsir_bboxes.json"
KVASIR_EDGES = ("xmin", "ymin", "xmax", "ymax")
BUSI_CLASSES = ("benign", "malignant", "normal")
ISIC_PHASES = ("Training", "Validation", "Test")
MIN_PART_AREA = 16  # pixels; smaller parts are specks of compression or of the pen


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two folders within the root, which may be one: image STEM and masks STEM + `mask_suffix` (+ "_" + number).

    Attributes:
        images, masks: the folders.
        mask_suffix: what the names of masks have behind those of their images.
        finding: what the masks show; None where the folder holds normal images, whose masks are empty.
        may_be_empty: whether an empty mask is possible; else it makes its image a bad item.
    """

    images: str
    masks: str
    mask_suffix: str
    finding: str | None
    may_be_empty: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of all images of a layout."""

    modality: str
    anatomy: str | None
    license: str
    pairings: tuple[Pairing, ...]


LAYOUTS = {
    "kvasir": Layout(
        "colonoscopy image", "colon", "research and education only", (Pairing("images", "masks", "", "polyp"),)
    ),
    "busi": Layout(
        "ultrasound",
        "breast",
        UNKNOWN_LICENSE,  # copies of the set name different ones
        tuple(
            Pairing(name, name, "_mask", None if name == "normal" else f"{name} breast mass") for name in BUSI_CLASSES
        ),
    ),
    "isic": Layout(
        "dermoscopic image",
        "skin",
        UNKNOWN_LICENSE,  # in the LICENSE.txt of each download
        tuple(
            Pairing(
                f"ISIC2018_Task1-2_{phase}_Input",
                f"ISIC2018_Task1_{phase}_GroundTruth",
                "_segmentation",
                "skin lesion",
            )
            for phase in ISIC_PHASES
        ),
    ),
    "pairs": Layout(UNKNOWN_MODALITY, None, UNKNOWN_LICENSE, ()),
}

ABOUT = SourceAbout(
    name="mask_folder",
    title="Images with mask files (Kvasir-SEG, BUSI, ISIC 2018, pairs of folders)",
    license=GENERIC_LICENSE,
    access=f"{GENERIC_ACCESS}; Kvasir-SEG: https://datasets.simula.no/kvasir-seg/, BUSI: "
    "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, ISIC 2018: https://challenge.isic-archive.com/data/#2018",
    layout="by the option layout: kvasir (Kvasir-SEG) images/NAME.jpg and masks/NAME.jpg; busi (BUSI) benign/, "
    "malignant/ and normal/ with 'benign (1).png' beside 'benign (1)_mask.png', 'benign (1)_mask_1.png'; isic (ISIC "
    "2018 task 1) ISIC2018_Task1-2_Training_Input/NAME.jpg and ISIC2018_Task1_Training_GroundTruth/"
    "NAME_segmentation.png; pairs: images/NAME and masks/NAME with any image suffix",
    layout_url="https://github.com/constantinpape/torch-em/blob/387a3e9701fe7e2ce2af3a3bd9216e2384d7f97a/"
    "torch_em/data/datasets/medical/busi.py",
    options={
        "layout": f"{', '.join(LAYOUTS)}; must be given",
        "components": "true: every connected part of a mask is a region (default false: one region per mask file)",
        "min_area": f"with components=true, the pixels that a part must have (default {MIN_PART_AREA})",
        "finding": "layout pairs: what the masks show, e.g. lung nodule; must be given",
        "images": "layout pairs: the folder of the images within the root (default images)",
        "masks": "layout pairs: the folder of the masks, which may be the same (default masks)",
        "mask_suffix": "layout pairs: what names of masks have behind those of images, e.g. _mask (default nothing)",
    }
    | GENERIC_OPTIONS
    | {
        "modality": "what the images are, as captions say it (default: that of the layout)",
        "anatomy": "the part of the body that all images show (default: that of the layout)",
        "license": f"licence of images and annotations (default: {LAYOUTS['kvasir'].license} for kvasir, else unknown)",
    },
)


class MaskFolder(GenericFolder):
    """Records of the images that a layout pairs with masks.

    Args:
        root, index_path: as in IndexedSource.
        layout, components, min_area: see `ABOUT.options`.
        options: those of the layout pairs and of GenericFolder.
    """

    about = ABOUT

    def __init__(
        self,
        root: str | Path,
        *,
        index_path: Path | None = None,
        layout: str | None = None,
        components: str = "false",
        min_area: str | None = None,
        **options: str,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(
                f"mask_folder: option layout={layout}; it must be one of {', '.join(LAYOUTS)}. Choose "
                "that of your folder."
            )
        if components not in ("true", "false"):
            raise ValueError(f"mask_folder: option components={components}; it must be true or false. Correct it.")
        self._layout, self._is_split_up = layout, components == "true"
        self._min_area = _parse_min_area(min_area, self._is_split_up)
        told = {key: options.pop(key) for key in ("finding", "images", "masks", "mask_suffix") if key in options}
        self._pairings = _pairings_of(layout, told)
        known = LAYOUTS[layout]
        defaults = {"modality": known.modality, "anatomy": known.anatomy, "license": known.license}
        super().__init__(root, index_path=index_path, **(defaults | options))

    def check_layout(self) -> None:
        """Nothing; keeps the pairings whose folders are there; raises ValueError for half a pair, or where none is."""
        kept = []
        for pairing in self._pairings:
            images, masks = self.root / pairing.images, self.root / pairing.masks
            if images.is_dir() != masks.is_dir():
                missing = pairing.masks if images.is_dir() else pairing.images
                raise ValueError(
                    f"{self.root} lacks the folder {missing}; images and masks come together. Fetch it, or move its "
                    "counterpart away."
                )
            if images.is_dir():
                kept.append(pairing)
        if not kept:
            raise ValueError(
                f"{self.root} holds none of the folders {', '.join(pairing.images for pairing in self._pairings)}; the "
                f"layout {self._layout} has them. Check the path and the layout."
            )
        self._pairings = tuple(kept)
        boxes_path = self.root / KVASIR_BOXES
        self._boxes_path = boxes_path if self._layout == "kvasir" and boxes_path.is_file() else None

    def annotation_files(self) -> Iterator[Path]:
        """The mask files and, for kvasir, the file of boxes."""
        for pairing in self._pairings:
            for path in list_images(self.root / pairing.masks):
                if _image_stem(path, pairing) is not None:
                    yield path
        if self._boxes_path is not None:
            yield self._boxes_path

    def reading(self) -> tuple[str, ...]:
        """The layout, what its masks show, and how they are split up."""
        findings = (pairing.finding or "" for pairing in self._pairings)
        return (self._layout, str(self._is_split_up), str(self._min_area), *findings)

    def rows(self) -> Iterator[Row | BadRow]:
        """One row per image, per mask and per entry of boxes, under the path of the image without suffix."""
        for pairing in self._pairings:
            for path in list_images(self.root / pairing.images):
                if pairing.images != pairing.masks or _image_stem(path, pairing) is None:
                    name = path.relative_to(self.root)
                    yield Row(name.with_suffix("").as_posix(), {"image": name.as_posix(), "folder": pairing.images})
            for path in list_images(self.root / pairing.masks):
                stem = _image_stem(path, pairing)
                if stem is not None:
                    key = PurePosixPath(pairing.images, path.relative_to(self.root / pairing.masks)).with_name(stem)
                    yield Row(key.as_posix(), {"mask": path.relative_to(self.root).as_posix()})
                elif pairing.images != pairing.masks:
                    reason = f"does not end in {pairing.mask_suffix} as masks do; rename it or move it away."
                    yield BadRow(path.relative_to(self.root).as_posix(), reason)
        if self._boxes_path is not None:
            for name, entry in _kvasir_entries(self._boxes_path):
                yield Row(f"{self._pairings[0].images}/{name}", {"boxes": entry})

    def split_of(self, item: Item) -> str | None:
        """The split that a word of the image's folders names."""
        return split_of_words(PurePosixPath(item.key).parent.as_posix())

    def record(self, item: Item) -> StudyRecord:
        """The record of an image with the regions of its masks; one of the folder normal is a normal image."""
        image_name = one_of(item, "image", "has no image of this name; every mask needs its image. Restore it.")
        folder = one_of(item, "folder", "has no image.")
        pairing = next(pairing for pairing in self._pairings if pairing.images == folder)
        image = open_image_file(path_inside(self.root, image_name))
        size = (image.width, image.height)
        names = [row["mask"] for row in item.rows if "mask" in row]
        if not names:
            raise ValueError(f"{item.key} has no mask in {pairing.masks}; every image has one. Restore it.")
        regions = [  # made one by one: a mask of the whole image each, which run lengths shrink
            _region(part, pairing.finding or "")
            for name in names
            for part in self._parts(read_mask(path_inside(self.root, name), size), item, size)
            if part.any()
        ]
        if pairing.finding is None and regions:
            raise ValueError(
                f"{item.key} is in {pairing.images} and its mask is not empty; one is wrong. Drop the image."
            )
        if pairing.finding is not None and not regions and not pairing.may_be_empty:
            raise ValueError(
                f"{item.key}: {', '.join(names)} has no pixel set; every image of {pairing.images} shows a "
                f"{pairing.finding}. Fetch the mask again or drop the image."
            )
        is_normal = pairing.finding is None
        return self.study(
            item, image, modality=self.modality, anatomy=self.anatomy, regions=regions, is_normal=is_normal
        )

    def _parts(self, mask: np.ndarray, item: Item, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The masks of the regions of one mask file: its parts, what lies in the boxes of kvasir, or the whole."""
        if self._is_split_up:
            yield from connected_parts(mask, self._min_area)
        elif self._boxes_path is not None:
            missing = f"has no entry in {KVASIR_BOXES}; every image has one. Add it, or move that file away."
            yield from _parts_in_boxes(mask, one_of(item, "boxes", missing), f"{KVASIR_BOXES}: {item.key}", size)
        else:
            yield mask


def _region(mask: np.ndarray, finding: str) -> RegionRecord:
    """The region of a mask with at least one pixel."""
    box = tight_box(mask)
    assert box is not None, "empty masks give no region"
    return RegionRecord(box, finding, mask_rle=MaskRle.from_array(mask))


def _image_stem(path: Path, pairing: Pairing) -> str | None:
    """The stem of the image that a mask file belongs to; None where its name is not that of a mask."""
    if not pairing.mask_suffix:
        return path.stem
    found = re.fullmatch(rf"(.+){re.escape(pairing.mask_suffix)}(?:_\d+)?", path.stem)
    return found.group(1) if found else None


def _pairings_of(layout: str, told: dict[str, str]) -> tuple[Pairing, ...]:
    """The pairings of a layout; those of pairs from the options `told`, which other layouts refuse."""
    if layout != "pairs":
        if told:
            raise ValueError(
                f"mask_folder: the options {', '.join(told)} are for layout=pairs; {layout} has its own. "
                "Leave them out."
            )
        return LAYOUTS[layout].pairings
    images, masks = (PurePosixPath(told.get(name, name)).as_posix() for name in ("images", "masks"))
    suffix = told.get("mask_suffix", "")
    if not told.get("finding", "").strip():
        raise ValueError("mask_folder: layout=pairs needs the option finding, what the masks show. Add it.")
    folders = (PurePosixPath(images), PurePosixPath(masks))
    is_outside = any(folder.is_absolute() or ".." in folder.parts for folder in folders)
    is_nested = folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0])
    if is_outside or (is_nested and not (folders[0] == folders[1] and suffix)):
        raise ValueError(
            f"mask_folder: images={images} and masks={masks} must be folders side by side within the root, or one "
            "folder with a mask_suffix. Correct the options."
        )
    return (Pairing(images, masks, suffix, finding_of_label(told["finding"]), may_be_empty=True),)


def _parse_min_area(text: str | None, is_split_up: bool) -> int:
    """The least pixels of a part; ValueError for no whole number from 1, or where masks are not split up."""
    if text is None:
        return MIN_PART_AREA
    if not is_split_up or not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"mask_folder: option min_area={text}; it is a whole number of pixels from 1 and needs components=true. "
            "Correct it or leave it out."
        )
    return int(text)


def _kvasir_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and entry of every image in the file of boxes; ValueError where it is no object."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object; it maps image names to their boxes. Fetch it again.")
    yield from content.items()


def _parts_in_boxes(mask: np.ndarray, entry: Any, where: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The pixels of `mask` within each box of a kvasir entry {"height", "width", "bbox": [{"xmin", ...}]}.

    A box only parts the polyps of a mask; the region's own box is tight around the pixels. So it does not matter
    whether xmax is meant as the last pixel or as the edge behind it: it is taken as inside.
    """
    boxes = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(boxes, list) or not boxes or not all(isinstance(box, dict) for box in boxes):
        raise ValueError(f"{where} is {str(entry)[:80]}; it must have a list bbox of at least one box. Correct it.")
    if (entry.get("width"), entry.get("height")) != size:
        raise ValueError(
            f"{where} has size {entry.get('width')}x{entry.get('height')} and its image {size[0]}x{size[1]}; they must "
            "agree, or the boxes are off. Fetch the image again."
        )
    for box in boxes:
        x0, y0, x1, y1 = (int(parse_number(str(box.get(edge)), f"{where}: {edge}")) for edge in KVASIR_EDGES)
        part = np.zeros_like(mask)
        inside = (slice(max(y0, 0), max(y1 + 1, 0)), slice(max(x0, 0), max(x1 + 1, 0)))
        part[inside] = mask[inside]
        if not part.any():
            raise ValueError(
                f"{where} has the box {box}, and the mask has no pixel in it; they must agree. Drop the image."
            )
        yield part


open_sources = MaskFolder.open
