"""What the page shows of images: cards of a small picture with boxes drawn over it and lines of text beneath."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import matplotlib
import numpy as np
from PIL import Image

from regionmed_clip.eval.overlays import COOL_SHARE, NUM_BEST, nearest_images
from regionmed_clip.eval.report_errors import Error
from regionmed_clip.eval.selection import Shown, best_region_texts, shown_regions
from regionmed_clip.eval.style import HEAT_MAP
from regionmed_clip.eval.tasks.embedded_split import EmbeddedSplit

MAX_SIDE = 288  # pixels of a small picture's longer side
JPEG_QUALITY = 88
NUM_TEXTS = 5  # captions shown for an image
NUM_SIMILAR = 5  # regions shown for a region


@dataclass(frozen=True)
class Picture:
    """A small picture as a data URI, its size in pixels, and by how much it is smaller than the original."""

    uri: str
    width: int
    height: int
    scale: float

    @property
    def key(self) -> str:
        """An id that equal pictures share, so that the page holds each once."""
        return "p" + hashlib.sha256(self.uri.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Box:
    """A box in pixels of the small picture; kind "truth", "hit" or "miss"; a label of a few letters or none."""

    x: float
    y: float
    width: float
    height: float
    kind: str = "truth"
    label: str = ""

    def label_x(self, picture: Picture) -> float:
        """Where the label begins, held inside the picture."""
        return round(max(min(self.x + 3, picture.width - 9 * len(self.label)), 1.0), 1)

    @property
    def label_y(self) -> float:
        """The label's baseline: inside the box under its upper edge."""
        return round(self.y + 13, 1)


@dataclass(frozen=True)
class Line:
    """A line beneath a picture; kind "truth", "hit", "miss" or "plain"; a score, and a number that names a box."""

    text: str
    kind: str = "plain"
    score: float | None = None
    number: str = ""


@dataclass(frozen=True)
class Group:
    """A heading and the model's answers to it, best first."""

    heading: Line
    answers: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """A picture with boxes, its title, and groups of lines; `mark` is "hit", "miss" or "" for the frame."""

    title: str
    picture: Picture | None = None
    boxes: list[Box] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    mark: str = ""


@dataclass(frozen=True)
class Sheet:
    """Rows of cards under one title; a row of one card stands in a grid, longer rows are strips, their query first."""

    name: str
    title: str
    note: str
    rows: list[list[Card]]


@dataclass(frozen=True)
class Heat:
    """Where a model sees a text: strength (H, W) in [0, 1] and the cosines at its ends; boxes in original pixels.

    `truths` are annotated boxes of the text; `found` are the model's own with their scores.
    """

    text: str
    strength: np.ndarray
    low: float
    high: float
    truths: list[Sequence[float]] = field(default_factory=list)
    found: list[tuple[Sequence[float], float]] = field(default_factory=list)


def small_picture(image: Image.Image) -> Picture:
    """The image as a JPEG of at most MAX_SIDE pixels a side, in a data URI."""
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if scale < 1 else image.convert("RGB")
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(uri, *small.size, scale)


def heat_picture(image: Image.Image, strength: np.ndarray) -> Picture:
    """The image dimmed and grey under the part of `strength` (H, W) in [0, 1] above COOL_SHARE; see `draw_heat`."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.7  # (H, W, 1)
    heat = matplotlib.colormaps[HEAT_MAP](strength)[..., :3] * 255
    alpha = 0.8 * np.clip((strength - COOL_SHARE) / (1 - COOL_SHARE), 0, 1)[..., None]
    return small_picture(Image.fromarray((grey * (1 - alpha) + heat * alpha).round().astype(np.uint8)))


def place_box(picture: Picture, box: Sequence[float], kind: str = "truth", label: str = "") -> Box:
    """A box (x0, y0, x1, y1) in pixels of the original over its small picture, cut at the picture's rim."""
    x0, x1 = (min(max(float(x) * picture.scale, 0.0), picture.width) for x in (box[0], box[2]))
    y0, y1 = (min(max(float(y) * picture.scale, 0.0), picture.height) for y in (box[1], box[3]))
    return Box(round(x0, 1), round(y0, 1), round(x1 - x0, 1), round(y1 - y0, 1), kind, label)


def title_of(shown: Shown) -> str:
    """Modality and name of the image."""
    return f"{shown.example['modality']} · {shown.example['image_id']}"


def region_sheet(embedded: EmbeddedSplit, shown: Sequence[Shown]) -> Sheet:
    """Every image with its numbered boxes and each box's best texts among all region texts of the split."""
    rows = []
    for one in shown:
        picture, regions = small_picture(one.image), shown_regions(embedded, one.row)
        boxes = [
            place_box(picture, embedded.region_boxes_pixel_xyxy[region], label=str(number))
            for number, region in enumerate(regions, start=1)
        ]
        groups = [_region_group(embedded, region, str(number)) for number, region in enumerate(regions, start=1)]
        if groups:
            rows.append([Card(title_of(one), picture, boxes, groups)])
    note = f"The best of all {len(embedded.region_texts):,} region texts of the split for given boxes, with cosines."
    return Sheet("regions", "Regions and their best texts", note, rows)


def _region_group(embedded: EmbeddedSplit, region: int, number: str) -> Group:
    """The region's own text and its NUM_BEST nearest ones."""
    answers = []
    for text, score in best_region_texts(embedded, region, NUM_BEST):
        is_hit = embedded.region_text_keys[text] == embedded.region_keys[region]
        answers.append(Line(embedded.region_texts[text], "hit" if is_hit else "miss", score))
    return Group(Line(embedded.region_texts[embedded.region_text[region]], "truth", number=number), answers)


def heat_sheet(
    name: str,
    title: str,
    note: str,
    shown: Sequence[Shown],
    heats: Sequence[Sequence[Heat]],
    *,
    has_found: bool = False,
) -> Sheet:
    """A strip for each image: itself with its boxes, then the heat of each text; `has_found`: boxes were looked for."""
    rows = []
    for one, of_image in zip(shown, heats, strict=True):
        picture = small_picture(one.image)
        cards = [Card(title_of(one), picture, [place_box(picture, region["box"]) for region in one.regions])]
        for heat in of_image:
            is_annotated = len(heat.truths) > 0
            lines = [] if is_annotated else [Line("not annotated in this image")]
            boxes = [place_box(picture, box) for box in heat.truths]
            boxes += [place_box(picture, box, "hit", f"{score:.2f}") for box, score in heat.found]
            if has_found:
                count = f"{len(heat.found) or 'no'} box{'es' * (len(heat.found) != 1)} found"
                lines.append(Line(count, "hit" if heat.found else "plain"))
            lines.append(Line(f"cosine {heat.low:.2f} to {heat.high:.2f} (bright)"))
            heading = Line(heat.text, "truth" if is_annotated else "plain")
            cards.append(Card("", heat_picture(one.image, heat.strength), boxes, [Group(heading, lines)]))
        if of_image:
            rows.append(cards)
    return Sheet(name, title, note, rows)


def text_to_image_sheet(embedded: EmbeddedSplit, texts: Sequence[int], shown: Mapping[int, Shown]) -> Sheet:
    """A strip for each caption: its words, then its nearest images of the split."""
    rows = []
    for text in texts:
        scores = embedded.image_embeds @ embedded.caption_embeds[text]
        cards = [Card("", groups=[Group(Line(embedded.captions[text], "truth"))])]
        for image in nearest_images(embedded, text):
            mark = "hit" if embedded.image_keys[image] == embedded.caption_keys[text] else "miss"
            line = Line("same meaning" if mark == "hit" else "other meaning", mark, float(scores[image]))
            picture = small_picture(shown[image].image)
            cards.append(Card(title_of(shown[image]), picture, groups=[Group(line)], mark=mark))
        rows.append(cards)
    note = f"The nearest of all {embedded.num_images:,} images, with cosines."
    return Sheet("text_to_image", "Text to image", note, rows)


def image_to_text_sheet(embedded: EmbeddedSplit, shown: Sequence[Shown]) -> Sheet:
    """Every image with its own caption and its nearest captions of the split."""
    rows = [[_caption_card(embedded, one, NUM_TEXTS)] for one in shown]
    note = f"The nearest of all {len(embedded.captions):,} captions, with cosines."
    return Sheet("image_to_text", "Image to text", note, rows)


def _caption_card(embedded: EmbeddedSplit, one: Shown, count: int) -> Card:
    """The image, its own caption and its `count` nearest ones."""
    scores = embedded.caption_embeds @ embedded.image_embeds[one.row]
    answers = []
    for text in np.argsort(-scores, kind="stable")[:count].tolist():
        is_hit = embedded.caption_keys[text] == embedded.image_keys[one.row]
        answers.append(Line(embedded.captions[text], "hit" if is_hit else "miss", float(scores[text])))
    heading = Line(embedded.captions[embedded.image_caption[one.row]], "truth")
    return Card(title_of(one), small_picture(one.image), groups=[Group(heading, answers)])


def similar_regions(embedded: EmbeddedSplit, region: int) -> list[int]:
    """Rows of the NUM_SIMILAR regions nearest to a region, in as many other images, best first."""
    scores = embedded.region_embeds @ embedded.region_embeds[region]
    is_other = embedded.image_clusters[embedded.region_image] != embedded.image_clusters[embedded.region_image[region]]
    best: dict[int, int] = {}
    for row in np.argsort(-scores, kind="stable").tolist():
        if is_other[row]:
            best.setdefault(int(embedded.region_image[row]), row)
        if len(best) == NUM_SIMILAR:
            break
    return list(best.values())


def similar_sheet(embedded: EmbeddedSplit, regions: Sequence[int], shown: Mapping[int, Shown]) -> Sheet:
    """A strip for each region: itself, then the nearest regions of other patients' images."""
    rows = []
    for region in regions:
        scores = embedded.region_embeds @ embedded.region_embeds[region]
        found = similar_regions(embedded, region)
        cards = [_similar_card(embedded, region, shown, Line(_text_of(embedded, region), "truth"), "truth")]
        for row in found:
            mark = "hit" if embedded.region_findings[row] == embedded.region_findings[region] else "miss"
            line = Line(_text_of(embedded, row), mark, float(scores[row]))
            cards.append(replace(_similar_card(embedded, row, shown, line, mark), mark=mark))
        if found:
            rows.append(cards)
    note = "A box, then the boxes of other patients' images that lie nearest to it; green: the same finding."
    return Sheet("similar", "Similar cases by region", note, rows)


def _similar_card(embedded: EmbeddedSplit, region: int, shown: Mapping[int, Shown], line: Line, kind: str) -> Card:
    """One region in its image."""
    one = shown[int(embedded.region_image[region])]
    picture = small_picture(one.image)
    box = place_box(picture, embedded.region_boxes_pixel_xyxy[region], kind)
    return Card(title_of(one), picture, [box], [Group(line)])


def _text_of(embedded: EmbeddedSplit, region: int) -> str:
    """The region's own text."""
    return embedded.region_texts[embedded.region_text[region]]


def worst_region_sheet(embedded: EmbeddedSplit, errors: Sequence[Error], shown: Mapping[int, Shown]) -> Sheet:
    """The regions whose chosen text leads their own by most."""
    rows = []
    for error in errors:
        one = shown[int(embedded.region_image[error.query])]
        picture = small_picture(one.image)
        box = place_box(picture, embedded.region_boxes_pixel_xyxy[error.query], "miss")
        chosen = Line(embedded.region_texts[error.chosen], "miss")
        group = Group(Line(_text_of(embedded, error.query), "truth"), [chosen, _rank_line(error)])
        rows.append([Card(title_of(one), picture, [box], [group], "miss")])
    note = "Widest margin between the chosen text and the true one; one an image and one a true text."
    return Sheet("worst_regions", "Worst errors, region → text", note, rows)


def worst_image_sheet(embedded: EmbeddedSplit, errors: Sequence[Error], shown: Mapping[int, Shown]) -> Sheet:
    """The images whose chosen caption leads their own by most."""
    rows = []
    for error in errors:
        one = shown[error.query]
        own = Line(embedded.captions[embedded.image_caption[error.query]], "truth")
        group = Group(own, [Line(embedded.captions[error.chosen], "miss"), _rank_line(error)])
        rows.append([Card(title_of(one), small_picture(one.image), groups=[group], mark="miss")])
    note = "Widest margin between the chosen caption and the true one, among all captions of the split."
    return Sheet("worst_images", "Worst errors, image → text", note, rows)


def _rank_line(error: Error) -> Line:
    """How wrong it is, in words."""
    return Line(f"ahead by a cosine of {error.margin:.3f}; the true text ranks {error.rank:,}")
