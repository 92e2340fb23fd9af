"""The normal chest of a frontal radiograph: its geometry for one patient and the opacity of every structure.

Opacity is film brightness before the film curve, 0 (air) to about 1 (bone, abdomen). Image left is the patient's right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    axes,
    bezier,
    bump,
    ellipse_distance,
    ellipse_q2,
    inside,
    smooth_noise,
    smoothstep,
    stamp_curve,
    window,
)


@dataclass(frozen=True, slots=True)
class Thorax:
    """Geometry of one patient's chest in pixels; `half` is the inner half-width of the rib cage at the base.

    `domes` are the tops of the diaphragm on image left and right; `heart` is its centre (y, x) with radii (y, x).
    """

    shape: tuple[int, int]
    midline: float
    tilt: float
    half: float
    apex: float
    base: float
    domes: tuple[float, float]
    mediastinum: float
    heart: tuple[float, float]
    heart_radii: tuple[float, float]

    def lateral(self, y: Array | float) -> Array | float:
        """Half-width of the lungs' lateral border at row(s) `y`, in pixels from the midline."""
        rest = 1.0 - np.minimum(np.maximum((y - self.apex) / (self.base - self.apex), 0.0), 1.0)
        inner = 0.16 * self.half
        return inner + (self.half - inner) * np.sqrt(1.0 - rest * rest * (0.25 + 0.75 * rest))

    def column(self, side: int, y: float, share: float) -> float:
        """Column of the point `share` of the way from the mediastinum to the chest wall; side -1 is image left."""
        inner = self.mediastinum
        reach = inner + share * (float(self.lateral(y)) - inner)
        return self.midline + side * reach - self.tilt * (y - self.shape[0] / 2)

    def dome(self, side: int) -> float:
        """Row of the top of the diaphragm; side -1 is image left."""
        return self.domes[0 if side < 0 else 1]


@dataclass(slots=True)
class LungFields:
    """Pixel fields (H, W) of one chest.

    `across` is the signed distance from the midline in pixels, `depth` the one to the lungs' outline (negative within);
    `lung` and `heart` are coverages, `texture` the opacity of the lungs' vessels; `diaphragm` (1, W) is its row.
    """

    across: Array
    depth: Array
    lung: Array
    heart: Array
    diaphragm: Array
    texture: Array


def draw_thorax(dice: Dice, shape: tuple[int, int], heart_width: float) -> Thorax:
    """The chest of one patient; `heart_width` is the cardiothoracic ratio to draw."""
    height, width = shape
    half = dice.vary(0.395, 0.025) * width
    midline = width / 2 + dice.vary(0.0, 0.02) * width
    dome = dice.vary(0.735, 0.03) * height
    tall = dice.vary(0.175, 0.02) * height
    heart = (
        dome - 0.42 * tall + 0.02 * height,
        midline + dice.vary(0.17, 0.03) * half + 0.12 * (heart_width - 0.46) * half,
    )
    return Thorax(
        shape=shape,
        midline=midline,
        tilt=dice.vary(0.0, 0.035),
        half=half,
        apex=dice.vary(0.105, 0.02) * height,
        base=dome + dice.vary(0.12, 0.015) * height,
        domes=(dome - 0.012 * height, dome + dice.vary(0.018, 0.01) * height),
        mediastinum=dice.vary(0.20, 0.02) * half,
        heart=heart,
        heart_radii=(tall * (0.62 + 0.5 * heart_width), heart_width * half),
    )


def draw_lung_fields(dice: Dice, thorax: Thorax) -> LungFields:
    """The lungs' outline, the heart's shadow and the vessels of one chest."""
    height, width = thorax.shape
    y, x = axes(height, width)
    across = (x - thorax.midline) + thorax.tilt * (y - height / 2)  # (H, W)
    beside = np.abs(across)
    flat = (x - thorax.midline) * (1.0 / thorax.half)  # (1, W), in units of the chest's half-width
    shift = np.abs(flat) - 0.46
    drop = shift * shift * np.where(shift > 0, 0.115 / 0.29, 0.07 / 0.29) * height
    diaphragm = np.where(flat < 0, *thorax.domes) + drop + thorax.tilt * (x - thorax.midline)
    diaphragm = diaphragm.astype(np.float32)  # (1, W)
    depth = np.maximum(beside - thorax.lateral(y), y - diaphragm)
    widening = np.maximum(y - thorax.apex - 0.12 * height, 0.0) * 0.10 * (across > 0)  # the descending aorta
    np.maximum(depth, thorax.mediastinum * 0.86 + np.minimum(widening, 4.0) - beside, out=depth)
    depth += 0.8 * smooth_noise(dice, thorax.shape, 14)
    np.maximum(depth, thorax.apex - y, out=depth)
    heart = inside(_heart_distance(thorax, y, x), 4.0)
    knob = (thorax.apex + 0.195 * height, thorax.midline + 0.16 * thorax.half)
    knob_radii = (0.042 * height, dice.vary(0.10, 0.02) * thorax.half)
    spot = window(thorax.shape, knob, knob_radii[0] + 3, knob_radii[1] + 3)
    arch = inside(ellipse_distance(spot.y, spot.x, knob, knob_radii), 3.0)
    np.maximum(spot.cut(heart), arch, out=spot.cut(heart))
    lung = inside(depth, 3.0) * (1.0 - heart)
    return LungFields(across, depth, lung, heart, diaphragm, _draw_vessels(dice, thorax))


def _heart_distance(thorax: Thorax, y: Array, x: Array) -> Array:
    """Signed distance (H, W) to the heart: left ventricle down on image right, right atrium, outflow tract."""
    heart_y, heart_x = thorax.heart
    radius_y, radius_x = thorax.heart_radii
    ventricle = ellipse_distance(y, x, (heart_y, heart_x), (radius_y, radius_x), 0.55)
    atrium_x = thorax.midline - 0.10 * thorax.half - 0.08 * radius_x
    atrium = ellipse_distance(y, x, (heart_y + 3.0, atrium_x), (radius_y * 0.95, 0.11 * thorax.half + 0.18 * radius_x))
    outflow = ellipse_distance(
        y, x, (heart_y - radius_y * 0.75, thorax.midline + 0.10 * thorax.half), (radius_y * 0.62, 0.17 * thorax.half)
    )
    return np.minimum(np.minimum(ventricle, atrium), outflow)


def draw_soft_tissue(dice: Dice, thorax: Thorax, fields: LungFields) -> Array:
    """Opacity (H, W) of everything but bone: body wall, lungs, heart, spine, trachea, abdomen, stomach bubble."""
    height, width = thorax.shape
    y, _ = axes(height, width)
    beside = np.abs(fields.across)
    neck = dice.vary(0.25, 0.03) * thorax.half
    slope = np.sqrt(np.maximum(beside - neck, 0.0) * (1.0 / (0.5 * width)))
    shoulder = inside(slope * (dice.vary(0.125, 0.015) * height) - np.float32(20.0) * (slope <= 0) - y, 5.0)
    armpit = smoothstep((0.46 * height - y) * (1.0 / (0.25 * height)))
    wall = thorax.half * dice.vary(1.22, 0.07) + armpit * (0.3 * width)
    body = shoulder * inside(beside - wall, 4.0)
    film = body * (0.50 + dice.vary(0.0, 0.04) + 0.035 * smooth_noise(dice, thorax.shape, 22))
    edge = smoothstep((wall - beside) * (1.0 / (0.22 * thorax.half)))
    film *= 0.62 + 0.38 * edge
    abdomen = inside(fields.diaphragm - y, 4.0) * body
    film += abdomen * 0.20
    central = bump((fields.across * (1.0 / (0.42 * thorax.half))) ** 2)
    film += central * (0.20 * body)
    depth = np.minimum(np.maximum(fields.depth * (-1.0 / (0.30 * thorax.half)), 0.0), 1.0)
    film -= fields.lung * (0.27 + 0.13 * depth)
    film += fields.heart * (0.05 * body)
    film += _spine(dice, thorax, fields) * body
    _add_stomach(dice, thorax, film)
    return film


def _spine(dice: Dice, thorax: Thorax, fields: LungFields) -> Array:
    """Opacity of the vertebrae with their disc spaces, less the air of the trachea and the main bronchi."""
    height, width = thorax.shape
    y, _ = axes(height, width)
    spacing = dice.vary(0.066, 0.004) * height
    phase = y * (1.0 / spacing)
    phase = phase - np.floor(phase) - 0.5  # (H, 1) in [-0.5, 0.5): 0 in the middle of a vertebra
    bodies = 0.035 + 0.045 * (1.0 - smoothstep((np.abs(phase) - 0.28) * 6.0))
    column = inside(np.abs(fields.across) - 0.105 * thorax.half, 3.0)
    spine = column * bodies
    carina = thorax.apex + 0.235 * height
    trachea = inside(np.abs(fields.across + 0.015 * thorax.half) - 0.048 * thorax.half, 2.5)
    spine -= trachea * (0.13 * smoothstep((carina - y) * 0.12 + 0.5))
    for side in (-1, 1):
        start = carina, thorax.midline - thorax.tilt * (carina - height / 2)
        end = carina + 0.075 * height, start[1] + side * 0.24 * thorax.half
        bronchus = np.zeros(thorax.shape, dtype=np.float32)
        ys, xs, t = bezier([start, (carina + 0.03 * height, start[1] + side * 0.08 * thorax.half), end], 1.2)
        stamp_curve(bronchus, ys, xs, 2.2 - t)
        spine -= bronchus * 0.07
    return spine


def _add_stomach(dice: Dice, thorax: Thorax, film: Array) -> None:
    """Darken, in place, the gas bubble of the stomach under the dome on image right; it often has a fluid level."""
    height, width = thorax.shape
    if dice.chance(0.2):
        return
    radii = dice.vary(0.042, 0.014) * height, dice.vary(0.16, 0.03) * width * 0.62
    centre = thorax.domes[1] + radii[0] + 0.04 * height, thorax.column(1, thorax.domes[1], dice.uniform(0.36, 0.52))
    spot = window(thorax.shape, centre, radii[0] + 4, radii[1] + 4)
    gas = inside(ellipse_distance(spot.y, spot.x, centre, radii), 3.0)
    if dice.chance(0.6):
        gas = gas * inside(spot.y - (centre[0] + radii[0] * dice.uniform(-0.1, 0.5)), 1.5)
    spot.cut(film)[...] -= gas * dice.uniform(0.16, 0.26)


def _draw_vessels(dice: Dice, thorax: Thorax) -> Array:
    """Opacity (H, W) of the hila and of the vessels that branch from them, with the lungs' fine markings."""
    height, _ = thorax.shape
    field = np.zeros(thorax.shape, dtype=np.float32)
    ys_all, xs_all, radii_all, strengths = [], [], [], []
    for side in (-1, 1):
        root_y = thorax.apex + (0.325 if side < 0 else 0.30) * height
        root = root_y, thorax.column(side, root_y, 0.07)
        for slope in (-1.5, -0.8, -0.25, 0.3, 0.75, 1.15, 1.7, 2.4):
            slope = slope + dice.vary(0.0, 0.3)
            reach = dice.uniform(0.45, 0.95)
            norm = (1.0 + slope * slope) ** 0.5
            span = 0.62 * thorax.half * reach
            origin = root[0] + 4.0 * slope, root[1] + side * 1.5 * abs(slope)
            end = root[0] + span * slope / norm * 1.25, root[1] + side * span / norm
            bend = 0.5 * (root[0] + end[0]) + dice.vary(3.0, 5.0), 0.5 * (root[1] + end[1]) - side * dice.vary(2.0, 3.0)
            ys, xs, t = bezier([origin, bend, end], 1.1)
            ys_all.append(ys), xs_all.append(xs), radii_all.append(1.7 - 1.4 * t), strengths.append(0.115 - 0.085 * t)
    stamp_curve(field, *map(np.concatenate, (ys_all, xs_all, radii_all)), strength=np.concatenate(strengths))
    for side in (-1, 1):
        centre = thorax.apex + 0.335 * height, thorax.column(side, thorax.apex + 0.335 * height, 0.10)
        radii = 0.085 * height, 0.15 * thorax.half
        spot = window(thorax.shape, centre, *radii)
        spot.cut(field)[...] += 0.16 * bump(ellipse_q2(spot.y, spot.x, centre, radii, -0.25 * side))
    field += 0.018 * smooth_noise(dice, thorax.shape, 5)
    field += 0.014 * smooth_noise(dice, thorax.shape, 2.4)
    return field


def add_ribs(dice: Dice, thorax: Thorax, fields: LungFields, film: Array) -> None:
    """Brighten, in place, the posterior ribs, the fainter anterior ones and the chest wall along their lateral ends."""
    height, width = thorax.shape
    y, x = axes(height, width)
    side = np.abs(x - thorax.midline) * (1.0 / thorax.half)  # (1, W)
    level = y + thorax.tilt * (x - thorax.midline)
    cage = inside(np.abs(fields.across) - thorax.lateral(y) - 2.0, 4.0) * smoothstep((y - thorax.apex + 4.0) * 0.15)
    cage *= 0.30 + 0.70 * fields.lung  # bone adds little where the film is bright already
    spacing = dice.vary(0.083, 0.004) * height
    posterior = level + height * (0.10 * side - 0.20 * side * side) - dice.uniform(0.0, 1.0) * spacing
    bone = _rib_profile(posterior * (1.0 / spacing), 0.25) * smoothstep((side - 0.08) * 8.0)
    film += bone * cage * dice.vary(0.085, 0.02)
    anterior = level + height * (0.36 * side - 0.10 * side * side) - dice.uniform(0.0, 1.0) * spacing
    bone = _rib_profile(anterior * (1.0 / (spacing * 1.25)), 0.22) * smoothstep((side - 0.42) * 6.0)
    film += bone * cage * dice.vary(0.045, 0.012)


def _rib_profile(phase: Array, half_width: float) -> Array:
    """Cross-section of ribs that repeat with period 1 in `phase`: a band with brighter (cortical) margins."""
    gap = np.abs(phase - np.floor(phase) - 0.5)
    band = smoothstep((half_width - gap) * 10.0 + 0.5)
    return band * (0.62 + 0.38 * np.minimum(gap * (1.0 / half_width), 1.0))


def add_clavicles(dice: Dice, thorax: Thorax, film: Array) -> None:
    """Brighten, in place, both clavicles, the medial borders of the scapulae and the heads of the humeri."""
    height, _ = thorax.shape
    bone = np.zeros(thorax.shape, dtype=np.float32)
    lift = dice.vary(0.05, 0.03) * height
    for side in (-1, 1):
        y0 = thorax.apex + 0.075 * height
        points = [
            (y0, thorax.midline + side * 0.10 * thorax.half),
            (y0 - 0.1 * lift, thorax.midline + side * 0.42 * thorax.half),
            (y0 - 1.5 * lift, thorax.midline + side * 0.62 * thorax.half),
            (y0 - 1.1 * lift, thorax.midline + side * 1.12 * thorax.half),
        ]
        ys, xs, t = bezier(points, 1.6)
        ys = ys - thorax.tilt * (xs - thorax.midline)
        stamp_curve(bone, ys, xs, 2.8 - 0.9 * t, 0.06 + 0.06 * np.minimum(4.0 * t, 1.0))
        blade = dice.vary(0.97, 0.04) * thorax.half
        ys, xs, _ = bezier(
            [
                (y0, thorax.midline + side * blade),
                (0.3 * height, thorax.midline + side * blade * 0.93),
                (0.44 * height, thorax.midline + side * blade * 1.04),
            ],
            1.4,
        )
        stamp_curve(bone, ys, xs, np.full(len(ys), 1.2), 0.05)
        centre = y0 + 0.035 * height, thorax.midline + side * 1.25 * thorax.half
        spot = window(thorax.shape, centre, 0.09 * height, 0.09 * height)
        head = inside(ellipse_distance(spot.y, spot.x, centre, (0.075 * height, 0.065 * height)), 3.0)
        np.maximum(spot.cut(bone), head * 0.075, out=spot.cut(bone))
    film += bone
