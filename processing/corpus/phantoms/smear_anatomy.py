"""The background of a stained blood smear: lit plasma and the red cells, as optical density of each stain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regionmed_clip.processing.corpus.phantoms.canvas import (
    Array,
    Dice,
    Window,
    smooth_noise,
    smoothstep,
    window,
)


@dataclass(slots=True)
class Smear:
    """One field of a smear: optical densities (H, W) of eosin (red cells, cytoplasm) and of the nuclear stain (purple).

    `red_radius` is the usual radius of a red cell in pixels; overlapping cells add up and darken.
    """

    shape: tuple[int, int]
    red_radius: float
    eosin: Array
    purple: Array

    def around(self, centre: tuple[float, float], reach: float) -> Window:
        """The window within `reach` pixels of `centre` (y, x)."""
        return window(self.shape, centre, reach, reach)


def draw_smear(dice: Dice, shape: tuple[int, int]) -> Smear:
    """An empty field: no cell yet."""
    radius = dice.vary(8.6, 0.7)
    return Smear(shape, radius, np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))


def red_cell_density(distance: Array, radius: float, pallor: float) -> Array:
    """Eosin density of a red cell: full rim, paler centre; `distance` is the signed one to its outline, in pixels."""
    rim = smoothstep(0.5 - distance * (1.0 / 1.8))
    depth = np.minimum(np.maximum(distance * (-1.0 / radius), 0.0), 1.0)  # 0 at the outline, 1 in the centre
    return rim * (1.0 - pallor * smoothstep((depth - 0.30) * 2.2))


def add_red_cells(dice: Dice, smear: Smear, keep_out: list[tuple[float, float, float]]) -> None:
    """Add a scatter of red cells to the eosin density, in place, outside the circles (y, x, radius) of `keep_out`."""
    height, width = smear.shape
    pitch = smear.red_radius * dice.vary(2.18, 0.16)
    rows, cols = int(height / (0.88 * pitch)) + 2, int(width / pitch) + 2
    spread = dice.rng.random((5, rows, cols), dtype=np.float32) - np.float32(0.5)
    grid_y, grid_x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    centre_y = (grid_y - 0.3) * np.float32(0.88 * pitch) + spread[0] * (0.55 * pitch)
    centre_x = (grid_x - 0.5 + 0.5 * (grid_y % 2)) * np.float32(pitch) + spread[1] * (0.55 * pitch)
    keep = spread[2] + 0.5 > dice.uniform(0.10, 0.38)
    for y, x, reach in keep_out:
        keep &= (centre_y - y) ** 2 + (centre_x - x) ** 2 > (reach + 0.75 * smear.red_radius) ** 2
    centres = np.stack((centre_y[keep], centre_x[keep]), axis=1)
    radii = smear.red_radius * (1.0 + 0.22 * spread[3][keep])
    squeeze = 1.0 + 0.24 * spread[4][keep]
    _add_cells(dice, smear, centres, radii, squeeze)


def _add_cells(dice: Dice, smear: Smear, centres: Array, radii: Array, squeeze: Array) -> None:
    """Add ellipses with central pallor at `centres` (N, 2) to the eosin density, in place; all profiles at once."""
    height, width = smear.shape
    reach = int(smear.red_radius * 1.3) + 2
    corner = np.floor(centres).astype(np.int64) - reach  # (N, 2): top-left pixel of every stamp
    steps = np.arange(2 * reach + 1, dtype=np.float32) + np.float32(0.5)
    gap_y = (corner[:, :1] + steps - centres[:, :1]) / (radii * squeeze)[:, None]  # (N, S)
    gap_x = (corner[:, 1:] + steps - centres[:, 1:]) / (radii / squeeze)[:, None]
    gap_y, gap_x = gap_y.astype(np.float32)[:, :, None], gap_x.astype(np.float32)[:, None, :]
    skew = (dice.rng.random((len(radii), 1, 1), dtype=np.float32) - np.float32(0.5)) * np.float32(0.5)
    distance = np.sqrt(gap_y * gap_y + gap_x * gap_x + skew * gap_y * gap_x)  # (N, S, S), 1 on the outline
    distance -= 1.0
    distance *= np.float32(smear.red_radius)
    pallor = (0.35 + 0.45 * dice.rng.random((len(radii), 1, 1), dtype=np.float32)).astype(np.float32)
    stamps = red_cell_density(distance, smear.red_radius, pallor)
    side = 2 * reach + 1
    for (y0, x0), stamp in zip(corner.tolist(), stamps, strict=True):
        top, left = max(-y0, 0), max(-x0, 0)
        bottom, right = min(side, height - y0), min(side, width - x0)
        if bottom > top and right > left:
            smear.eosin[y0 + top : y0 + bottom, x0 + left : x0 + right] += stamp[top:bottom, left:right]


def develop(dice: Dice, smear: Smear) -> Array:
    """Colours (3, H, W) in [0, 1]: lamp light through both stains, with uneven lighting and stain."""
    height, width = smear.shape
    light = dice.vary(0.92, 0.07) + 0.03 * smooth_noise(dice, smear.shape, 60)
    warm = dice.vary(0.0, 0.04)
    eosin = smear.eosin * (dice.vary(0.95, 0.25) * (1.0 + 0.05 * smooth_noise(dice, smear.shape, 5)))
    purple = smear.purple * dice.vary(1.0, 0.18)
    hue, tone = dice.vary(0.0, 0.05), dice.vary(0.0, 0.06)
    stains = ((0.20 + hue, 0.58 + tone), (0.42, 0.88), (0.34 - hue, 0.34 - tone))
    colours = np.empty((3, height, width), dtype=np.float32)
    for channel, (of_eosin, of_purple) in enumerate(stains):
        loss = 1.0 + eosin * of_eosin + purple * of_purple + 0.5 * purple * purple * (of_purple * of_purple)
        tint = (1.0 + warm, 0.975, 0.97 - warm)[channel]
        colours[channel] = light * tint / loss
    return colours
