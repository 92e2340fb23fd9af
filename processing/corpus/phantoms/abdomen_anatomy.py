"""The normal upper abdomen of one axial CT slice in a soft-tissue window; image left is the patient's right.

The back lies below. Values are display brightness, 0 (air) to 1 (bone); the slice lies at the level of the renal hila.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Window,
    axes,
    bezier,
    bump,
    ellipse_distance,
    ellipse_q2,
    inside,
    smooth_noise,
    stamp_curve,
    window,
)

AIR, FAT, WATER, MUSCLE, BONE = 0.01, 0.19, 0.38, 0.50, 0.93


@dataclass(frozen=True, slots=True)
class Organ:
    """An elliptic organ: centre (y, x) and radii (y, x) in pixels, slope `turn`, brightness `value`."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    value: float

    def distance(self, spot: Window) -> Array:
        """Signed distance in pixels to the organ's outline within the window, negative inside."""
        return ellipse_distance(spot.y, spot.x, self.centre, self.radii, self.turn)

    def point(self, along_y: float, along_x: float) -> tuple[float, float]:
        """The point (y, x) that lies `along_y`, `along_x` radii from the centre, along the organ's own turned axes."""
        norm = 1.0 / (1.0 + self.turn * self.turn) ** 0.5
        down, right = along_y * self.radii[0], along_x * self.radii[1]
        return self.centre[0] + (down + self.turn * right) * norm, self.centre[1] + (right - self.turn * down) * norm


@dataclass(slots=True)
class Abdomen:
    """One patient's slice: the body, its cavity (signed distance, negative inside) and the organs of interest."""

    shape: tuple[int, int]
    body: Organ
    cavity: Array
    liver: tuple[Organ, Organ]
    spleen: Organ
    kidneys: dict[str, Organ]

    def around(self, centre: tuple[float, float], reach: float) -> Window:
        """The window within `reach` pixels of `centre` (y, x)."""
        return window(self.shape, centre, reach, reach)


def paint(film: Array, spot: Window, cover: Array, value: Array | float) -> None:
    """Blend `value` over the window of `film`, in place, by its coverage in [0, 1]."""
    view = spot.cut(film)
    view += cover * (value - view)


def paint_organ(film: Array, abdomen: Abdomen, organ: Organ, edge: float = 1.6, value: float | None = None) -> None:
    """Blend a plain elliptic organ into `film`, in place."""
    reach = max(organ.radii) + 2
    spot = window(abdomen.shape, organ.centre, reach, reach)
    paint(film, spot, inside(organ.distance(spot), edge), organ.value if value is None else value)


def draw_abdomen(dice: Dice, shape: tuple[int, int]) -> tuple[Abdomen, Array]:
    """One patient's slice and its noiseless brightness (H, W)."""
    height, width = shape
    body = Organ(
        (height * dice.vary(0.485, 0.01), width * dice.vary(0.5, 0.01)),
        (height * dice.vary(0.44, 0.02), width * dice.vary(0.465, 0.02)),
        dice.vary(0.0, 0.05),
        FAT,
    )
    y, x = axes(height, width)
    radius = np.sqrt(ellipse_q2(y, x, body.centre, body.radii, body.turn))
    radius += 0.012 * smooth_noise(dice, shape, 34)
    outline = (radius - 1.0) * min(body.radii)
    film = np.full(shape, AIR, dtype=np.float32)
    film += inside(outline, 1.5) * (FAT - AIR)
    film += np.maximum(1.0 - np.abs(outline + 1.0), 0.0) * 0.26  # skin
    fat = dice.uniform(4.0, 9.0)
    belly = (1.0 - radius * (y - body.centre[0]) * (-0.25 / body.radii[0])) * fat  # thinner in front, thicker behind
    wall = outline + belly
    film += inside(wall, 2.0) * (MUSCLE - FAT)
    muscle = dice.uniform(3.5, 5.0)
    cavity = wall + muscle + np.float32(1.6) * (y > body.centre[0]) * np.abs(smooth_noise(dice, shape, 12))
    film += inside(cavity, 2.0) * (FAT + 0.03 - MUSCLE)
    film += np.maximum(smooth_noise(dice, shape, 5), 0.0) * (
        np.float32(0.035) * (cavity < 0)
    )  # vessels and folds of the mesentery
    abdomen = _lay_out_organs(dice, shape, body, cavity)
    _add_spine(dice, abdomen, film)
    _add_bowel(dice, abdomen, film)
    _add_liver(dice, abdomen, film)
    _add_spleen(dice, abdomen, film)
    _add_kidneys(dice, abdomen, film)
    _add_ribs(dice, abdomen, film, fat)
    _add_table(dice, shape, film)
    return abdomen, film


def _lay_out_organs(dice: Dice, shape: tuple[int, int], body: Organ, cavity: Array) -> Abdomen:
    """Places of the organs for one patient, relative to the body."""

    def organ(at: tuple[float, float], radii: tuple[float, float], turn: float, value: float) -> Organ:
        place = body.point(at[0] + dice.vary(0.0, 0.02), at[1] + dice.vary(0.0, 0.02))
        scale = dice.vary(1.0, 0.06)
        own = radii[0] * scale * body.radii[0], radii[1] * scale * body.radii[1]
        return Organ(place, own, turn + dice.vary(0.0, 0.08), value)

    phase = dice.vary(0.0, 0.04)  # the time since contrast was given
    liver = dice.vary(0.60, 0.025) + 0.5 * phase
    right = organ((-0.02, -0.53), (0.60, 0.33), 0.10, liver)
    left = organ((-0.42, -0.18), (0.30, 0.38), 0.12, liver)
    spleen = organ((0.06, 0.70), (0.42, 0.17), 0.25, dice.vary(0.62, 0.025) + 0.5 * phase)
    cortex = dice.vary(0.74, 0.03) + phase
    kidneys = {
        "right": organ((0.42, -0.40), (0.25, 0.155), 0.35, cortex),
        "left": organ((0.38, 0.41), (0.25, 0.155), -0.35, cortex),
    }
    return Abdomen(shape, body, cavity, (right, left), spleen, kidneys)


def liver_distance(abdomen: Abdomen, spot: Window) -> Array:
    """Signed distance in pixels to the liver's outline (both lobes, within the cavity), negative inside."""
    right, left = abdomen.liver
    return np.maximum(np.minimum(right.distance(spot), left.distance(spot)), spot.cut(abdomen.cavity) + 1.0)


def spleen_distance(abdomen: Abdomen, spot: Window) -> Array:
    """Signed distance in pixels to the spleen's outline (within the cavity, hollowed towards the stomach)."""
    spleen = abdomen.spleen
    hollow = ellipse_distance(
        spot.y, spot.x, spleen.point(-0.25, -1.75), (spleen.radii[0] * 0.8, spleen.radii[1]), spleen.turn
    )
    return np.maximum(np.maximum(spleen.distance(spot), spot.cut(abdomen.cavity) + 1.0), -hollow)


def _add_liver(dice: Dice, abdomen: Abdomen, film: Array) -> None:
    """Blend the liver with its vessels and, mostly, the gallbladder into `film`, in place."""
    right, left = abdomen.liver
    spot = window(abdomen.shape, abdomen.body.centre, abdomen.body.radii[0], abdomen.body.radii[1])
    distance = liver_distance(abdomen, spot) + 0.9 * smooth_noise(dice, spot.shape, 11)
    cover = inside(distance, 2.0)
    paint(film, spot, cover, right.value + 0.012 * smooth_noise(dice, spot.shape, 4))
    vessels = np.zeros(abdomen.shape, dtype=np.float32)
    hilum = right.point(-0.05, 0.85)
    for end in (right.point(-0.55, -0.15), right.point(0.0, -0.5), right.point(0.55, -0.1), left.point(0.1, 0.35)):
        end = end[0] + dice.vary(0.0, 5.0), end[1] + dice.vary(0.0, 4.0)
        bend = 0.5 * (hilum[0] + end[0]) + dice.vary(0.0, 4.0), 0.5 * (hilum[1] + end[1]) + dice.vary(0.0, 4.0)
        ys, xs, t = bezier([hilum, bend, end], 0.9)
        stamp_curve(vessels, ys, xs, 1.9 - 1.3 * t)
    spot.cut(film)[...] += spot.cut(vessels) * cover * dice.vary(0.07, 0.03)
    if dice.chance(0.6):
        gallbladder = Organ(
            right.point(0.12, 1.12), (0.12 * abdomen.body.radii[0], 0.06 * abdomen.body.radii[1]), 0.3, WATER
        )
        paint_organ(film, abdomen, gallbladder)


def _add_spleen(dice: Dice, abdomen: Abdomen, film: Array) -> None:
    """Blend the spleen into `film`, in place."""
    spleen = abdomen.spleen
    spot = abdomen.around(spleen.centre, max(spleen.radii) + 3)
    distance = spleen_distance(abdomen, spot) + 0.6 * smooth_noise(dice, spot.shape, 9)
    paint(film, spot, inside(distance, 1.8), spleen.value + 0.01 * smooth_noise(dice, spot.shape, 5))


def _add_kidneys(dice: Dice, abdomen: Abdomen, film: Array) -> None:
    """Blend both kidneys into `film`, in place: bright cortex, darker medulla, fat in a hilum that faces the spine."""
    for side, kidney in abdomen.kidneys.items():
        inward = 1.0 if side == "right" else -1.0
        spot = abdomen.around(kidney.centre, max(kidney.radii) + 3)
        distance = kidney.distance(spot)
        paint(film, spot, inside(distance, 1.6), kidney.value)
        medulla = inside(distance + 3.2, 2.2) * np.maximum(0.6 + 0.7 * smooth_noise(dice, spot.shape, 4.5), 0.0)
        spot.cut(film)[...] -= medulla * 0.07
        radii = kidney.radii[0] * 0.42, kidney.radii[1] * 0.50
        sinus = ellipse_distance(spot.y, spot.x, kidney.point(0.0, inward * 0.62), radii, kidney.turn)
        paint(film, spot, inside(sinus, 2.0), FAT + 0.02)
        ys, xs, _ = bezier(
            [kidney.point(0.0, inward * 0.3), kidney.point(-0.1, inward * 1.1), kidney.point(-0.35, inward * 1.9)]
        )
        vein = np.zeros(abdomen.shape, dtype=np.float32)
        stamp_curve(vein, ys, xs, np.full(len(ys), 1.4))
        paint(film, spot, spot.cut(vein), 0.62)


def _add_spine(dice: Dice, abdomen: Abdomen, film: Array) -> None:
    """Blend the vertebra with canal and processes, the muscles beside it, aorta and vena cava into `film`, in place."""
    body = abdomen.body
    tall, wide = body.radii

    def part(at: tuple[float, float], radii: tuple[float, float], value: float, turn: float = 0.0) -> Organ:
        return Organ(body.point(*at), (radii[0] * tall, radii[1] * wide), turn + body.turn, value)

    for side in (-1.0, 1.0):
        paint_organ(film, abdomen, part((0.73, side * 0.25), (0.20, 0.19), MUSCLE + 0.02, -0.1 * side))
        paint_organ(film, abdomen, part((0.42, side * 0.205), (0.13, 0.075), MUSCLE + 0.02, 0.2 * side))
        paint_organ(film, abdomen, part((0.60, side * 0.20), (0.035, 0.13), BONE - 0.1, 0.25 * side))
        paint_organ(film, abdomen, part((0.69, side * 0.09), (0.035, 0.10), BONE, -0.9 * side))
    paint_organ(film, abdomen, part((0.80, 0.0), (0.13, 0.028), BONE))
    vertebra = part((0.40, 0.0), (0.175, 0.155), BONE)
    spot = abdomen.around(vertebra.centre, max(vertebra.radii) + 3)
    distance = vertebra.distance(spot)
    marrow = BONE - 0.20 * inside(distance + 3.0, 2.5) + 0.05 * smooth_noise(dice, spot.shape, 2.5)
    paint(film, spot, inside(distance, 1.6), marrow)
    canal = part((0.60, 0.0), (0.085, 0.075), BONE)
    paint_organ(film, abdomen, canal)
    paint_organ(film, abdomen, Organ(canal.centre, (canal.radii[0] * 0.72, canal.radii[1] * 0.72), 0.0, 0.44))
    blood = dice.vary(0.72, 0.06)
    paint_organ(film, abdomen, part((0.135, 0.055), (0.085, 0.066), blood))
    paint_organ(film, abdomen, part((0.145, -0.125), (0.075, 0.085), blood - 0.08))
    paint_organ(film, abdomen, part((-0.10, -0.02), (0.05, 0.035), blood - 0.05))
    paint_organ(film, abdomen, part((-0.02, 0.14), (0.07, 0.22), MUSCLE + 0.03, -0.35))  # pancreas


def _add_bowel(dice: Dice, abdomen: Abdomen, film: Array) -> None:
    """Blend the stomach with its air and some loops of bowel with gas, fluid or contrast into `film`, in place."""
    body = abdomen.body
    stomach = Organ(
        body.point(dice.vary(-0.38, 0.04), dice.vary(0.36, 0.04)),
        (body.radii[0] * dice.vary(0.27, 0.05), body.radii[1] * dice.vary(0.27, 0.04)),
        dice.vary(0.1, 0.15),
        MUSCLE + 0.04,
    )
    loops = [(stomach, dice.uniform(-0.5, 0.3), dice.uniform(0.33, 0.48))]
    for at_y, at_x in ((-0.62, 0.02), (0.02, 0.47), (0.15, 0.30), (-0.15, 0.62), (-0.62, 0.28), (0.1, -0.16)):
        if dice.chance(0.75):
            radii = dice.uniform(0.07, 0.11) * body.radii[1], dice.uniform(0.07, 0.12) * body.radii[1]
            centre = body.point(at_y + dice.vary(0.0, 0.05), at_x + dice.vary(0.0, 0.05))
            content = 0.95 if dice.chance(0.18) else dice.uniform(0.34, 0.50)
            loops.append((Organ(centre, radii, dice.vary(0.0, 0.4), MUSCLE + 0.05), dice.uniform(-1.6, 0.3), content))
    for loop, level, content in loops:
        spot = abdomen.around(loop.centre, max(loop.radii) + 2)
        distance = np.maximum(loop.distance(spot), spot.cut(abdomen.cavity) + 1.0)
        paint(film, spot, inside(distance, 1.6), loop.value)
        lumen = inside(distance + 2.0, 1.6)
        grain = 0.03 * smooth_noise(dice, spot.shape, 3)
        gas = inside(spot.y - (loop.centre[0] + level * loop.radii[0]), 1.2)  # gas rises to the front
        paint(film, spot, lumen, content + grain)
        paint(film, spot, lumen * gas, AIR)


def _add_ribs(dice: Dice, abdomen: Abdomen, film: Array, fat: float) -> None:
    """Blend the cut ribs along the body wall into `film`, in place; none in front, where the cartilage ends."""
    body = abdomen.body
    start = dice.uniform(-0.15, 0.15)
    for step in range(6):
        angle = -0.35 + 0.30 * step + start
        for side in (-1.0, 1.0):
            share = 1.0 - (fat * (1.0 + 0.22 * math.sin(angle)) + 2.2) / min(body.radii)
            down, right = math.sin(angle), side * math.cos(angle)
            centre = body.point(share * down, share * right)
            slope = side * 0.9 * math.sin(angle) / max(abs(math.cos(angle)), 0.3)
            rib = Organ(centre, (3.6, 1.5), max(min(slope, 2.0), -2.0), BONE)
            paint_organ(film, abdomen, rib)
            paint_organ(film, abdomen, Organ(centre, (2.0, 0.6), rib.turn, BONE - 0.25))


def _add_table(dice: Dice, shape: tuple[int, int], film: Array) -> None:
    """Brighten, in place, the curved top of the scanner's table below the patient."""
    height, width = shape
    y, x = axes(height, width)
    sag = (x - width / 2) * (1.0 / width)
    line = (0.965 - dice.uniform(0.0, 0.015)) * height - sag * sag * (0.22 * height)
    low = slice(int(0.85 * height), height)
    film[low] += np.maximum(1.0 - np.abs(y[low] - line), 0.0) * 0.22
    film[low] += 0.06 * bump(((y[low] - line - 2.5) * 0.4) ** 2)
