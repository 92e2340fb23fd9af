"""The time of a training is what its own rows say."""

from __future__ import annotations

import pytest

from regionmed_clip.train.metrics_log import seconds_of_steps

ROWS = [
    {"stage": "global", "samples_per_s": 16.0},
    {"stage": "global", "samples_per_s": 32.0},
    {"stage": "joint", "samples_per_s": 4.0},
]


def test_the_time_of_the_steps_is_images_by_speed():
    assert seconds_of_steps(ROWS, {"global": 64, "joint": 8}) == pytest.approx(4 + 2 + 2)


def test_a_time_that_is_not_known_of_all_steps_is_not_told():
    assert seconds_of_steps([], {"global": 64}) is None
    assert seconds_of_steps([*ROWS, {"stage": "joint", "samples_per_s": 0.0}], {"global": 64, "joint": 8}) is None
