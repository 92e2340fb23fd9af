"""Axial abdominal CT slices with lesions of the liver, the kidneys and the spleen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regionmed_clip.processing.corpus.phantoms.abdomen_anatomy import (
    FAT,
    WATER,
    Abdomen,
    draw_abdomen,
    liver_distance,
    paint,
    spleen_distance,
)
from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Point,
    Window,
    bezier,
    ellipse_distance,
    film_tone,
    inside,
    smooth_noise,
    stamp_curve,
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

_SHAPES = ((120, 160), (128, 160), (128, 160), (136, 160), (144, 160))
_SIDES = ("right", "left")
_SEGMENTS = ("segment 3", "segment 5", "segment 6")

MEANINGS = (
    *combine("hepatic cyst", "liver", place=("segment 5", "segment 6"), size=("small", "large")),
    *combine("hepatic cyst", "liver", place=("segment 3",), size=("small",)),
    *combine("hepatic metastasis", "liver", place=_SEGMENTS),
    *combine("hepatic haemangioma", "liver", place=_SEGMENTS),
    *combine("renal cyst", "kidney", laterality=_SIDES),
    *combine("renal mass", "kidney", laterality=_SIDES),
    *combine("kidney stone", "kidney", laterality=_SIDES),
    *combine("hydronephrosis", "kidney", laterality=_SIDES, severity=("mild", "severe")),
    *combine("splenic laceration", "spleen"),
    *combine("splenic infarct", "spleen"),
)


def draw(dice: Dice, plan: Sequence[Meaning]) -> Drawing:
    """An axial slice that shows the findings of `plan` for which there was room."""
    shape = _SHAPES[dice.below(len(_SHAPES))]
    abdomen, film = draw_abdomen(dice, shape)
    layout = Layout(shape)
    lesions = []
    for meaning in plan:
        mask = _PAINTERS[meaning.finding](dice, abdomen, film, layout, meaning)
        lesion = None if mask is None else keep_lesion(meaning, mask)
        if lesion is not None:
            lesions.append(lesion)
    grain = white_noise(dice, shape) * 0.6 + 0.9 * smooth_noise(dice, shape, 2.2)
    film += grain * (0.020 * dice.noise)
    film += smooth_noise(dice, shape, 2.5, 70.0) * (0.010 * dice.noise)  # streaks across the densest path
    black, white = dice.vary(0.03, 0.04), dice.vary(0.98, 0.06)
    return Drawing(film_tone(film, 1.0 + dice.vary(0.0, 0.12), black, white), tuple(lesions))


def _paint_hepatic(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of a round lesion in the liver segment that `meaning` names, drawn into `film`; None without room."""
    right, left = abdomen.liver
    if meaning.finding == "hepatic cyst":
        radius = dice.uniform(11.5, 13.0) if meaning.size == "large" else dice.uniform(6.5, 8.0)
    else:
        radius = dice.uniform(6.8, 10.0 if meaning.place == "segment 3" else 12.5)
    low, high, near, far, lobe = {
        "segment 3": (-0.05, 0.15, 0.15, 0.42, left),
        "segment 5": (-0.48, -0.34, -0.25, 0.1, right),
        "segment 6": (0.34, 0.48, -0.25, 0.05, right),
    }[meaning.place]
    place = layout.place(
        dice, lambda dice: lobe.point(dice.uniform(low, high), dice.uniform(near, far)), radius, radius
    )
    if place is None:
        return None
    spot = abdomen.around(place, radius + 4)
    radii = radius * dice.uniform(0.9, 1.0), radius * dice.uniform(0.9, 1.0)
    distance = ellipse_distance(spot.y, spot.x, place, radii, dice.uniform(-0.5, 0.5))
    if meaning.finding == "hepatic metastasis":
        distance += 0.7 * smooth_noise(dice, spot.shape, 5)
    distance = np.maximum(distance, liver_distance(abdomen, spot) + 0.5)
    if meaning.finding == "hepatic cyst":
        paint(film, spot, inside(distance, 1.4), right.value - dice.uniform(0.19, 0.26) * dice.contrast)
    elif meaning.finding == "hepatic metastasis":
        _fill_metastasis(dice, film, spot, distance, right.value, radius)
    else:
        _fill_haemangioma(dice, film, spot, distance, place, right.value, radius)
    return full_mask(abdomen.shape, spot.rows, spot.cols, distance < 0.0)


def _fill_metastasis(dice: Dice, film: Array, spot: Window, distance: Array, liver: float, radius: float) -> None:
    """Blend a target into `film`, in place: necrotic centre, grey rim, brighter halo, blurred edge."""
    strength = dice.contrast
    paint(film, spot, inside(distance, 3.0), liver + 0.12 * strength)
    paint(film, spot, inside(distance + 0.26 * radius, 2.2), liver - 0.13 * strength)
    paint(film, spot, inside(distance + 0.60 * radius, 2.5), liver - 0.30 * strength)


def _fill_haemangioma(
    dice: Dice, film: Array, spot: Window, distance: Array, place: Point, liver: float, radius: float
) -> None:
    """Blend a dark lesion with bright puddles of contrast along its rim into `film`, in place."""
    strength = dice.contrast
    paint(film, spot, inside(distance, 1.6), liver - 0.19 * strength)
    puddles = np.zeros(film.shape, dtype=np.float32)
    count = 5
    phase = dice.uniform(0.0, 1.0)
    turns = [phase + (index + dice.uniform(-0.25, 0.25)) / count for index in range(count)]
    points = [(math.sin(2.0 * math.pi * turn), math.cos(2.0 * math.pi * turn)) for turn in turns]
    sizes = radius * np.array([dice.uniform(0.20, 0.42) for _ in range(count)])
    ys, xs = (place[axis] + 0.84 * radius * np.array([point[axis] for point in points]) for axis in (0, 1))
    stamp_curve(puddles, ys, xs, sizes)
    paint(film, spot, spot.cut(puddles) * inside(distance, 1.6), liver + 0.20 * strength)


def _paint_renal_cyst(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of a dark, sharp, round lesion on the outer border of a kidney; None without room."""
    return _paint_on_kidney(dice, abdomen, film, layout, meaning, dice.uniform(6.5, 9.5))


def _paint_on_kidney(
    dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning, radius: float
) -> Array | None:
    """Mask of a cyst or a solid mass that bulges from the outer border of the kidney; None without room."""
    kidney = abdomen.kidneys[meaning.laterality]
    outward = -1.0 if meaning.laterality == "right" else 1.0

    def pick(dice: Dice) -> Point:
        return kidney.point(dice.uniform(-0.75, 0.75), outward * dice.uniform(0.55, 0.75))

    place = layout.place(dice, pick, radius, radius)
    if place is None:
        return None
    spot = abdomen.around(place, radius + 4)
    radii = radius * dice.uniform(0.9, 1.0), radius * dice.uniform(0.9, 1.0)
    distance = ellipse_distance(spot.y, spot.x, place, radii)
    if meaning.finding == "renal cyst":
        paint(film, spot, inside(distance, 1.4), 0.5 + (WATER - 0.5) * min(dice.contrast, 1.1))
    else:
        distance = distance + 0.9 * smooth_noise(dice, spot.shape, 6)
        patches = 0.60 + 0.13 * dice.contrast * np.clip(smooth_noise(dice, spot.shape, 4.0), -1.4, 1.4)
        paint(film, spot, inside(distance, 1.8), patches)
        rim = np.maximum(1.0 - np.abs(distance + 1.2) * 0.7, 0.0)
        spot.cut(film)[...] += rim * 0.07
    return full_mask(abdomen.shape, spot.rows, spot.cols, distance < 0.0)


def _paint_renal_mass(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of an uneven, enhancing, solid lesion that bulges from a kidney; None without room."""
    return _paint_on_kidney(dice, abdomen, film, layout, meaning, dice.uniform(8.0, 11.0))


def _paint_stone(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of a very bright calculus in the renal pelvis; None without room."""
    kidney = abdomen.kidneys[meaning.laterality]
    inward = 1.0 if meaning.laterality == "right" else -1.0
    radii = dice.uniform(4.2, 5.5), dice.uniform(3.8, 4.8)
    place = layout.place(
        dice, lambda dice: kidney.point(dice.uniform(-0.25, 0.25), inward * dice.uniform(0.2, 0.5)), *radii
    )
    if place is None:
        return None
    spot = abdomen.around(place, max(radii) + 4)
    distance = ellipse_distance(spot.y, spot.x, place, radii, kidney.turn) + 0.5 * smooth_noise(dice, spot.shape, 3)
    paint(film, spot, inside(distance, 1.5), 1.05)
    return full_mask(abdomen.shape, spot.rows, spot.cols, distance < 0.0)


def _paint_hydronephrosis(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of a renal pelvis and calyces widened by urine; severe ones thin the cortex. None without room."""
    kidney = abdomen.kidneys[meaning.laterality]
    inward = 1.0 if meaning.laterality == "right" else -1.0
    scale = dice.uniform(0.55, 0.62) if meaning.severity == "mild" else dice.uniform(0.95, 1.05)
    reach = kidney.radii[0] * (scale + 0.1), kidney.radii[1] * (scale + 0.15)
    centre = layout.place(dice, lambda dice: kidney.point(0.0, inward * 0.45), *reach)
    if centre is None:
        return None
    spot = abdomen.around(kidney.centre, max(kidney.radii) * 1.7)
    radii = kidney.radii[0] * 0.42 * scale, kidney.radii[1] * 0.85 * scale
    distance = ellipse_distance(spot.y, spot.x, kidney.point(0.0, inward * 0.75), radii, kidney.turn)
    for along in (-0.55, 0.0, 0.55):
        calyx = kidney.point(along * scale, inward * (0.30 - 0.38 * scale * (1.0 - abs(along))))
        size = kidney.radii[0] * 0.30 * scale, kidney.radii[1] * 0.42 * scale
        distance = np.minimum(distance, ellipse_distance(spot.y, spot.x, calyx, size, kidney.turn))
    paint(film, spot, inside(distance, 1.6), 0.5 + (WATER + 0.02 - 0.5) * min(dice.contrast, 1.1))
    return full_mask(abdomen.shape, spot.rows, spot.cols, distance < 0.0)


def _paint_splenic(dice: Dice, abdomen: Abdomen, film: Array, layout: Layout, meaning: Meaning) -> Array | None:
    """Mask of a jagged cleft (laceration) or a wedge with its base on the capsule (infarct); None without room."""
    spleen = abdomen.spleen
    along = dice.uniform(-0.35, 0.35)
    rim, root = spleen.point(along, 1.0), spleen.point(along * 0.6, -0.75)
    reach = dice.uniform(7.5, 10.0)
    centre = 0.5 * (rim[0] + root[0]), 0.5 * (rim[1] + root[1])
    if layout.place(dice, lambda dice: centre, reach, reach) is None:
        return None
    spot = abdomen.around(centre, reach + 8)
    field = np.zeros(abdomen.shape, dtype=np.float32)
    if meaning.finding == "splenic infarct":
        ys, xs, t = bezier([root, centre, rim], 0.6)
        stamp_curve(field, ys, xs, 0.6 + reach * 0.85 * t)
        value = spleen.value - dice.uniform(0.20, 0.28) * dice.contrast
    else:
        for shift in (-0.55, 0.5):
            kink = centre[0] + shift * 7.0, centre[1] - shift * 2.0
            end = rim[0] + shift * reach * 1.6, rim[1]
            ys, xs, t = bezier([root, kink, end], 0.6)
            stamp_curve(field, ys, xs, 1.1 + 0.9 * t)
        value = spleen.value - dice.uniform(0.24, 0.34) * dice.contrast
    cover = spot.cut(field) * inside(spleen_distance(abdomen, spot), 1.5)
    paint(film, spot, cover, max(value, FAT))
    return full_mask(abdomen.shape, spot.rows, spot.cols, cover > 0.5)


_PAINTERS = {
    "hepatic cyst": _paint_hepatic,
    "hepatic metastasis": _paint_hepatic,
    "hepatic haemangioma": _paint_hepatic,
    "renal cyst": _paint_renal_cyst,
    "renal mass": _paint_renal_mass,
    "kidney stone": _paint_stone,
    "hydronephrosis": _paint_hydronephrosis,
    "splenic laceration": _paint_splenic,
    "splenic infarct": _paint_splenic,
}

MODALITY = Modality("CT", "axial", "abdomen", MEANINGS, draw)
