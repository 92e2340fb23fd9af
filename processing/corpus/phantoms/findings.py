"""What a phantom shows: the meanings that may be drawn, the plan of an image, and the lesions once drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import Array, Dice, Point, tight_box

MIN_BOX_SIDE = 6  # pixels; a smaller trace of a lesion is not annotated and must not be drawn
MAX_SHARE_COVERED = 0.12  # of the smaller of two boxes of one image
_NUM_TRIES = 8


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a region text may state of one lesion; laterality is the patient's side, None is left unsaid."""

    finding: str
    anatomy: str | None = None
    laterality: str | None = None
    place: str | None = None
    size: str | None = None
    severity: str | None = None


@dataclass(frozen=True, slots=True)
class Lesion:
    """A drawn lesion: its meaning and its mask (H, W) bool, whose tight box is the region's box."""

    meaning: Meaning
    mask: Array


@dataclass(frozen=True, slots=True)
class Drawing:
    """One finished phantom: pixels (H, W) or (H, W, 3) uint8 and the lesions in it."""

    pixels: Array
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, slots=True)
class Modality:
    """A kind of phantom: its names, all meanings it can draw, and `draw(dice, plan)`."""

    name: str
    view: str
    anatomy: str | None
    meanings: tuple[Meaning, ...]
    draw: Callable[[Dice, Sequence[Meaning]], Drawing]

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings of this modality, each once, in order."""
        return tuple(dict.fromkeys(meaning.finding for meaning in self.meanings))


Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Layout:
    """The boxes taken so far in one image of `shape` (H, W); keeps lesions apart and within the image."""

    shape: tuple[int, int]
    taken: list[Box] = field(default_factory=list)

    def is_free(self, box: Box) -> bool:
        """True where the box (x0, y0, x1, y1) hardly overlaps a taken one."""
        return all(_share_covered(box, other) <= MAX_SHARE_COVERED for other in self.taken)

    def place(self, dice: Dice, pick: Callable[[Dice], Point], reach_y: float, reach_x: float) -> Point | None:
        """A centre (y, x) drawn by `pick`, its box of half-sides `reach_y`, `reach_x` now taken; None without room.

        A centre too near to the edge is moved until the box lies within the image.
        """
        height, width = self.shape
        for _ in range(_NUM_TRIES):
            y, x = pick(dice)
            y = min(max(y, reach_y + 1), height - reach_y - 1)
            x = min(max(x, reach_x + 1), width - reach_x - 1)
            box = (x - reach_x, y - reach_y, x + reach_x, y + reach_y)
            if self.is_free(box):
                self.taken.append(box)
                return y, x
        return None


def combine(finding: str, anatomy: str | None = None, **choices: Sequence[str]) -> tuple[Meaning, ...]:
    """All meanings of a finding over the product of its `choices` (laterality, place, size, severity)."""
    rows = product(*choices.values())
    return tuple(Meaning(finding, anatomy, **dict(zip(choices, row, strict=True))) for row in rows)


def plan_findings(dice: Dice, meanings: Sequence[Meaning], num_findings: int) -> list[Meaning]:
    """`num_findings` distinct meanings: first the finding, those with more meanings more often, then one of them."""
    by_finding: dict[str, list[Meaning]] = {}
    for meaning in meanings:
        by_finding.setdefault(meaning.finding, []).append(meaning)
    groups = list(by_finding.values())
    weights = [len(group) ** 0.75 for group in groups]
    plan: list[Meaning] = []
    while len(plan) < num_findings:
        group = groups[pick_index(dice, weights)]
        meaning = group[dice.below(len(group))]
        if meaning not in plan:
            plan.append(meaning)
    return plan


def pick_index(dice: Dice, weights: Sequence[float]) -> int:
    """Index drawn in proportion to the weights."""
    ticket = dice.uniform(0.0, sum(weights))
    for index, weight in enumerate(weights):
        ticket -= weight
        if ticket < 0.0:
            return index
    return len(weights) - 1  # rounding alone leads here


def keep_lesion(meaning: Meaning, mask: Array) -> Lesion | None:
    """The lesion, or None where its mask (H, W) bool is too small to be annotated."""
    box = tight_box(mask)
    if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_BOX_SIDE:
        return None
    return Lesion(meaning, mask)


def full_mask(shape: tuple[int, int], rows: slice, cols: slice, part: Array) -> Array:
    """Mask (H, W) bool that equals `part` within the given rows and columns and is False elsewhere."""
    mask = np.zeros(shape, dtype=bool)
    mask[rows, cols] = part
    return mask


def _share_covered(a: Box, b: Box) -> float:
    """Area of the overlap of two boxes over the area of the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
