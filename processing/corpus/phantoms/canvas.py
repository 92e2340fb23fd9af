"""Drawing primitives of the phantoms: cached axes, smooth noise, soft shapes, curves, tone curves, PNG bytes.

Fields are float32 arrays (H, W); coordinates are pixels, origin top-left, y before x. Only + - * / sqrt,
comparisons and PIL's resampling touch whole fields: they round alike on every processor, so that an image has the same
pixels everywhere.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image

Array = np.ndarray
Point = tuple[float, float]  # (y, x) in pixels
_ZLIB_RLE = 3  # zlib's Z_RLE: on noisy pictures faster than its default search and no larger
_TILE_SIDE = 512  # pixels; images are much smaller, so that their crops of a tile hardly ever repeat
_TILE_SEED = 20_240
_THINNEST = 0.7  # pixels, half the width of the thinnest line that is drawn without gaps
_FEATHERED = 3.5  # pixels; over narrower edges a straight ramp looks like an eased one and costs half


@dataclass(frozen=True, slots=True)
class Dice:
    """The random draws of one image: a numpy generator and the difficulty in [0, 1] that widens their spread."""

    rng: np.random.Generator
    difficulty: float

    def uniform(self, low: float, high: float) -> float:
        """Float drawn evenly from [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def vary(self, middle: float, spread: float) -> float:
        """Float within `spread` of `middle` at difficulty 0.5; within 0.5 and 1.5 times that at difficulty 0 and 1."""
        return middle + spread * (0.5 + self.difficulty) * (2.0 * float(self.rng.random()) - 1.0)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return float(self.rng.random()) < probability

    def below(self, count: int) -> int:
        """Whole number drawn evenly from 0 .. count - 1."""
        return int(self.rng.random() * count)

    @property
    def contrast(self) -> float:
        """Factor on a lesion's contrast: 1.3, 1.0 and 0.7 at difficulty 0, 0.5 and 1."""
        return 1.3 - 0.6 * self.difficulty

    @property
    def noise(self) -> float:
        """Factor on the image noise: 0.5, 1.0 and 1.5 at difficulty 0, 0.5 and 1."""
        return 0.5 + self.difficulty


@lru_cache(maxsize=64)
def axes(height: int, width: int) -> tuple[Array, Array]:
    """Pixel-centre coordinates y (H, 1) and x (1, W), float32, read-only."""
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5))[:, None]
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5))[None, :]
    y.flags.writeable = x.flags.writeable = False
    return y, x


@lru_cache(maxsize=64)
def _noise_tile(cell_y: float, cell_x: float) -> Array:
    """Square tile of Gaussian noise with bumps of `cell_y` by `cell_x` pixels (0: white); always the same."""
    rng = np.random.default_rng([_TILE_SEED, int(cell_y * 100), int(cell_x * 100)])
    if cell_y == 0:
        tile = rng.standard_normal((_TILE_SIDE, _TILE_SIDE), dtype=np.float32)
    else:
        knots = (round(_TILE_SIDE / cell_y) + 1, round(_TILE_SIDE / cell_x) + 1)
        coarse = Image.fromarray(rng.standard_normal(knots, dtype=np.float32))
        tile = np.array(coarse.resize((_TILE_SIDE, _TILE_SIDE), Image.Resampling.BICUBIC))
    tile.flags.writeable = False
    return tile


def _cut_tile(dice: Dice, tile: Array, shape: tuple[int, int]) -> Array:
    """View (H, W) of the tile at a place and in an orientation drawn at random: cheaper than new noise."""
    height, width = shape
    top, left = dice.below(_TILE_SIDE - height), dice.below(_TILE_SIDE - width)
    cut = tile[top : top + height, left : left + width]
    turn = dice.below(4)
    return cut[:: 1 - 2 * (turn & 1), :: 1 - (turn & 2)]


def smooth_noise(dice: Dice, shape: tuple[int, int], cell_y: float, cell_x: float | None = None) -> Array:
    """Field (H, W) of Gaussian noise with bumps of about `cell_y` by `cell_x` pixels; unit variance at its knots."""
    return _cut_tile(dice, _noise_tile(float(cell_y), float(cell_y if cell_x is None else cell_x)), shape)


def white_noise(dice: Dice, shape: tuple[int, int]) -> Array:
    """Field (H, W) of independent Gaussian noise of unit variance, float32."""
    return _cut_tile(dice, _noise_tile(0.0, 0.0), shape)


def smoothstep(t: Array) -> Array:
    """Values of `t` clipped to [0, 1] and eased by 3 t^2 - 2 t^3."""
    t = np.maximum(t, 0.0)
    np.minimum(t, 1.0, out=t)
    eased = t * -2.0
    eased += 3.0
    eased *= t
    eased *= t
    return eased


def inside(distance: Array, edge: float) -> Array:
    """Coverage in [0, 1] of a shape given its signed distance (negative within), across an edge of `edge` pixels."""
    t = distance * (-1.0 / edge)
    t += 0.5
    if edge > _FEATHERED:
        return smoothstep(t)
    np.maximum(t, 0.0, out=t)
    np.minimum(t, 1.0, out=t)
    return t


def bump(q_squared: Array) -> Array:
    """Bell (1 - q^2)^2 of the squared radius; zero from q = 1 on. A Gaussian's look without the exponential."""
    rest = 1.0 - q_squared
    np.maximum(rest, 0.0, out=rest)
    rest *= rest
    return rest


def ellipse_q2(y: Array, x: Array, centre: Point, radii: Point, turn: float = 0.0) -> Array:
    """Squared elliptic radius (1 on the outline) about `centre` (y, x); `turn` is the slope of the axes."""
    dy, dx = y - centre[0], x - centre[1]
    per_y, per_x = radii[0] ** -2, radii[1] ** -2
    if not turn:
        return dy * dy * per_y + dx * dx * per_x
    norm = 1.0 / (1.0 + turn * turn)
    along_y = dy * dy * (norm * (per_y + turn * turn * per_x)) + 1e-6  # rounding must not make the sum negative
    q2 = along_y + dx * dx * (norm * (per_x + turn * turn * per_y))
    q2 += dy * (dx * (2.0 * norm * turn * (per_x - per_y)))
    return q2


def ellipse_distance(y: Array, x: Array, centre: Point, radii: Point, turn: float = 0.0) -> Array:
    """Approximate signed distance in pixels to an ellipse's outline, negative within."""
    distance = np.sqrt(ellipse_q2(y, x, centre, radii, turn))
    distance -= 1.0
    distance *= min(radii)
    return distance


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the image, as slices and as pixel-centre coordinates y (h, 1) and x (1, w)."""

    rows: slice
    cols: slice
    y: Array
    x: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window in pixels."""
        return self.y.shape[0], self.x.shape[1]

    def cut(self, field: Array) -> Array:
        """View of the field within the window."""
        return field[self.rows, self.cols]


def window(shape: tuple[int, int], centre: Point, reach_y: float, reach_x: float) -> Window:
    """The part of an image of `shape` (H, W) within `reach_y`, `reach_x` pixels of `centre` (y, x); at least 1 x 1."""
    height, width = shape[:2]
    y0 = min(max(int(centre[0] - reach_y), 0), height - 1)
    x0 = min(max(int(centre[1] - reach_x), 0), width - 1)
    y1 = min(max(int(centre[0] + reach_y) + 2, y0 + 1), height)
    x1 = min(max(int(centre[1] + reach_x) + 2, x0 + 1), width)
    y, x = axes(height, width)
    return Window(slice(y0, y1), slice(x0, x1), y[y0:y1], x[:, x0:x1])


def stamp_curve(field: Array, ys: Array, xs: Array, radii: Array, strength: Array | float = 1.0) -> None:
    """Raise `field` (H, W), in place, to `strength` along the points `ys`, `xs` (N,) with half-widths `radii` (N,)."""
    height, width = field.shape
    reach = int(max(float(radii.max()), _THINNEST) + 1.0)
    steps = np.arange(-reach, reach + 1)
    rows = np.floor(ys).astype(np.int64)[:, None] + steps  # (N, S)
    cols = np.floor(xs).astype(np.int64)[:, None] + steps  # (N, S)
    gap_y = (rows + 0.5 - ys[:, None]).astype(np.float32)
    gap_x = (cols + 0.5 - xs[:, None]).astype(np.float32)
    cover = np.sqrt((gap_y * gap_y)[:, :, None] + (gap_x * gap_x)[:, None, :])  # (N, S, S), the distance so far
    wide = np.maximum(radii, _THINNEST)  # a thinner line is drawn this wide but fainter: narrower ones would break up
    np.subtract((wide + 0.5).astype(np.float32)[:, None, None], cover, out=cover)
    np.minimum(cover, 1.0, out=cover)
    cover *= (radii / wide * strength).astype(np.float32)[:, None, None]
    is_row, is_col = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    keep = (cover > 0.0) & is_row[:, :, None] & is_col[:, None, :]
    places = (rows * width)[:, :, None] + cols[:, None, :]
    np.maximum.at(field.reshape(-1), places[keep], cover[keep])


@lru_cache(maxsize=1024)
def _bezier_weights(num_points: int, num_steps: int) -> tuple[Array, list[Array]]:
    """Parameter t (N,) and the weight (N,) of every control point of a quadratic or cubic Bezier curve."""
    t = np.arange(num_steps) / (num_steps - 1)
    s = 1.0 - t
    if num_points == 3:
        return t, [s * s, 2 * s * t, t * t]
    return t, [s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t]


def bezier(points: list[Point], step: float = 0.8) -> tuple[Array, Array, Array]:
    """Points ys, xs (N,) about `step` pixels apart on the quadratic or cubic Bezier curve, and its parameter t (N,)."""
    length = sum(((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5 for a, b in pairwise(points))
    t, weights = _bezier_weights(len(points), max(3, int(length / step)))
    ys, xs = (sum(weight * point[axis] for weight, point in zip(weights, points, strict=True)) for axis in (0, 1))
    return ys, xs, t


def tight_box(mask: Array) -> tuple[int, int, int, int] | None:
    """Smallest half-open box (x0, y0, x1, y1) in pixels that holds the mask (H, W) bool; None for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    cols = np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def film_tone(field: Array, gamma: float, black: float, white: float) -> Array:
    """Pixels (H, W) uint8: `field` through a film curve that maps `black`..`white` to 0..1 and raises it to `gamma`."""
    steps = [min(max((i / 127.0 - black) / (white - black), 0.0), 1.0) for i in range(128)]
    knots = np.array([255.0 * step**gamma for step in steps])
    table = np.interp(np.arange(1024) * (127.0 / 1023.0), np.arange(128), knots) + 0.5
    index = field * 1023.0
    np.maximum(index, 0.0, out=index)
    np.minimum(index, 1023.0, out=index)
    return table.astype(np.uint8)[index.astype(np.int16)]


def to_pixels(colours: Array) -> Array:
    """Pixels uint8 of a float field in [0, 1], clipped."""
    return (np.minimum(np.maximum(colours, 0.0), 1.0) * 255.0 + 0.5).astype(np.uint8)


def encode_png(pixels: Array) -> bytes:
    """PNG bytes of pixels (H, W) or (H, W, 3) uint8; mode L or RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1, compress_type=_ZLIB_RLE)
    return stream.getvalue()
