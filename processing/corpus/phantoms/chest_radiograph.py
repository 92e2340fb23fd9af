"""Frontal chest radiographs with nodules, consolidations, cavities, effusions, pneumothoraces and large hearts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Point,
    axes,
    bezier,
    ellipse_distance,
    film_tone,
    inside,
    smooth_noise,
    smoothstep,
    stamp_curve,
    white_noise,
    window,
)
from regionmed_clip.processing.corpus.phantoms.chest_anatomy import (
    LungFields,
    Thorax,
    add_clavicles,
    add_ribs,
    draw_lung_fields,
    draw_soft_tissue,
    draw_thorax,
)
from regionmed_clip.processing.corpus.phantoms.findings import (
    Drawing,
    Layout,
    Meaning,
    Modality,
    combine,
    full_mask,
    keep_lesion,
    tight_box,
)

_SHAPES = ((160, 144), (160, 152), (160, 160), (152, 160), (144, 160))
_ZONES = {
    "upper zone": (0.26, 0.36),
    "middle zone": (0.50, 0.58),
    "lower zone": (0.77, 0.86),
}  # share of the lung's height
_SIDES = ("right", "left")

MEANINGS = (
    *combine("pulmonary nodule", "lung", laterality=_SIDES, place=tuple(_ZONES), size=("small", "large")),
    *combine("consolidation", "lung", laterality=_SIDES, place=tuple(_ZONES)),
    *combine("cavity", "lung", laterality=_SIDES, place=tuple(_ZONES)),
    *combine("pleural effusion", "pleural space", laterality=_SIDES, size=("small", "large")),
    *combine("pneumothorax", "pleural space", laterality=_SIDES, size=("small", "large")),
    *combine("cardiomegaly", "heart", severity=("mild", "severe")),
)


def draw(dice: Dice, plan: Sequence[Meaning]) -> Drawing:
    """A chest radiograph that shows the findings of `plan` for which there was room."""
    shape = _SHAPES[dice.below(len(_SHAPES))]
    ratio = {None: (0.44, 0.50), "mild": (0.58, 0.62), "severe": (0.74, 0.80)}
    severity = next((meaning.severity for meaning in plan if meaning.finding == "cardiomegaly"), None)
    thorax = draw_thorax(dice, shape, dice.uniform(*ratio[severity]))
    fields = draw_lung_fields(dice, thorax)
    film = draw_soft_tissue(dice, thorax, fields)
    layout = Layout(shape)
    lesions = []
    for meaning in sorted(plan, key=lambda meaning: _ORDER[meaning.finding]):
        mask = _PAINTERS[meaning.finding](dice, thorax, fields, film, layout, meaning)
        lesion = None if mask is None else keep_lesion(meaning, mask)
        if lesion is not None:
            lesions.append(lesion)
    film += fields.lung * fields.texture
    add_ribs(dice, thorax, fields, film)
    add_clavicles(dice, thorax, film)
    film += (0.014 * dice.noise) * white_noise(dice, shape) * (1.3 - film)
    black, white = dice.vary(0.02, 0.05), dice.vary(0.97, 0.08)
    return Drawing(film_tone(film, 1.0 + dice.vary(0.0, 0.28), black, white), tuple(lesions))


def _side(meaning: Meaning) -> int:
    """-1 for the patient's right, which is image left, and +1 for the left."""
    return -1 if meaning.laterality == "right" else 1


def _take_box(layout: Layout, mask: Array) -> bool:
    """True, and the box of the mask taken, where it is not empty and free."""
    box = tight_box(mask)
    if box is None or not layout.is_free(box):
        return False
    layout.taken.append(box)
    return True


def _in_zone(
    dice: Dice, thorax: Thorax, layout: Layout, meaning: Meaning, reach_y: float, reach_x: float
) -> Point | None:
    """A free centre (y, x) in the zone and lung that `meaning` names, or None."""
    side = _side(meaning)
    low, high = _ZONES[meaning.place]
    share = (0.34, 0.60) if side < 0 or meaning.place != "lower zone" else (0.62, 0.74)

    def pick(dice: Dice) -> tuple[float, float]:
        y = thorax.apex + dice.uniform(low, high) * (thorax.dome(side) - thorax.apex)
        return y, thorax.column(side, y, dice.uniform(*share))

    return layout.place(dice, pick, reach_y, reach_x)


def _paint_nodule(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of a round, sharp opacity drawn into `film`; None without room."""
    radius = dice.uniform(6.5, 8.0) if meaning.size == "small" else dice.uniform(13.0, 15.5)
    centre = _in_zone(dice, thorax, layout, meaning, radius, radius)
    if centre is None:
        return None
    spot = window(thorax.shape, centre, radius + 5, radius + 5)
    radii = radius * dice.uniform(0.9, 1.0), radius * dice.uniform(0.9, 1.0)
    distance = ellipse_distance(spot.y, spot.x, centre, radii, dice.uniform(-0.5, 0.5))
    distance = distance + 0.45 * smooth_noise(dice, spot.shape, 6)
    core = np.minimum(np.maximum(distance * (-1.2 / radius), 0.0), 1.0)  # a ball is thicker in its middle
    opacity = dice.uniform(0.22, 0.31) * dice.contrast
    spot.cut(film)[...] += inside(distance, 2.2) * (0.6 + 0.4 * core) * opacity
    return full_mask(thorax.shape, spot.rows, spot.cols, distance < 0.0)


def _paint_consolidation(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of an ill-defined cloudy opacity with dark air bronchograms drawn into `film`; None without room."""
    radii = dice.uniform(11.0, 17.0), dice.uniform(11.0, 17.0)
    centre = _in_zone(dice, thorax, layout, meaning, *radii)
    if centre is None:
        return None
    spot = window(thorax.shape, centre, radii[0] * 1.25, radii[1] * 1.25)
    ragged = 3.2 * smooth_noise(dice, spot.shape, 8) + 1.2 * smooth_noise(dice, spot.shape, 3)
    distance = ellipse_distance(spot.y, spot.x, centre, (radii[0] * 0.78, radii[1] * 0.78)) + ragged
    cloud = inside(distance, 9.0) * spot.cut(fields.lung)
    opacity = dice.uniform(0.24, 0.34) * dice.contrast
    grain = 1.0 + 0.14 * smooth_noise(dice, spot.shape, 4)
    air = np.zeros(thorax.shape, dtype=np.float32)
    side = _side(meaning)
    for slope in (dice.uniform(-0.8, -0.3), dice.uniform(0.2, 0.8)):
        start = centre[0] + dice.uniform(-2.0, 2.0), centre[1] - side * radii[1] * 0.6
        end = start[0] + slope * radii[0], centre[1] + side * radii[1] * dice.uniform(0.2, 0.6)
        ys, xs, t = bezier([start, (start[0] * 0.8 + end[0] * 0.2, centre[1]), end], 1.0)
        stamp_curve(air, ys, xs, 0.9 - 0.4 * t)
    spot.cut(film)[...] += cloud * opacity * np.maximum(grain - 0.5 * spot.cut(air), 0.1)
    return full_mask(thorax.shape, spot.rows, spot.cols, cloud > 0.35)


def _paint_cavity(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of a ring-shaped opacity around air, at times with a fluid level, drawn into `film`; None without room."""
    radius = dice.uniform(8.5, 15.0)
    centre = _in_zone(dice, thorax, layout, meaning, radius, radius)
    if centre is None:
        return None
    spot = window(thorax.shape, centre, radius + 4, radius + 4)
    radii = radius * dice.uniform(0.85, 1.0), radius * dice.uniform(0.85, 1.0)
    distance = ellipse_distance(spot.y, spot.x, centre, radii, dice.uniform(-0.5, 0.5))
    distance = distance + 0.9 * smooth_noise(dice, spot.shape, 6)
    wall = dice.uniform(0.26, 0.36) * radius
    hollow = inside(distance + wall + 0.16 * radius * smooth_noise(dice, spot.shape, 7), 2.2)
    opacity = dice.uniform(0.22, 0.32) * dice.contrast
    spot.cut(film)[...] += inside(distance, 2.2) * (1.0 - hollow) * opacity - hollow * (0.035 * dice.contrast)
    if dice.chance(0.35):
        fluid = hollow * inside(centre[0] + radius * dice.uniform(0.2, 0.4) - spot.y, 1.2)
        spot.cut(film)[...] += fluid * opacity
    spot.cut(fields.texture)[...] *= 1.0 - 0.6 * hollow
    return full_mask(thorax.shape, spot.rows, spot.cols, distance < 0.0)


def _paint_effusion(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of fluid above the diaphragm with a meniscus that climbs the chest wall; None without room."""
    height, width = thorax.shape
    side = _side(meaning)
    y, _ = axes(height, width)
    lung_height = thorax.dome(side) - thorax.apex
    reach = np.minimum(np.maximum(fields.across * (side / thorax.half), 0.0), 1.2)
    if meaning.size == "small":
        level = thorax.dome(side) + dice.uniform(0.0, 0.02) * height
        climb = np.maximum(reach - 0.30, 0.0)
        rise = climb * climb * (dice.uniform(0.32, 0.42) * height)
    else:
        level = thorax.dome(side) - dice.uniform(0.30, 0.40) * lung_height
        rise = reach * reach * reach * (dice.uniform(0.10, 0.16) * height)
    surface = y - level + rise  # positive within the fluid
    fluid = smoothstep(surface * (1.0 / 4.0) + 0.5) * (fields.across * side > 0) * inside(fields.depth, 2.5)
    mask = fluid > 0.5
    if not _take_box(layout, mask):
        return None
    film += fluid * (fields.lung * (dice.uniform(0.30, 0.36)) + 0.015 * smooth_noise(dice, thorax.shape, 12))
    fields.texture *= 1.0 - 0.9 * fluid
    return mask


def _paint_pneumothorax(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of pleural air without lung markings, outside the thin line of the collapsed lung; None without room."""
    height, width = thorax.shape
    side = _side(meaning)
    y, _ = axes(height, width)
    along = (y - thorax.apex) * (1.0 / (thorax.dome(side) - thorax.apex))  # (H, 1): 0 at the apex, 1 at the dome
    if meaning.size == "small":
        gap = (0.34 - along) * dice.uniform(1.2, 1.5) * thorax.half
    else:
        gap = (dice.uniform(0.42, 0.52) - 0.16 * along) * thorax.half + np.maximum(
            0.22 - along, 0.0
        ) * 1.2 * thorax.half
    beside = fields.across * side
    pleura = beside - (thorax.lateral(y) - gap) + 0.9 * smooth_noise(dice, thorax.shape, 18)  # positive in the air
    cage = inside(fields.depth, 2.0) * (beside > 0)
    air = smoothstep(pleura * 0.5 + 0.5) * cage
    mask = air > 0.5
    if not _take_box(layout, mask):
        return None
    film -= air * fields.lung * (0.085 * dice.contrast)
    line = np.maximum(1.0 - np.abs(pleura + 0.6) * 0.7, 0.0) * cage * fields.lung
    film += line * 0.10
    collapsed = (1.0 - air) * cage * fields.lung
    film += collapsed * (0.035 if meaning.size == "small" else 0.07)
    fields.texture *= 1.0 - air
    return mask


def _paint_cardiomegaly(
    dice: Dice, thorax: Thorax, fields: LungFields, film: Array, layout: Layout, meaning: Meaning
) -> Array | None:
    """Mask of the heart, which the anatomy has drawn large; None where its box is taken."""
    height, width = thorax.shape
    y, _ = axes(height, width)
    mask = (fields.heart > 0.5) & (y > thorax.heart[0] - thorax.heart_radii[0]) & (y < fields.diaphragm + 3.0)
    return mask if _take_box(layout, mask) else None


_PAINTERS = {
    "cardiomegaly": _paint_cardiomegaly,
    "pneumothorax": _paint_pneumothorax,
    "pleural effusion": _paint_effusion,
    "consolidation": _paint_consolidation,
    "cavity": _paint_cavity,
    "pulmonary nodule": _paint_nodule,
}
_ORDER = {finding: order for order, finding in enumerate(_PAINTERS)}  # those that need a given place come first

MODALITY = Modality("chest radiograph", "frontal", "chest", MEANINGS, draw)
