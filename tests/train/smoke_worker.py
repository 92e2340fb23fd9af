"""The smoke recipe as train/pretrain.py trains it, watched or disturbed; no evaluation follows.

Usage: smoke_worker.py gradients|unreadable ARGUMENTS OF TRAIN/PRETRAIN.PY
`gradients` keeps those of the first step in OUTPUT_DIR/first_gradients.safetensors; `unreadable` has the second process
meet a sample that it cannot read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from safetensors.torch import save_file

from regionmed_clip.train.arguments import parse_command_line
from regionmed_clip.train.failures import failing_together
from regionmed_clip.train.frame_store import FrameStore
from regionmed_clip.train.launch import leave
from regionmed_clip.train.pretraining import pretrain
from regionmed_clip.train.training_step import TrainingStep

take_step, read_samples = TrainingStep.run, FrameStore.samples


def keep_first_gradients(output_dir: Path) -> None:
    def run(self: TrainingStep, batches, step: int):
        outcome = take_step(self, batches, step)
        if step == 0 and self.accelerator.is_main_process:
            gradients = {name: value.grad for name, value in self.stage_model.trained_parameters()}
            save_file(gradients, output_dir / "first_gradients.safetensors")
        return outcome

    TrainingStep.run = run


def lose_a_sample() -> None:
    calls = []

    def samples(self: FrameStore, indices: Sequence[int]):
        calls.append(indices)
        if PartialState().process_index == 1 and len(calls) > 3:
            raise OSError("sample-17 cannot be read")
        return read_samples(self, indices)

    FrameStore.samples = samples


if __name__ == "__main__":
    with failing_together():
        command_line = parse_command_line(sys.argv[2:])
        if sys.argv[1] == "gradients":
            keep_first_gradients(command_line.output_dir)
        else:
            lose_a_sample()
        leave(pretrain(command_line).accelerator)
