"""The normal ocular fundus of one colour photograph: field, choroid, optic disc, macula, arteries and veins."""

from __future__ import annotations

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

Colour = tuple[float, float, float]


@dataclass(slots=True)
class Retina:
    """One photographed eye: `nasal` is +1 where the disc lies on image right (a right eye), `radius` that of the field.

    `disc` and `fovea` are centres (y, x) in pixels; `colours` is (3, H, W) in [0, 1]; `light` the illumination (H, W).
    """

    shape: tuple[int, int]
    nasal: int
    centre: tuple[float, float]
    radius: float
    disc: tuple[float, float]
    disc_radius: float
    fovea: tuple[float, float]
    colours: Array
    light: Array

    def at(self, up: float, nasal: float) -> tuple[float, float]:
        """The point (y, x) that lies `up` and `nasal` field radii from the fovea."""
        return self.fovea[0] - up * self.radius, self.fovea[1] + self.nasal * nasal * self.radius

    def blend(self, spot: Window, cover: Array, colour: Colour) -> None:
        """Blend a lit colour over the window, in place, by its coverage in [0, 1]."""
        shade = spot.cut(self.light)
        for channel in range(3):
            view = spot.cut(self.colours[channel])
            view += cover * (colour[channel] * shade - view)


def draw_retina(dice: Dice, shape: tuple[int, int], laterality: str) -> Retina:
    """One eye without lesions; `laterality` ("left" or "right") decides the side of the disc."""
    height, width = shape
    nasal = 1 if laterality == "right" else -1
    radius = 0.5 * width * dice.vary(0.975, 0.012)
    centre = height / 2 + dice.vary(0.0, 1.5), width / 2 + dice.vary(0.0, 1.0)
    fovea = centre[0] + dice.vary(0.03, 0.04) * radius, centre[1] - nasal * dice.vary(0.12, 0.05) * radius
    disc = fovea[0] - dice.vary(0.06, 0.04) * radius, fovea[1] + nasal * dice.vary(0.76, 0.04) * radius
    blank = np.empty((4, height, width), dtype=np.float32)
    retina = Retina(shape, nasal, centre, radius, disc, dice.vary(0.135, 0.01) * radius, fovea, blank[:3], blank[3])
    _draw_choroid(dice, retina)
    _add_disc(dice, retina)
    _add_vessels(dice, retina)
    return retina


def field_of_view(retina: Retina) -> Array:
    """Coverage (H, W) of the round field of the camera; black beyond it."""
    y, x = axes(*retina.shape)
    return inside(ellipse_distance(y, x, retina.centre, (retina.radius, retina.radius)), 2.0)


def _draw_choroid(dice: Dice, retina: Retina) -> None:
    """Fill the colours with lit retina and choroid, darker towards the edge and at the macula."""
    y, x = axes(*retina.shape)
    lamp = (
        retina.centre[0] + dice.vary(0.0, 0.2) * retina.radius,
        retina.centre[1] + dice.vary(0.0, 0.25) * retina.radius,
    )
    light = ellipse_q2(y, x, lamp, (1.5 * retina.radius, 1.5 * retina.radius)) * -dice.vary(0.75, 0.25)
    light += 1.08 + 0.05 * smooth_noise(dice, retina.shape, 26)
    light *= dice.vary(0.95, 0.22)
    retina.light[...] = light
    pigment = dice.vary(0.0, 0.9)  # from a blond to a dark fundus
    base = (
        0.80 - 0.08 * pigment,
        0.39 - 0.09 * pigment + dice.vary(0.0, 0.04),
        0.17 - 0.06 * pigment + dice.vary(0.0, 0.04),
    )
    shade = bump(ellipse_q2(y, x, retina.fovea, (0.40 * retina.radius, 0.44 * retina.radius))) * -dice.vary(0.27, 0.07)
    reach = 0.13 * retina.radius
    spot = window(retina.shape, retina.fovea, reach, reach)
    spot.cut(shade)[...] -= 0.20 * bump(ellipse_q2(spot.y, spot.x, retina.fovea, (reach, reach)))
    shade += 0.035 * smooth_noise(dice, retina.shape, 5, 8)
    shade += 0.022 * smooth_noise(dice, retina.shape, 2.6)
    for channel, (value, depth) in enumerate(zip(base, (0.75, 1.0, 0.8), strict=True)):
        retina.colours[channel] = (shade * (value * depth) + value) * light


def _add_disc(dice: Dice, retina: Retina) -> None:
    """Blend the optic disc with its paler cup into the colours, in place."""
    size = retina.disc_radius
    spot = window(retina.shape, retina.disc, 1.7 * size, 1.7 * size)
    radii = size * 1.08, size * dice.vary(0.95, 0.05)
    halo = bump(ellipse_q2(spot.y, spot.x, retina.disc, (1.7 * size, 1.7 * size)))
    retina.blend(spot, 0.4 * halo, (0.90, 0.58, 0.27))
    pallor = dice.vary(0.0, 0.06)
    disc = inside(ellipse_distance(spot.y, spot.x, retina.disc, radii), 2.2)
    retina.blend(spot, disc, (0.99, 0.72 + pallor, 0.40 + pallor))
    share = dice.vary(0.46, 0.10)
    cup_at = retina.disc[0], retina.disc[1] - retina.nasal * 0.08 * size
    cup = inside(ellipse_distance(spot.y, spot.x, cup_at, (radii[0] * share, radii[1] * share)), 3.0)
    retina.blend(spot, 0.8 * cup, (1.0, 0.88, 0.64))


def _add_vessels(dice: Dice, retina: Retina) -> None:
    """Darken the colours, in place, along veins (wide, dark) and arteries (narrow, bright) from the disc."""
    parts: list[tuple[Array, Array, Array, Array]] = []

    def vessel(points: list[tuple[float, float]], wide: float, narrow: float, strength: float) -> tuple[Array, Array]:
        ys, xs, t = bezier(points, 1.0)
        sway = 0.05 * len(t) * dice.vary(0.0, 1.0)  # tortuosity: waves that are 0 at both ends
        wave = sway * t * (1.0 - t) * ((0.3 - t) * (0.7 - t) * 8.0)
        ys, xs = ys + wave, xs + 0.7 * wave
        parts.append((ys, xs, wide + (narrow - wide) * t, np.full(len(t), strength)))
        return ys, xs

    for up in (1.0, -1.0):
        lift = dice.vary(0.0, 0.08)
        for strength, bow, width in ((1.0, 0.78, 1.3), (0.62, 0.62, 0.9)):
            bow = bow + lift + dice.vary(0.0, 0.05)
            ends = [(bow * 0.78, 0.72), (bow * 1.18, 0.28), (dice.vary(bow * 0.62, 0.14), dice.vary(-0.92, 0.1))]
            ys, xs = vessel([retina.disc, *(retina.at(up * a, b) for a, b in ends)], width, 0.45, strength)
            for share, rise, run in ((0.30, 0.45, 0.28), (0.52, 0.40, -0.18), (0.72, 0.35, -0.35)):
                start = int(share * len(ys) + dice.vary(0.0, 6.0))
                root = float(ys[start]), float(xs[start])
                outward = -up * dice.vary(rise, 0.12) * retina.radius
                sideways = retina.nasal * dice.vary(run, 0.2) * retina.radius
                tip = root[0] + outward, root[1] + sideways
                vessel([root, (root[0] + 0.6 * outward, root[1] + 0.2 * sideways), tip], 0.65 * width, 0.35, strength)
                inward = retina.at(up * dice.uniform(0.10, 0.24), dice.vary(0.12 - 0.5 * (share - 0.3), 0.08))
                bend = (
                    0.5 * (root[0] + inward[0]) + dice.vary(0.0, 4.0),
                    0.5 * (root[1] + inward[1]) + dice.vary(0.0, 4.0),
                )
                vessel([root, bend, inward], 0.45 * width, 0.25, 0.8 * strength)
            nasal = [(up * dice.vary(0.20, 0.12), 1.0), (up * dice.vary(0.45, 0.2), 1.25)]
            vessel([retina.disc, *(retina.at(a, b) for a, b in nasal)], 0.75 * width, 0.4, strength)
    density = np.zeros(retina.shape, dtype=np.float32)
    ys, xs, radii, strengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    stamp_curve(density, ys, xs, radii, strengths)
    for channel, absorbed in enumerate((0.34, 0.60, 0.45)):
        retina.colours[channel] *= 1.0 - absorbed * density
