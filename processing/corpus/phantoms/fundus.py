"""Colour fundus photographs with exudates, haemorrhages, cotton wool spots, microaneurysms and drusen.

The optic disc lies nasal to the macula: on image right in a right eye, on image left in a left one. Superior is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Point,
    Window,
    ellipse_distance,
    inside,
    smooth_noise,
    to_pixels,
    white_noise,
    window,
)
from regionmed_clip.processing.corpus.phantoms.findings import (
    Drawing,
    Layout,
    Meaning,
    Modality,
    combine,
    full_mask,
    keep_lesion,
)
from regionmed_clip.processing.corpus.phantoms.retina_anatomy import Colour, Retina, draw_retina, field_of_view

_SHAPES = ((144, 144), (128, 152), (136, 144), (120, 152))
_SIDES = ("right", "left")
_PLACES = {  # ranges of the distance up and nasal from the fovea, in field radii
    "superotemporal quadrant": ((0.34, 0.52), (-0.50, -0.26)),
    "inferotemporal quadrant": ((-0.52, -0.34), (-0.50, -0.26)),
    "superonasal quadrant": ((0.36, 0.52), (0.30, 0.62)),
    "inferonasal quadrant": ((-0.52, -0.36), (0.30, 0.62)),
    "macula": ((-0.06, 0.06), (-0.08, 0.08)),
}
_QUADRANTS = tuple(_PLACES)[:4]

MEANINGS = (
    *combine("hard exudate cluster", "retina", laterality=_SIDES, place=tuple(_PLACES)),
    *combine("retinal haemorrhage", "retina", laterality=_SIDES, place=_QUADRANTS),
    *combine("cotton wool spot", "retina", laterality=_SIDES, place=_QUADRANTS),
    *combine("microaneurysm cluster", "retina", laterality=_SIDES, place=_QUADRANTS),
    *combine("drusen", "retina", laterality=_SIDES, place=tuple(_PLACES)),
)


def draw(dice: Dice, plan: Sequence[Meaning]) -> Drawing:
    """A photograph of one eye that shows the findings of `plan` for which there was room."""
    shape = _SHAPES[dice.below(len(_SHAPES))]
    laterality = plan[0].laterality if plan else _SIDES[dice.below(2)]
    plan = list(dict.fromkeys(replace(meaning, laterality=laterality) for meaning in plan))  # one image shows one eye
    retina = draw_retina(dice, shape, laterality)
    layout = Layout(shape)
    lesions = []
    for meaning in plan:
        mask = _paint(dice, retina, layout, meaning)
        lesion = None if mask is None else keep_lesion(meaning, mask)
        if lesion is not None:
            lesions.append(lesion)
    for colour in retina.colours:
        colour += white_noise(dice, shape) * (0.012 * dice.noise)
    retina.colours *= field_of_view(retina)
    return Drawing(np.ascontiguousarray(np.moveaxis(to_pixels(retina.colours), 0, 2)), tuple(lesions))


def _paint(dice: Dice, retina: Retina, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask (H, W) bool of the lesion that `meaning` names, drawn into the retina; None without room."""
    ups, nasals = _PLACES[meaning.place]
    reach = dice.uniform(8.5, 13.0)
    place = layout.place(dice, lambda dice: retina.at(dice.uniform(*ups), dice.uniform(*nasals)), reach, reach)
    if place is None:
        return None
    spot = window(retina.shape, place, reach + 4, reach + 4)
    cover = _PAINTERS[meaning.finding](dice, retina, spot, place, reach)
    return full_mask(retina.shape, spot.rows, spot.cols, cover > 0.4)


def _scatter(dice: Dice, spot: Window, place: Point, reach: float, count: int, radii: tuple[float, float]) -> Array:
    """Coverage of `count` dots with radii drawn from `radii`, spread over the disc of `reach` pixels around `place`."""
    cover = np.zeros(spot.shape, dtype=np.float32)
    for index in range(count):
        radius = dice.uniform(*radii)
        free = reach - radius
        dy, dx = dice.uniform(-1.0, 1.0), dice.uniform(-1.0, 1.0)
        if index < 4:  # the first four dots reach the four sides, so that the cluster has the size that was drawn
            dy, dx = ((-1.0, 0.5 * dx), (1.0, 0.5 * dx), (0.5 * dy, -1.0), (0.5 * dy, 1.0))[index]
        norm = max((dy * dy + dx * dx) ** 0.5, 1.0)
        centre = place[0] + free * dy / norm, place[1] + free * dx / norm
        distance = ellipse_distance(spot.y, spot.x, centre, (radius, radius * dice.uniform(0.8, 1.25)))
        np.maximum(cover, inside(distance, 1.3 + 0.25 * radius), out=cover)
    return cover


def _tint(dice: Dice, colour: Colour, spread: float) -> Colour:
    """The colour with every channel varied."""
    return tuple(dice.vary(value, spread) for value in colour)  # type: ignore[return-value]


def _paint_exudates(dice: Dice, retina: Retina, spot: Window, place: Point, reach: float) -> Array:
    """Coverage of small, sharp, waxy yellow deposits."""
    cover = _scatter(dice, spot, place, reach, 13 + dice.below(7), (1.0, 1.9))
    retina.blend(spot, cover * min(0.85 * dice.contrast, 1.0), _tint(dice, (1.0, 0.86, 0.34), 0.05))
    return cover


def _paint_drusen(dice: Dice, retina: Retina, spot: Window, place: Point, reach: float) -> Array:
    """Coverage of round, soft, pale deposits, larger and duller than exudates."""
    cover = _scatter(dice, spot, place, reach, 6 + dice.below(3), (2.6, 3.8))
    retina.blend(spot, cover * min(0.60 * dice.contrast, 1.0), _tint(dice, (0.93, 0.66, 0.33), 0.04))
    return cover


def _paint_cotton_wool(dice: Dice, retina: Retina, spot: Window, place: Point, reach: float) -> Array:
    """Coverage of one white patch with feathered edges."""
    radii = reach * dice.uniform(0.75, 0.95), reach * dice.uniform(0.75, 0.95)
    distance = ellipse_distance(spot.y, spot.x, place, radii, dice.uniform(-0.8, 0.8)) + 1.5 * smooth_noise(
        dice, spot.shape, 5
    )
    cover = inside(distance, 0.75 * reach)
    retina.blend(spot, cover * min(0.78 * dice.contrast, 1.0), _tint(dice, (1.02, 0.92, 0.68), 0.04))
    return cover


def _paint_haemorrhage(dice: Dice, retina: Retina, spot: Window, place: Point, reach: float) -> Array:
    """Coverage of one dark red blot with an irregular, fairly sharp outline."""
    radii = reach * dice.uniform(0.7, 1.0), reach * dice.uniform(0.7, 1.0)
    distance = ellipse_distance(spot.y, spot.x, place, radii, dice.uniform(-0.8, 0.8))
    distance += 1.1 * smooth_noise(dice, spot.shape, 6.5) + 0.5 * smooth_noise(dice, spot.shape, 2.5)
    cover = inside(distance, 4.0)
    depth = 0.9 + 0.1 * smooth_noise(dice, spot.shape, 4)
    retina.blend(spot, cover * depth * min(0.80 * dice.contrast, 1.0), _tint(dice, (0.40, 0.09, 0.06), 0.04))
    return cover


def _paint_microaneurysms(dice: Dice, retina: Retina, spot: Window, place: Point, reach: float) -> Array:
    """Coverage of many tiny, round, dark red dots."""
    cover = _scatter(dice, spot, place, reach, 9 + dice.below(5), (1.2, 1.8))
    retina.blend(spot, cover * min(0.80 * dice.contrast, 1.0), _tint(dice, (0.42, 0.08, 0.06), 0.04))
    return cover


_PAINTERS = {
    "hard exudate cluster": _paint_exudates,
    "drusen": _paint_drusen,
    "cotton wool spot": _paint_cotton_wool,
    "retinal haemorrhage": _paint_haemorrhage,
    "microaneurysm cluster": _paint_microaneurysms,
}

MODALITY = Modality("fundus photograph", "colour", None, MEANINGS, draw)
