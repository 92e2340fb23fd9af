"""Stained blood smears with white cells, platelet clumps, sickle cells, target cells and malaria parasites."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Point,
    Window,
    bump,
    ellipse_distance,
    ellipse_q2,
    inside,
    smooth_noise,
    stamp_curve,
    to_pixels,
    white_noise,
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
from regionmed_clip.processing.corpus.phantoms.smear_anatomy import (
    Smear,
    add_red_cells,
    develop,
    draw_smear,
    red_cell_density,
)

_SHAPES = ((120, 160), (128, 160), (144, 144), (136, 160))
_PLACES = {  # ranges of the centre as shares of the image's height and width
    "upper left": ((0.10, 0.36), (0.08, 0.38)),
    "upper right": ((0.10, 0.36), (0.62, 0.92)),
    "lower left": ((0.64, 0.90), (0.08, 0.38)),
    "lower right": ((0.64, 0.90), (0.62, 0.92)),
}
_FINDINGS = ("neutrophil", "lymphocyte", "eosinophil", "platelet clump", "sickle cell", "malaria ring form")

MEANINGS = tuple(meaning for finding in _FINDINGS for meaning in combine(finding, None, place=tuple(_PLACES)))


def draw(dice: Dice, plan: Sequence[Meaning]) -> Drawing:
    """A smear that shows the findings of `plan` for which there was room."""
    shape = _SHAPES[dice.below(len(_SHAPES))]
    smear = draw_smear(dice, shape)
    layout = Layout(shape)
    placed = []
    for meaning in plan:
        reach = dice.uniform(*_REACHES[meaning.finding])
        rows, cols = _PLACES[meaning.place]
        pick = _picker(shape, rows, cols)
        centre = layout.place(dice, pick, reach, reach)
        if centre is not None:
            placed.append((meaning, centre, reach))
    add_red_cells(dice, smear, [(*centre, reach) for _, centre, reach in placed])
    lesions = []
    for meaning, centre, reach in placed:
        lesion = keep_lesion(meaning, _PAINTERS[meaning.finding](dice, smear, centre, reach))
        if lesion is not None:
            lesions.append(lesion)
    _add_platelets(dice, smear, [(*centre, reach) for _, centre, reach in placed])
    colours = develop(dice, smear)
    for colour in colours:
        colour += white_noise(dice, shape) * (0.014 * dice.noise)
    return Drawing(np.ascontiguousarray(np.moveaxis(to_pixels(colours), 0, 2)), tuple(lesions))


def _picker(shape: tuple[int, int], rows: Point, cols: Point) -> Callable[[Dice], Point]:
    """A function that draws a centre (y, x) in pixels from the given shares of the image."""
    return lambda dice: (dice.uniform(*rows) * shape[0], dice.uniform(*cols) * shape[1])


def _add_platelets(dice: Dice, smear: Smear, keep_out: list[tuple[float, float, float]]) -> None:
    """Add up to three single platelets, which are normal, to the nuclear stain, in place, away from the findings."""
    for _ in range(dice.below(4)):
        centre = dice.uniform(0.05, 0.95) * smear.shape[0], dice.uniform(0.05, 0.95) * smear.shape[1]
        if any((centre[0] - y) ** 2 + (centre[1] - x) ** 2 < (r + 5.0) ** 2 for y, x, r in keep_out):
            continue
        spot = smear.around(centre, 4)
        radii = dice.uniform(1.6, 2.4), dice.uniform(1.6, 2.4)
        spot.cut(smear.purple)[...] += inside(ellipse_distance(spot.y, spot.x, centre, radii), 1.5) * 0.9


def _white_cell(
    dice: Dice, smear: Smear, centre: Point, radius: float, body: float, eosin: float
) -> tuple[Window, Array]:
    """Window and signed distance of a white cell whose cytoplasm is blended in with the two stain densities."""
    spot = smear.around(centre, radius + 4)
    radii = radius * dice.uniform(0.9, 1.0), radius * dice.uniform(0.9, 1.0)
    distance = ellipse_distance(spot.y, spot.x, centre, radii, dice.uniform(-0.6, 0.6)) + 0.5 * smooth_noise(
        dice, spot.shape, 7
    )
    cover = inside(distance, 1.6)
    spot.cut(smear.eosin)[...] += cover * (eosin - spot.cut(smear.eosin))
    spot.cut(smear.purple)[...] += cover * (body - spot.cut(smear.purple))
    return spot, distance


def _add_nucleus(dice: Dice, smear: Smear, spot: Window, distance: Array, density: float) -> None:
    """Raise the nuclear stain, in place, within a nucleus of the given signed distance; clumped chromatin."""
    view = spot.cut(smear.purple)
    cover = inside(distance, 1.5)
    chromatin = density * (1.0 + 0.14 * smooth_noise(dice, spot.shape, 2.6))
    view += cover * (chromatin - view)


def _paint_neutrophil(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a cell with pale, finely granular cytoplasm and a nucleus of three to five lobes."""
    spot, outline = _white_cell(dice, smear, centre, reach, dice.uniform(0.10, 0.20), 0.30)
    spot.cut(smear.purple)[...] += inside(outline, 1.5) * 0.05 * white_noise(dice, spot.shape)
    count = 3 + dice.below(3)
    phase, sweep = dice.uniform(0.0, 1.0), dice.uniform(0.55, 0.80)
    nucleus = np.full(spot.shape, 99.0, dtype=np.float32)
    for index in range(count):
        down, right = turn_point(phase + sweep * index / (count - 1))
        out = dice.uniform(0.36, 0.52) * reach
        lobe = centre[0] + out * down, centre[1] + out * right
        radii = reach * dice.uniform(0.24, 0.34), reach * dice.uniform(0.22, 0.30)
        np.minimum(nucleus, ellipse_distance(spot.y, spot.x, lobe, radii, dice.uniform(-1.0, 1.0)), out=nucleus)
    arc = [turn_point(phase + sweep * step / 11) for step in range(12)]
    strand = np.zeros(smear.shape, dtype=np.float32)
    ys, xs = (np.array([centre[axis] + 0.42 * reach * point[axis] for point in arc]) for axis in (0, 1))
    stamp_curve(strand, ys, xs, np.full(len(arc), 1.3))
    np.minimum(nucleus, 4.0 - 5.0 * spot.cut(strand), out=nucleus)
    nucleus += 0.5 * smooth_noise(dice, spot.shape, 3.0)
    np.maximum(nucleus, outline + 1.0, out=nucleus)
    _add_nucleus(dice, smear, spot, nucleus, dice.uniform(1.9, 2.3) * dice.contrast)
    return full_mask(smear.shape, spot.rows, spot.cols, outline < 0.0)


def _paint_eosinophil(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a cell with coarse orange-red granules and a nucleus of two lobes."""
    spot, outline = _white_cell(dice, smear, centre, reach, 0.06, 1.5)
    granules = np.maximum(1.0 + 0.45 * smooth_noise(dice, spot.shape, 2.0), 0.5)
    spot.cut(smear.eosin)[...] *= 1.0 + inside(outline + 0.5, 1.5) * (granules - 1.0)
    phase = dice.uniform(0.0, 1.0)
    nucleus = np.full(spot.shape, 99.0, dtype=np.float32)
    for half in (0.0, 0.42):
        down, right = turn_point(phase + half)
        lobe = centre[0] + 0.42 * reach * down, centre[1] + 0.42 * reach * right
        radii = reach * dice.uniform(0.34, 0.40), reach * dice.uniform(0.34, 0.40)
        np.minimum(nucleus, ellipse_distance(spot.y, spot.x, lobe, radii), out=nucleus)
    _add_nucleus(dice, smear, spot, nucleus, dice.uniform(1.7, 2.1) * dice.contrast)
    return full_mask(smear.shape, spot.rows, spot.cols, outline < 0.0)


def _paint_lymphocyte(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a cell that a round, dense nucleus fills but for a thin blue rim."""
    spot, outline = _white_cell(dice, smear, centre, reach, dice.uniform(0.38, 0.50), 0.05)
    shift = centre[0] + dice.uniform(-0.1, 0.1) * reach, centre[1] + dice.uniform(-0.1, 0.1) * reach
    radii = reach * dice.uniform(0.70, 0.80), reach * dice.uniform(0.70, 0.80)
    _add_nucleus(
        dice, smear, spot, ellipse_distance(spot.y, spot.x, shift, radii), dice.uniform(1.9, 2.3) * dice.contrast
    )
    return full_mask(smear.shape, spot.rows, spot.cols, outline < 0.0)


def _paint_platelet_clump(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a heap of small granular platelets."""
    spot = smear.around(centre, reach + 4)
    cover = np.zeros(spot.shape, dtype=np.float32)
    for index in range(9 + dice.below(5)):
        radius = dice.uniform(1.8, 2.7)
        down, right = turn_point(index * 0.382)
        out = (reach - radius) * (1.0 if index < 5 else dice.uniform(0.1, 0.7))
        at = centre[0] + out * down, centre[1] + out * right
        np.maximum(
            cover,
            inside(ellipse_distance(spot.y, spot.x, at, (radius, radius * dice.uniform(0.8, 1.2))), 1.6),
            out=cover,
        )
    density = 1.05 * dice.contrast * np.maximum(1.0 + 0.25 * white_noise(dice, spot.shape), 0.3)
    spot.cut(smear.purple)[...] += cover * density
    return full_mask(smear.shape, spot.rows, spot.cols, cover > 0.5)


def _paint_sickle_cell(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a red cell drawn out to a crescent with pointed ends and no central pallor."""
    spot = smear.around(centre, reach + 4)
    turn = dice.uniform(-1.2, 1.2)
    radii = reach, reach * dice.uniform(0.60, 0.72)
    sign = 1.0 if dice.chance(0.5) else -1.0
    norm = (1.0 + turn * turn) ** 0.5
    shift = sign * dice.uniform(0.62, 0.72) * reach / norm
    hollow_at = centre[0] - turn * shift, centre[1] + shift
    hollow = ellipse_distance(spot.y, spot.x, hollow_at, (reach * 1.05, radii[1]), turn)
    distance = np.maximum(ellipse_distance(spot.y, spot.x, centre, radii, turn), -hollow)
    cover = inside(distance, 1.5)
    view = spot.cut(smear.eosin)
    view += cover * dice.uniform(1.05, 1.25) * min(dice.contrast, 1.1)
    return full_mask(smear.shape, spot.rows, spot.cols, cover > 0.5)


def _paint_ring_form(dice: Dice, smear: Smear, centre: Point, reach: float) -> Array:
    """Mask of a red cell that holds a parasite: a fine purple ring with one dense dot of chromatin."""
    spot = smear.around(centre, reach + 4)
    distance = ellipse_distance(
        spot.y, spot.x, centre, (reach, reach * dice.uniform(0.92, 1.0)), dice.uniform(-0.4, 0.4)
    )
    spot.cut(smear.eosin)[...] += red_cell_density(distance, reach, 0.25)
    at = centre[0] + dice.uniform(-0.18, 0.18) * reach, centre[1] + dice.uniform(-0.18, 0.18) * reach
    ring_radius = reach * dice.uniform(0.42, 0.50)
    ring = np.abs(ellipse_distance(spot.y, spot.x, at, (ring_radius, ring_radius * dice.uniform(0.85, 1.0))))
    view = spot.cut(smear.purple)
    view += inside(ring - 0.8, 1.2) * (1.25 * dice.contrast)
    down, right = turn_point(dice.uniform(0.0, 1.0))
    dot = at[0] + ring_radius * down, at[1] + ring_radius * right
    view += 1.6 * dice.contrast * bump(ellipse_q2(spot.y, spot.x, dot, (2.6, 2.6)))
    return full_mask(smear.shape, spot.rows, spot.cols, distance < 0.0)


def turn_point(turns: float) -> Point:
    """The point (down, right) of the unit circle at `turns` of a full turn."""
    return math.sin(2.0 * math.pi * turns), math.cos(2.0 * math.pi * turns)


_REACHES = {  # ranges of the half-side of the box in pixels
    "neutrophil": (11.5, 15.0),
    "lymphocyte": (9.0, 12.5),
    "eosinophil": (11.5, 15.0),
    "platelet clump": (8.5, 13.5),
    "sickle cell": (10.0, 14.0),
    "malaria ring form": (9.0, 11.5),
}
_PAINTERS = {
    "neutrophil": _paint_neutrophil,
    "lymphocyte": _paint_lymphocyte,
    "eosinophil": _paint_eosinophil,
    "platelet clump": _paint_platelet_clump,
    "sickle cell": _paint_sickle_cell,
    "malaria ring form": _paint_ring_form,
}

MODALITY = Modality("blood smear", "stained", None, MEANINGS, draw)
