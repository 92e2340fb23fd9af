"""Windows: what a user may write, which values become black and white, what is refused."""

import json

import numpy as np
import pytest

from regionmed_clip.processing.intensity_windows import (
    WINDOW_PRESETS,
    IntensityWindow,
    linear_levels,
    list_windows,
    plain_windows,
    show_through,
)


def test_the_presets_are_the_published_centres_and_widths():
    assert WINDOW_PRESETS == {
        "lung": (-600, 1500),
        "mediastinum": (50, 350),
        "bone": (400, 1800),
        "brain": (40, 80),
        "subdural": (75, 215),  # the middles of L50-100 and W130-300
        "abdomen": (50, 400),
    }


def test_the_brain_window_is_black_at_0_and_white_at_80():
    values = np.array([-1000, 0, 20, 40, 60, 80, 3000])
    np.testing.assert_array_equal(show_through(values, list_windows("brain")), [0, 0, 64, 128, 191, 255, 255])


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (None, []),
        ("lung", [(-600, 1500, "lung")]),
        ((40, 80), [(40, 80, None)]),
        ([40.5, 80], [(40.5, 80, None)]),
        (np.array([40, 80]), [(40, 80, None)]),
        ((np.int16(40), np.float32(80)), [(40, 80, None)]),
        (["lung"], [(-600, 1500, "lung")]),
        ([(40, 80)], [(40, 80, None)]),
        (["bone", (40, 80), "lung"], [(400, 1800, "bone"), (40, 80, None), (-600, 1500, "lung")]),
    ],
)
def test_a_window_is_a_preset_a_pair_or_a_list_of_one_or_three(window, expected):
    assert list_windows(window) == tuple(IntensityWindow(*one) for one in expected)
    plain = json.loads(json.dumps(plain_windows(window)))
    assert list_windows(plain) == list_windows(window)


def test_three_windows_are_the_three_channels_in_order():
    values = np.array([[-1350.0, 0.0], [40.0, 1300.0]])
    shown = show_through(values, list_windows(["lung", "brain", "bone"]))
    assert shown.shape == (2, 2, 3)
    for channel, name in enumerate(("lung", "brain", "bone")):
        np.testing.assert_array_equal(shown[..., channel], show_through(values, list_windows(name)))


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ("lungs", "'lungs' is not known; it must be a preset .lung, mediastinum, bone, brain, subdural, abdomen."),
        (["lung", "bone"], "holds 2 windows.*Of two, name one twice"),
        (["lung"] * 4, "holds 4 windows"),
        ([], "holds 0 windows"),
        ((40, 0), "width 0; both must be finite, the width above 0.*not .low, high."),
        ((40, -80), "width -80"),
        ((float("nan"), 80), "center nan"),
        ((40, float("inf")), "width inf"),
        (40, "window 40 is not known"),
        ((1, 2, 3), "window 1 is not known"),
        ([("lung", 3), "bone", "brain"], r"window \('lung', 3\) is not known"),
        (b"lung", "window b'lung' is not known"),
        ({"center": 40, "width": 80}, "is not known"),
    ],
)
def test_what_is_no_window_is_refused_with_the_forms_it_may_have(window, words):
    with pytest.raises(ValueError, match=words):
        list_windows(window)


def test_levels_are_linear_rounded_and_clipped_and_an_empty_range_is_black():
    np.testing.assert_array_equal(linear_levels(np.array([-1, 0, 1, 2, 3]), 0.0, 2.0), [0, 0, 128, 255, 255])
    np.testing.assert_array_equal(linear_levels(np.array([5, 5]), 5.0, 5.0), [0, 0])
