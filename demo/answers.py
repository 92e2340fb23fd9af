"""What each action of the page answers: a visitor's picture, boxes and texts -> values of the page's components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import pages
from PIL import Image
from region_model import RegionIndex, RegionModel
from settings import Example
from uploads import MAX_BOXES, OF_MODEL, WINDOWS, Box, check_boxes, check_text, check_texts, open_picture

MIN_IOU_OF_SAME = 0.5  # a box is that of an example's region from here on
NUM_CASES = 8


@dataclass(frozen=True)
class Visit:
    """What a visitor has open: the picture, the number of the example, and the file that was uploaded last."""

    picture: Image.Image | None = None
    path: Path | None = None
    example: int | None = None


def readable(num_outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: a refused input changes nothing on the page but the last of its outputs, the note."""

    def decorate(action: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(action)
        def answer(*inputs: Any) -> Any:
            try:
                return action(*inputs)
            except (ValueError, ImportError, OSError) as error:
                return (*[gr.skip()] * (num_outputs - 1), pages.note(str(error), is_error=True))

        return answer

    return decorate


class Answers:
    """The actions of the page, for one model, its index (None: no search) and the examples."""

    def __init__(self, model: RegionModel, index: RegionIndex | None, examples: Sequence[Example]):
        self.model, self.index, self.examples = model, index, examples
        self.thumbnails = [pages.data_uri(_thumbnail(example.file)) for example in examples]

    @property
    def windows(self) -> tuple[str, ...]:
        """The windows to choose from, in front the one that holds at first: the model's own where it has one."""
        return WINDOWS if self.model.window is None else (OF_MODEL, *WINDOWS)

    def strip(self, chosen: int | None) -> dict[str, Any]:
        """Value of the strip of examples."""
        titles = [example.title for example in self.examples]
        items = [{"picture": picture, "title": title} for picture, title in zip(self.thumbnails, titles)]
        return {"items": items, "chosen": chosen}

    def open_example(self, number: int) -> tuple[Any, ...]:
        """visit, canvas, strip, texts, cards, text to find, text to search, heat map, cases, note."""
        example = self.examples[int(number)]
        with Image.open(example.file) as file:
            visit = Visit(file.convert("RGB"), example=int(number))
        boxes = [tuple(region["box"]) for region in example.regions]
        cards, labels = self._read(visit, boxes, example.texts, 0)
        canvas = self._canvas(visit, boxes, labels, f"Example: {example.title}")
        text = example.regions[0]["description"] if example.regions else example.texts[0]
        return visit, canvas, self.strip(int(number)), "\n".join(example.texts), cards, text, text, "", "", ""

    def open_upload(
        self, visit: Visit, path: str | None, window: str, number: float | None, raw_texts: str
    ) -> tuple[Any, ...]:
        """visit, canvas, strip, cards, heat map, cases, note; a file that needs other options is kept for `reopen`."""
        if path is None:
            raise ValueError("No file arrived; choose one again.")
        try:
            picture, message = open_picture(Path(path), self.model.read_image, window, number, self.model.window)
        except (ValueError, ImportError) as error:
            waiting = replace(visit, path=Path(path))
            return waiting, *[gr.skip()] * 5, pages.note(str(error), is_error=True)
        visit = Visit(picture, Path(path))
        cards, _ = self._read(visit, [], check_texts(raw_texts), None)
        canvas = self._canvas(visit, [], [], "Your picture")
        return visit, canvas, self.strip(None), cards, "", "", pages.note(f"{message} Draw boxes on it.")

    def reopen(self, visit: Visit, window: str, number: float | None, raw_texts: str) -> tuple[Any, ...]:
        """What `open_upload` gives for the file that is open, with other options; nothing new without a file."""
        if visit.path is None:
            return (*[gr.skip()] * 6, pages.note("These options are for files that you upload."))
        return self.open_upload(visit, str(visit.path), window, number, raw_texts)

    def read(self, payload: Any, visit: Visit, raw_texts: str) -> tuple[Any, ...]:
        """canvas (its answer alone: its value is the visitor's, who may have drawn on since), cards, note."""
        picture = _picture(visit)
        boxes = check_boxes(payload, *picture.size)
        cards, labels = self._read(visit, boxes, check_texts(raw_texts), payload.get("selected"))
        return gr.update(answer={"labels": labels, "revision": payload.get("revision")}), cards, ""

    def suggest(self, visit: Visit, raw_texts: str, threshold: float) -> tuple[Any, ...]:
        """canvas, cards, note; the boxes are the model's own, none where it finds nothing."""
        boxes = self.model.propose(_picture(visit), float(threshold), MAX_BOXES)
        if not boxes:
            said = f"The model suggests no box here: none scores {threshold:.2f} or more. That is an answer too; lower "
            return gr.skip(), gr.skip(), pages.note(f"{said}the least score under Options to see its guesses.")
        cards, labels = self._read(visit, boxes, check_texts(raw_texts), 0)
        canvas = {"boxes": boxes, "selected": 0, "labels": labels, "from_server": True}
        found = "1 box" if len(boxes) == 1 else f"{len(boxes)} boxes"
        return canvas, cards, pages.note(f"The model itself suggests {found}, the best first.")

    def find(self, visit: Visit, raw_text: str) -> tuple[Any, ...]:
        """heat map, note."""
        picture, text = _picture(visit), check_text(raw_text)
        return pages.heat_page(picture, text, *self.model.find(picture, text)), ""

    def search_box(self, payload: Any, visit: Visit) -> tuple[Any, ...]:
        """cases, note; of the chosen box."""
        picture = _picture(visit)
        boxes, selected = check_boxes(payload, *picture.size), payload.get("selected")
        if not isinstance(selected, int) or not 0 <= selected < len(boxes):
            raise ValueError("Choose a box first: click it on the picture, or draw one.")
        return self._cases(self.model.embed_box(picture, boxes[selected]), f"box {selected + 1}")

    def search_text(self, raw_text: str) -> tuple[Any, ...]:
        """cases, note; of a text."""
        text = check_text(raw_text)
        return self._cases(self.model.embed_text(text), f"“{text}”")

    def _cases(self, query: Any, name: str) -> tuple[Any, ...]:
        if self.index is None:
            raise ValueError("This demo came without an index to search; stage the Space to make one.")
        return pages.cases_page(name, self.index.nearest(query, NUM_CASES), len(self.index)), ""

    def _read(self, visit: Visit, boxes: Sequence[Box], texts: Sequence[str], selected: Any) -> tuple[str, list[str]]:
        """The cards, and for each box a short label."""
        reading = self.model.read(_picture(visit), boxes, texts)
        best = reading.regions.argmax(axis=1) if len(boxes) else []
        labels = [f"{_short(texts[i])} {100 * reading.regions[j, i]:.0f} %" for j, i in enumerate(best)]
        drawn = [self._drawn(visit, box, texts[best[j]]) for j, box in enumerate(boxes)]
        return pages.reading(texts, reading.image, reading.regions, drawn, selected), labels

    def _drawn(self, visit: Visit, box: Box, text: str) -> str | None:
        """What was drawn at the box, and whether the text says it; None where nothing is known."""
        if visit.example is None:
            return None
        regions = self.examples[visit.example].regions
        best = max(regions, key=lambda region: _iou(region["box"], box), default=None)
        if best is None or _iou(best["box"], box) < MIN_IOU_OF_SAME:
            return None
        is_right = text in (best["finding"], best["description"])
        return f"{best['description']} {'✓' if is_right else '✗'}"

    def _canvas(self, visit: Visit, boxes: Sequence[Box], labels: Sequence[str], alt: str) -> dict[str, Any]:
        """The whole value of the canvas."""
        picture = _picture(visit)
        size = {"width": picture.width, "height": picture.height}
        chosen = {"boxes": [list(box) for box in boxes], "selected": 0 if boxes else None, "labels": list(labels)}
        return {"picture": pages.data_uri(picture), **size, "alt": alt, **chosen}


def _picture(visit: Visit) -> Image.Image:
    if visit.picture is None:
        raise ValueError("Open a picture first: choose an example, or upload a file.")
    return visit.picture


def _thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
        small.thumbnail((144, 144))
        return small


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (both - wide * high)
