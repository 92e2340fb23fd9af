"""What a person sees of a run: a live line on a terminal, and plain lines now and then where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .stage_plan import StagePlan

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.5
SMOOTHING = 0.1  # weight of the newest step in the mean speed


@dataclass(frozen=True)
class ShownStep:
    """What is shown of one step."""

    step: int
    stage: str
    loss: float | None
    samples_per_s: float
    wait_share: float


class RemainingTime:
    """An estimate of how long the rest of the run takes, by the images that all its stages still show.

    The speed is that of the last steps, pauses for checkpoints and validation included.
    """

    def __init__(self, plans: Sequence[StagePlan], step: int, now_s: float):
        self._plans = plans
        self._last = self._images_left(step), now_s
        self._seconds_per_image: float | None = None

    def after(self, step: int, now_s: float) -> float:
        """Seconds left after `step`, at the time `now_s`."""
        left, (left_before, before_s) = self._images_left(step), self._last
        newest = (now_s - before_s) / max(left_before - left, 1)
        known = self._seconds_per_image
        self._seconds_per_image = newest if known is None else known + SMOOTHING * (newest - known)
        self._last = left, now_s
        return left * self._seconds_per_image

    def _images_left(self, step: int) -> int:
        return sum(
            plan.position(plan.last_step) - plan.position(max(step, plan.first_step))
            for plan in self._plans
            if step < plan.last_step
        )


def format_duration(seconds: float) -> str:
    """ "42 s", "3 min 5 s" or "2 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def is_live_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor; FORCE_COLOR and the like make no file into one."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class RunProgress:
    """Shows the steps of a run; on a terminal by one line that is drawn anew, else by a line every ten seconds."""

    def __init__(self, title: str, plans: Sequence[StagePlan], first_step: int, stream: TextIO | None = None):
        self._title = title
        self._num_steps = plans[-1].last_step
        self._stream = sys.stderr if stream is None else stream
        self._remaining = RemainingTime(plans, first_step, time.monotonic())
        self._shown_at = -float("inf")
        self._last: tuple[ShownStep, float] | None = None  # that was not shown yet, with the seconds left
        self._live = self._build_live(first_step) if is_live_terminal(self._stream) else None

    def show(self, shown: ShownStep) -> None:
        """Takes in a step, and shows it if the last one shown is old enough."""
        now = time.monotonic()
        self._last = shown, self._remaining.after(shown.step, now)
        interval = PLAIN_INTERVAL_S if self._live is None else LIVE_INTERVAL_S
        if now - self._shown_at >= interval:
            self._shown_at = now
            self._draw()

    def close(self) -> None:
        """Shows the last step, if it was not shown, and leaves the terminal as it was."""
        self._draw()
        if self._live is not None:
            self._live.stop()

    def _draw(self) -> None:
        if self._last is None:
            return
        (shown, left_s), self._last = self._last, None
        loss = "-" if shown.loss is None else f"{shown.loss:.3f}"
        left = format_duration(left_s)
        if self._live is None:
            self._stream.write(
                f"{self._title}: stage {shown.stage}, step {shown.step} of {self._num_steps}, loss {loss}, "
                f"{shown.samples_per_s:.1f} samples/s, {shown.wait_share:.0%} waiting for data, {left} left\n"
            )
            self._stream.flush()
            return
        fields = {"stage": shown.stage, "loss": loss, "speed": f"{shown.samples_per_s:.1f}", "left": left}
        self._live.update(self._live.task_ids[0], completed=shown.step, wait=f"{shown.wait_share:.0%}", **fields)
        self._live.refresh()

    def _build_live(self, first_step: int) -> Progress:
        """The line on a terminal; drawn from here alone: a thread of its own would not survive a loader's fork."""
        live = Progress(
            TextColumn("{task.description}"),
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("loss [bold]{task.fields[loss]}"),
            TextColumn("{task.fields[speed]} samples/s"),
            TextColumn("{task.fields[wait]} waiting"),
            TextColumn("{task.fields[left]} left"),
            console=Console(file=self._stream),
            auto_refresh=False,
        )
        fields = dict.fromkeys(("stage", "loss", "speed", "wait", "left"), "-")
        live.add_task(self._title, total=self._num_steps, completed=first_step, **fields)
        live.start()
        return live
