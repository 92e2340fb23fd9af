"""Which of a picture's measured values are shown as black to white: windows, and the named ones of CT.

A window is (center, width) in the picture's own units, for CT Hounsfield units (HU): center - width / 2 and everything
below is black, center + width / 2 and everything above white, linear between. One window gives a grey picture, three
its red, green and blue channel, in that order. Two are refused, for the third would be made up: name one twice.

Source of the presets: the typical values of Radiopaedia, "Windowing (CT)",
https://radiopaedia.org/articles/windowing-ct (W width, L centre): lungs W1500 L-600, mediastinum W350 L50, bone (of the
spine) W1800 L400, brain W80 L40, subdural W130-300 L50-100, abdominal soft tissues W400 L50. Of the two ranges of
"subdural" the middles are taken here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

WINDOW_PRESETS = {  # (center, width) in HU
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "subdural": (75.0, 215.0),
    "abdomen": (50.0, 400.0),
}
_FORMS = (
    f"a preset ({', '.join(WINDOW_PRESETS)}), (center, width) in the image's own units, or a list of one or three of "
    "these"
)


@dataclass(frozen=True, slots=True)
class IntensityWindow:
    """A window in the picture's own units; `preset` is its name where it was given by one, which means HU."""

    center: float
    width: float
    preset: str | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high): the values shown as black and as white."""
        return self.center - self.width / 2, self.center + self.width / 2


def list_windows(window: Any) -> tuple[IntensityWindow, ...]:
    """The windows that a user's `window` means: none for None, else one, or three for red, green and blue.

    Raises:
        ValueError: for an unknown preset, a width that is not positive, two windows or more than three, other things.
    """
    if window is None:
        return ()
    if isinstance(window, str) or _is_pair(window):
        return (_one_window(window),)
    if not isinstance(window, (Sequence, np.ndarray)) or isinstance(window, bytes):
        raise ValueError(f"window {window!r} is not known; it must be {_FORMS}.")
    if len(window) not in (1, 3):
        raise ValueError(
            f"window {window!r} holds {len(window)} windows; one gives a grey picture, three its red, green and blue "
            "channel. Of two, name one twice."
        )
    return tuple(_one_window(one) for one in window)


def plain_windows(window: Any) -> Any:
    """The same windows as JSON holds them: None, a name, [center, width], or a list of names and pairs."""
    windows = list_windows(window)
    plain = [one.preset or [one.center, one.width] for one in windows]
    return None if not plain else plain[0] if len(plain) == 1 else plain


def refuse_presets(windows: Sequence[IntensityWindow], item: str, reason: str) -> None:
    """Nothing, or a ValueError if one of the windows is a preset: `item` has no Hounsfield units, for `reason`."""
    for window in windows:
        if window.preset is not None:
            numbers = f"({window.center:g}, {window.width:g})"
            raise ValueError(
                f"{item}: window {window.preset!r} is one of CT, in Hounsfield units, but {reason}. If its values are "
                f"Hounsfield units all the same, give the numbers, window={numbers}; else a window in its own units."
            )


def show_through(values: np.ndarray, windows: Sequence[IntensityWindow]) -> np.ndarray:
    """uint8 levels of the values: (...) seen through one window, (..., 3) through three."""
    channels = [linear_levels(values, *window.limits) for window in windows]
    return channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)


def linear_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of the same shape: `low` and all below 0, `high` and all above 255, linear between, rounded.

    A range without extent, `low` = `high`, is all black.
    """
    if high <= low:
        return np.zeros(np.shape(values), dtype=np.uint8)
    return unit_levels((np.asarray(values, dtype=np.float64) - low) / (high - low))


def unit_levels(shares: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: 0 and all below black, 1 and all above white."""
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def range_levels(values: np.ndarray) -> np.ndarray:
    """uint8 of the same shape, from the values' minimum, black, to their maximum; a constant is black."""
    return linear_levels(values, float(values.min()), float(values.max()))


def picture_of(levels: np.ndarray) -> Image.Image:
    """The uint8 levels (H, W) as a PIL image of mode "L", (H, W, 3) as "RGB"."""
    return Image.fromarray(np.ascontiguousarray(levels))


def _is_pair(window: Any) -> bool:
    """Whether this is (center, width): two numbers."""
    is_listed = isinstance(window, (Sequence, np.ndarray)) and not isinstance(window, (str, bytes))
    return is_listed and len(window) == 2 and all(isinstance(number, Real) for number in window)


def _one_window(window: Any) -> IntensityWindow:
    """One preset or pair."""
    if isinstance(window, str):
        if window not in WINDOW_PRESETS:
            raise ValueError(f"window {window!r} is not known; it must be {_FORMS}.")
        return IntensityWindow(*WINDOW_PRESETS[window], preset=window)
    if not _is_pair(window):
        raise ValueError(f"window {window!r} is not known; it must be {_FORMS}.")
    center, width = (float(number) for number in window)
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise ValueError(
            f"window {window!r} has center {center:g} and width {width:g}; both must be finite, the width above 0. "
            "It is (center, width), not (low, high)."
        )
    return IntensityWindow(center, width)
