"""Places that exclude each other: upper and lower zone, the segments of an organ, the corners of an image.

There is no list of all places. A place is read as a value on one of a few axes (`_AXES`: a pattern and the values that
exclude each other) in words of its own, "upper" in "* zone"; another place is the same words with another value. So the
vocabulary of a record's other places follows from its own place, for every source, without anything being collected.
A place that no axis reads, such as "macula", has no other place and excludes none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from regionmed_clip.processing.corpus.captions import is_image_place

_SIDES = re.compile(r"\b(left|right)\b")
_OPPOSITE_IN_IMAGE = {"upper": "lower", "lower": "upper", "top": "bottom", "bottom": "top", "left": "right"}
_OPPOSITE_IN_IMAGE |= {"right": "left"}
_SYNONYMS = {"mid": "middle", "top": "upper", "bottom": "lower"}


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values that exclude each other where `pattern` finds one of them (its whole match)."""

    pattern: re.Pattern[str]
    values: tuple[str, ...]


def _axis(values: str, before: str = r"\b", after: str = r"\b") -> _Axis:
    """The axis of the values, a text that lists them with "|"; only where they stand after and before something."""
    return _Axis(re.compile(f"{before}({values}){after}"), tuple(values.split("|")))


_AXES = (  # the first that finds a value reads the place
    _Axis(re.compile(r"(?<=segment )\d+[a-z]?\b"), tuple(str(number) for number in range(1, 9))),  # Couinaud's of liver
    _axis("superotemporal|inferotemporal|superonasal|inferonasal"),
    _axis("upper outer|upper inner|lower outer|lower inner"),
    _axis("superior|inferior|nasal|temporal", after=r"(?= (quadrant|arcade|sector|retina)\b)"),
    _axis("frontal|parietal|temporal|occipital", after=r"(?= (lobe|region|area|bone)\b)"),
    _Axis(
        re.compile(r"\b(upper|middle|mid|lower)\b(?= (lung )?(zone|lobe|third|field)\b)"), ("upper", "middle", "lower")
    ),
    *(_axis(values) for values in ("upper|lower", "superior|inferior", "anterior|posterior", "medial|lateral")),
    *(_axis(values) for values in ("inner|outer", "proximal|distal", "apical|basal", "apex|base", "nasal|temporal")),
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A place as one value of an axis in words of its own; `words` has "*" for the value and names no side."""

    axis: _Axis
    value: str
    words: str


@lru_cache(maxsize=4096)
def other_places(place: str, side: str | None = None) -> tuple[str, ...]:
    """Places that exclude `place`, in its own words; () for a place that no axis reads.

    Args:
        place: in lower case, as a record states it.
        side: the patient's side on which it is, if known: only a right lung has a middle lobe.
    """
    if is_image_place(place):
        return _other_image_places(place)
    reading = _read(place)
    if reading is None:
        return ()
    values = [value for value in reading.axis.values if _is_other(value, reading.value)]
    places = [reading.axis.pattern.sub(value, place, count=1) for value in values]
    has_middle_lobe = (side or next(iter(_SIDES.findall(place)), None)) == "right"
    return tuple(other for other in places if has_middle_lobe or "middle lobe" not in other)


@lru_cache(maxsize=8192)
def exclude_each_other(first: str, second: str) -> bool:
    """True where nothing can lie in both places; False where they may overlap or cannot be compared.

    The side within a place ("left lower lobe") is not compared here: it is the laterality.
    """
    if is_image_place(first) or is_image_place(second):
        return _are_opposite_in_image(first, second)
    one, other = _read(first), _read(second)
    if one is None or other is None:
        return False
    return one.axis is other.axis and one.words == other.words and _is_other(one.value, other.value)


def _read(place: str) -> _Reading | None:
    """The reading of a place that is not one in the image frame, or None."""
    for axis in _AXES:
        found = axis.pattern.search(place)
        if found:
            value = found.group()
            words = _SIDES.sub("", f"{place[: found.start()]}*{place[found.end() :]}")
            return _Reading(axis, value, " ".join(words.split()))
    return None


def _is_other(first: str, second: str) -> bool:
    """True for two values that exclude each other; "4a" and "4" do not."""
    return _plain(first) != _plain(second)


def _plain(value: str) -> str:
    return value.rstrip("abcdefgh") if value[:1].isdigit() else _SYNONYMS.get(value, value)


def _other_image_places(place: str) -> tuple[str, ...]:
    """ "upper left" -> "lower left", "upper right", "lower right"; a centre has no opposite."""
    words = place.split()
    flips = [index for index, word in enumerate(words) if word in _OPPOSITE_IN_IMAGE]
    choices = [flips[:1], flips[1:], flips] if len(flips) > 1 else [flips]
    return tuple(
        " ".join(_OPPOSITE_IN_IMAGE[word] if index in flipped else word for index, word in enumerate(words))
        for flipped in choices
        if flipped
    )


def _are_opposite_in_image(first: str, second: str) -> bool:
    """True for two places in the image frame on opposite sides of its middle."""
    if not (is_image_place(first) and is_image_place(second)):
        return False
    words = {_SYNONYMS.get(word, word) for word in second.split()}
    plain = (_SYNONYMS.get(word, word) for word in first.split())
    return any(_OPPOSITE_IN_IMAGE.get(word) in words for word in plain)
