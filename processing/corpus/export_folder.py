"""Folder: OUT/SOURCE/{annotations.jsonl, images/, masks/, SOURCE.md}, which `jsonl:OUT` reads back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np
from PIL import Image

from regionmed_clip.processing.corpus.audit_rows import mask_of
from regionmed_clip.processing.corpus.export_files import source_folder, write_image

MAX_8_BIT = 255
_ATTRIBUTES = ("anatomy", "laterality", "place", "size", "severity", "certainty", "description", "text_origin")
_META = ("image_id", "source_revision", "license", "anatomy", "view", "findings", "impression", "window", "text_origin")


@dataclass
class _SourceFolder:
    """The open file of one source, and what its SOURCE.md will say."""

    path: Path
    file: TextIO
    licenses: set[str] = field(default_factory=set)
    revisions: set[str] = field(default_factory=set)


@dataclass
class FolderWriter:
    """Writes jsonl source folders, one for each source; docs/data_contract.md describes a row.

    A row holds boxes, labels, its source's own caption, questions, patient and split. What it has no field for goes
    into its `meta`, from which nothing is read back: attributes, findings and impression, the window of a 16-bit image,
    regions that deny a finding, and masks that overlap or belong to some regions only.
    """

    folder: Path
    num_denied: int = 0
    num_meta_masks: int = 0
    num_windows: int = 0
    _sources: dict[str, _SourceFolder] = field(default_factory=dict)

    def add(self, split: str, row: dict[str, Any]) -> None:
        """Nothing; writes the image, the mask file and the row."""
        source = self._sources.get(row["source"]) or self._open(row["source"])
        source.licenses.add(row["license"])
        source.revisions.add(row["source_revision"])
        name = write_image(source.path / "images", row)
        regions = [region for region in row["regions"] if not region["is_negated"]]
        denied = [_without_mask(region) for region in row["regions"] if region["is_negated"]]
        self.num_denied += len(denied)
        self.num_windows += row["window"] is not None
        meta = {key: row[key] for key in _META}
        meta["regions"] = [{key: region[key] for key in _ATTRIBUTES} for region in regions]
        if denied:
            meta["denied_regions"] = denied
        line = {
            "image": f"images/{name}",
            "width": row["width"],
            "height": row["height"],
            "modality": row["modality"],
            "boxes_xyxy": [[_plain(value) for value in region["box"]] for region in regions],
            "labels": [region["finding"] for region in regions],
            "caption": row["caption"] if row["text_origin"] == "source" else None,
            "qa": [{"q": pair["question"], "a": pair["answer"], "answer_type": pair["kind"]} for pair in row["qa"]],
            "patient_id": row["patient_id"],
            "split": split,
        }
        if any(region["mask"] for region in regions):
            labels = _label_image(regions, (row["height"], row["width"]))
            if labels is None:
                self.num_meta_masks += 1
                meta["masks"] = [region["mask"] for region in regions]
            else:
                mask_name = str(PurePosixPath("masks") / PurePosixPath(name).with_suffix(".png"))
                line["mask"] = self._write_mask(source.path, mask_name, labels)
        source.file.write(json.dumps({**line, "meta": meta}, ensure_ascii=False) + "\n")

    def finish(self) -> list[str]:
        """Lines on what the rows could not hold, after writing every SOURCE.md."""
        for name, source in self._sources.items():
            several = "several, see meta.license of each row"
            license_name = next(iter(source.licenses)) if len(source.licenses) == 1 else several
            text = (
                f"# {name}\n- Licence: {license_name}\n- Revision: {', '.join(sorted(source.revisions))}\n"
                "- Exported from a built corpus by `regionmed-corpus export`.\n"
            )
            (source.path / "SOURCE.md").write_text(text, encoding="utf-8")
        held_by_meta = (
            (self.num_denied, "regions that deny a finding"),
            (self.num_meta_masks, "images whose masks overlap or are incomplete"),
            (self.num_windows, "windows of images with more than 8 bits"),
        )
        return [f"Only in meta, not read back: {number:,} {what}." for number, what in held_by_meta if number]

    def close(self) -> None:
        """Nothing; closes the files of all sources."""
        for source in self._sources.values():
            source.file.close()

    def _open(self, name: str) -> _SourceFolder:
        """The folder of a source, made and opened."""
        path = self.folder / source_folder(name)
        path.mkdir()
        self._sources[name] = _SourceFolder(path, (path / "annotations.jsonl").open("w", encoding="utf-8"))
        return self._sources[name]

    @staticmethod
    def _write_mask(folder: Path, name: str, labels: np.ndarray) -> str:
        """The path within the folder of the mask file written; two images never share one, since their names differ."""
        path = folder / name
        while path.exists():  # a.jpg and a.png
            path = path.with_name(f"{path.stem}_.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        return path.relative_to(folder).as_posix()


def _label_image(regions: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) uint8 or uint16 with value k on region k, from 1; None where a mask is missing, empty or overlaps."""
    dtype = np.uint8 if len(regions) <= MAX_8_BIT else np.uint16
    labels = np.zeros(size[0] * size[1], dtype=dtype)  # down the columns, like the run lengths
    for number, region in enumerate(regions, start=1):
        mask = mask_of(region)
        if mask is None:
            return None
        ends = np.cumsum(mask.counts, dtype=np.int64)
        runs = [(start, stop) for start, stop in zip(ends[:-1:2].tolist(), ends[1::2].tolist()) if stop > start]
        if not runs or any(labels[start:stop].any() for start, stop in runs):
            return None
        for start, stop in runs:
            labels[start:stop] = number
    return np.ascontiguousarray(labels.reshape(size, order="F"))


def _plain(value: float) -> int | float:
    """A whole number of pixels without its ".0"."""
    return int(value) if float(value).is_integer() else value


def _without_mask(region: dict[str, Any]) -> dict[str, Any]:
    """A region without mask and key."""
    return {key: value for key, value in region.items() if key not in ("mask", "key")}
