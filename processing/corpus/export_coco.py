"""COCO: OUT/annotations/instances_SPLIT.json and OUT/images/SOURCE/..., boxes as (x, y, width, height)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from regionmed_clip.processing.corpus.export_files import source_folder, write_image

_IMAGE_FIELDS = ("source", "modality", "patient_id", "caption", "text_origin")


@dataclass
class _Split:
    """The open parts of one split's file."""

    images: TextIO
    annotations: TextIO
    num_images: int = 0
    num_annotations: int = 0


@dataclass
class CocoWriter:
    """Writes the COCO form; categories are the findings, by their first occurrence in the order of the rows.

    Masks are uncompressed run lengths ({"size", "counts"}), which pycocotools reads. Regions that deny a finding, and
    texts, questions and negatives, have no place in COCO and are left out.
    """

    folder: Path
    categories: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    num_denied: int = 0
    _splits: dict[str, _Split] = field(default_factory=dict)

    def add(self, split: str, row: dict[str, Any]) -> None:
        """Nothing; writes the image and its regions."""
        part = self._splits.get(split) or self._open(split)
        source = source_folder(row["source"])
        name = f"{source}/{write_image(self.folder / 'images' / source, row)}"
        part.num_images += 1
        image = {
            "id": part.num_images,
            "file_name": name,
            "width": row["width"],
            "height": row["height"],
            "license": self.licenses.setdefault(row["license"], len(self.licenses) + 1),
            "image_id": row["image_id"],
            **{key: row[key] for key in _IMAGE_FIELDS},
        }
        _write_item(part.images, image, part.num_images)
        for region in row["regions"]:
            if region["is_negated"]:
                self.num_denied += 1
                continue
            part.num_annotations += 1
            category = self.categories.setdefault(region["finding"], len(self.categories) + 1)
            annotation = {"id": part.num_annotations, "image_id": part.num_images, "category_id": category}
            _write_item(part.annotations, annotation | _geometry(region), part.num_annotations)

    def finish(self) -> list[str]:
        """Lines on what was left out, after joining the parts of each file."""
        categories = [{"id": number, "name": name, "supercategory": ""} for name, number in self.categories.items()]
        licenses = [{"id": number, "name": name, "url": ""} for name, number in self.licenses.items()]
        for split, part in self._splits.items():
            path = self.folder / "annotations" / f"instances_{split}.json"
            with path.open("w", encoding="utf-8") as file:
                file.write(f'{{"licenses": {json.dumps(licenses)},\n"categories": {json.dumps(categories)}')
                for name, items in (("images", part.images), ("annotations", part.annotations)):
                    items.flush()
                    items.seek(0)
                    file.write(f',\n"{name}": [')
                    file.writelines(items)
                    file.write("\n]")
                    Path(items.name).unlink()
                file.write("}\n")
        return [f"Left out: {self.num_denied:,} regions that deny a finding."] if self.num_denied else []

    def close(self) -> None:
        """Nothing; closes the parts."""
        for part in self._splits.values():
            part.images.close()
            part.annotations.close()

    def _open(self, split: str) -> _Split:
        """The parts of a split's file, opened."""
        folder = self.folder / "annotations"
        folder.mkdir(exist_ok=True)
        files = [(folder / f"{split}.{name}.part").open("w+", encoding="utf-8") for name in ("images", "annotations")]
        self._splits[split] = _Split(*files)
        return self._splits[split]


def _geometry(region: dict[str, Any]) -> dict[str, Any]:
    """Box, area and segmentation of a region."""
    x0, y0, x1, y1 = region["box"]
    mask = region["mask"]
    area = (x1 - x0) * (y1 - y0) if mask is None else sum(mask["counts"][1::2])
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "iscrowd": 0,
        "segmentation": [] if mask is None else {"size": mask["size"], "counts": mask["counts"]},
    }


def _write_item(file: TextIO, item: dict[str, Any], number: int) -> None:
    """Nothing; writes one item of a JSON list, the `number`-th."""
    file.write(("\n" if number == 1 else ",\n") + json.dumps(item, ensure_ascii=False))
