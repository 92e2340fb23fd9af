"""One rank of `test_processes.py`: takes a step of tiny_steps.py and leaves what it found in a folder.

Usage: step_worker.py FOLDER MICRO_BATCH_SIZE(0: one pass) plain|sharded
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_steps import counts_and_losses, take_step, tiny_stage

from regionmed_clip.train.arguments import RECIPES_FOLDER
from regionmed_clip.train.gather import whole_tensor
from regionmed_clip.train.moving_average import MovingAverage
from regionmed_clip.train.prepared import (
    PreparedStage,
    full_optimizer_state,
    full_state_dict,
    load_full_optimizer_state,
)
from regionmed_clip.train.recipe_parts import Optimizer
from regionmed_clip.train.stages import build_optimizer

FSDP2_CONFIG = RECIPES_FOLDER.parent / "accelerate" / "fsdp2.yaml"


class ShardingAccelerator(Accelerator):
    """Shards as one configured for FSDP2 does, which Accelerate itself does on accelerators alone."""

    is_fsdp2 = True


def fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """What `accelerate launch` with our configuration would tell every process."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FSDP2_CONFIG), "train/pretrain.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    os.environ.update({name: value for name, value in prepare_multi_gpu_env(arguments).items() if "FSDP" in name})
    return FullyShardedDataParallelPlugin()


def expect_states_to_survive(prepared: PreparedStage) -> None:
    """The optimiser's and the average's states are whole when written, and come back whatever holds the parameters."""
    optimizer = build_optimizer(prepared.trained_parameters(), tiny_stage(), Optimizer())
    optimizer.step()
    average = MovingAverage(prepared.model, decay=0.9)
    average.update()
    written, averaged = full_optimizer_state(optimizer), average.state()
    sizes = sorted(value.numel() for _, value in prepared.trained_parameters())
    assert sorted(moments["exp_avg"].numel() for moments in written["state"].values()) == sizes
    optimizer.step()
    load_full_optimizer_state(optimizer, written)
    again = full_optimizer_state(optimizer)["state"]
    for place, moments in written["state"].items():
        assert all(torch.equal(again[place][name], value) for name, value in moments.items())
    average.update()
    average.load(averaged, num_updates=1)
    assert all(torch.equal(average.state()[name], value) for name, value in averaged.items())


def main(folder: Path, micro_batch_size: int, is_sharded: bool) -> None:
    torch.set_num_threads(1)
    accelerator = (ShardingAccelerator if is_sharded else Accelerator)(cpu=True)
    if is_sharded:
        accelerator.state.fsdp_plugin = fsdp_plugin()
    outcome, prepared = take_step(accelerator, micro_batch_size or None)
    gradients = {name: whole_tensor(value.grad).contiguous() for name, value in prepared.trained_parameters()}
    weights = {name: value.contiguous() for name, value in full_state_dict(prepared.model).items()}
    given_back = prepared.give_back()
    for again in (given_back, PreparedStage(given_back, accelerator).give_back()):  # for the next stage
        assert all(torch.equal(again.state_dict()[name], value) for name, value in weights.items())
    num_own = sum(getattr(value, "_local_tensor", value).numel() for _, value in prepared.trained_parameters())
    if accelerator.is_main_process:
        save_file(gradients, folder / "gradients.safetensors")
        save_file(weights, folder / "weights.safetensors")
        facts = {"terms": counts_and_losses(outcome), "norm": outcome.gradient_norm.item(), "num_own": num_own}
        facts["num_processes"] = accelerator.num_processes
        (folder / "facts.json").write_text(json.dumps(facts))
    expect_states_to_survive(prepared)
    accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort at random in a normal exit


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "sharded")
