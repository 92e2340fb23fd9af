"""Work shared by the processes of a launch: each takes every so-manieth batch, and all get the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

Item = TypeVar("Item")
LONGEST_WAIT = timedelta(hours=24)  # while the main process draws, hashes or reports, which others do not


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's; without arguments, all of it.

    Every process of a launch goes through the same calls in the same order; one that left some out would keep the
    others waiting. Process 0 is the main one.

    Attributes:
        index, num_processes: this process, of how many.
    """

    index: int = 0
    num_processes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.index == 0

    def own(self, batches: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """(number, batch) of those that are this process's."""
        for number, batch in enumerate(batches):
            if self.is_own(number):
                yield number, batch

    def is_own(self, number: int) -> bool:
        """Whether the batch of that number is this process's."""
        return number % self.num_processes == self.index

    def join(self, parts: list[tuple[int, Item]]) -> list[Item]:
        """What all processes made of their batches, in the order of the batches; `parts`: (number, made of it)."""
        if self.num_processes > 1:
            parts = gather_object(parts)
        return [part for _, part in sorted(parts, key=lambda numbered: numbered[0])]

    def from_main(self, make: Callable[[], Item]) -> Item:
        """What `make` gives back on the main process, on every process; only the main one calls it."""
        if self.num_processes == 1:
            return make()
        made = [make() if self.is_main else None]
        broadcast_object_list(made)
        return made[0]


ALONE = Share()


def join_launch(device: str = "auto") -> tuple[Share, torch.device]:
    """(this process's share under `accelerate launch`, all of it where there is no launch; where it computes).

    Args:
        device: of torch; "auto": the accelerator that Accelerate gives this process, else the CPU.
    """
    if device == "auto":
        is_of_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    else:
        is_of_cpu = torch.device(device).type == "cpu"
    state = PartialState(cpu=is_of_cpu, timeout=LONGEST_WAIT)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise ValueError(
            f"{started} processes were started and {state.num_processes} can work together; each would measure all. "
            "Launch with train/accelerate/cpu_2_processes.yaml as an example, or start one process."
        )
    return Share(state.process_index, state.num_processes), state.device if device == "auto" else torch.device(device)
