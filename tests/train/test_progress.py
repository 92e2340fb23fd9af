"""What a person sees of a run: plain lines without a terminal, one line drawn anew on one, and an honest estimate."""

from __future__ import annotations

import io
import re

import pytest

from regionmed_clip.train import progress
from regionmed_clip.train.progress import RemainingTime, RunProgress, ShownStep, format_duration, is_live_terminal
from regionmed_clip.train.recipe_parts import Stage
from regionmed_clip.train.stage_plan import StagePlan

PLANS = [
    StagePlan(0, Stage(name="global", steps=10, global_batch_size=4), 0, 0),
    StagePlan(1, Stage(name="joint", steps=5, global_batch_size=8), 10, 40),
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A list whose one number is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(step: int) -> ShownStep:
    return ShownStep(step, "global" if step <= 10 else "joint", 2.5, 123.456, 0.071)


def test_without_a_terminal_there_is_a_plain_line_every_ten_seconds_and_one_at_the_end(clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # asks rich for colours; a log file stays plain
    stream = io.StringIO()
    watched = RunProgress("quickstart", PLANS, 0, stream)
    for step in range(1, 16):
        clock[0] += 2.0
        watched.show(shown(step))
    watched.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "quickstart: stage global, step 1 of 15, loss 2.500, 123.5 samples/s, 7% waiting for data, 38 s left"
    )
    assert [int(re.search(r"step (\d+)", line).group(1)) for line in lines] == [1, 6, 11, 15]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_a_step_that_was_shown_is_not_shown_again_at_the_end(clock):
    stream = io.StringIO()
    watched = RunProgress("quickstart", PLANS, 0, stream)
    watched.show(shown(1))
    watched.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_on_a_terminal_one_line_is_drawn_anew_at_most_twice_a_second(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(progress, "is_live_terminal", lambda stream: True)
    watched = RunProgress("quickstart", PLANS, 0, stream)
    drawn = []
    for step in range(1, 11):
        clock[0] += 0.125
        before = len(stream.getvalue())
        watched.show(shown(step))
        drawn.append(len(stream.getvalue()) > before)
    watched.close()
    assert drawn == [step in (1, 5, 9) for step in range(1, 11)]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for part in ("quickstart", "global", "10/15", "2.500"):
        assert part in text


def test_only_a_terminal_that_moves_its_cursor_is_live(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert is_live_terminal(Terminal())
    assert not is_live_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live_terminal(Terminal())


def test_the_time_left_counts_the_images_of_all_stages():
    remaining = RemainingTime(PLANS, 0, 0.0)  # 10 steps of 4 images, 5 of 8: 80 images
    assert remaining.after(1, 2.0) == pytest.approx(76 * 0.5)  # 4 images in 2 s
    assert remaining.after(2, 4.0) == pytest.approx(72 * 0.5)
    # the next step is twice as slow, which moves the mean by a tenth of the difference
    assert remaining.after(3, 8.0) == pytest.approx(68 * 0.55)
    assert RemainingTime(PLANS, 10, 0.0).after(11, 8.0) == pytest.approx(32 * 1.0)  # resumed in the second stage
    assert RemainingTime(PLANS, 14, 0.0).after(15, 1.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599.9, "1 h 0 min"), (7620, "2 h 7 min")]
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text
