"""How a run starts and ends on its processes: their number, their threads, the folder they share, a clean exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from .arguments import CommandLine, Recipe
from .checkpoint import list_checkpoints
from .failures import watch_others

RUNS_FOLDER = Path("runs")
MAIN_PROCESS_TIME = timedelta(hours=24)  # others wait while the main process prepares images or evaluates
WORKING_LAUNCH = (
    "accelerate launch --config_file train/accelerate/cpu_2_processes.yaml --num_processes N train/pretrain.py ..."
)


def start_accelerator(precision: str, *, has_unused_parameters: bool = False) -> Accelerator:
    """The processes of a run, met and watched: one that fails stops the others.

    Args:
        precision: of `resolve_precision`.
        has_unused_parameters: whether a step may leave some of the trained parameters without a gradient.

    Raises:
        ValueError: for a way of sharding that no trainer here knows.
    """
    settle_network()
    replication = DistributedDataParallelKwargs(
        find_unused_parameters=has_unused_parameters,
        gradient_as_bucket_view=True,  # gradients lie in memory once, not twice
    )
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=MAIN_PROCESS_TIME), replication],
    )
    watch_others()
    check_strategy(accelerator)
    return accelerator


def use_all_cores(accelerator: Accelerator) -> None:
    """On a CPU gives every process its share of the cores; `accelerate launch` alone would give it one thread."""
    if accelerator.device.type == "cpu":
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, num_cores // accelerator.num_processes))


def leave(accelerator: Accelerator, exit_code: int = 0) -> None:
    """Ends every process together and at once: torch's gloo threads abort at random in a normal exit."""
    accelerator.wait_for_everyone()
    accelerator.end_training()
    sys.stdout.flush()
    sys.stderr.flush()
    if accelerator.num_processes > 1 or exit_code:
        os._exit(exit_code)


def settle_network() -> None:
    """Lets processes of one machine meet on its loopback interface, whatever its name resolves to."""
    if "WORLD_SIZE" in os.environ and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def check_processes(recipe: Recipe, num_processes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raises a ValueError if another number of processes started than the recipe or the launcher was asked for."""
    check_number_of_processes(recipe.name, recipe.num_processes, num_processes, environment)
    for stage in recipe.settled().stages:
        where = f"recipe {recipe.name!r}: stage {stage.name!r}"
        check_sharing(where, stage.global_batch_size, num_processes)


def check_number_of_processes(
    recipe_name: str, asked: int | None, num_processes: int, environment: Mapping[str, str] = os.environ
) -> None:
    """Raises a ValueError if another number of processes started than the recipe or the launcher was asked for."""
    is_told_of_others = environment.get("MASTER_ADDR") == "127.0.0.1" and "MASTER_PORT" in environment
    has_launcher_lost_some = num_processes == 1 and is_told_of_others and "WORLD_SIZE" not in environment
    if has_launcher_lost_some or int(environment.get("WORLD_SIZE", num_processes)) != num_processes:
        raise ValueError(
            f"the launcher was asked for several processes, and {num_processes} started alone; on a CPU `accelerate "
            f"launch --cpu --num_processes N` does that without a word. This works: {WORKING_LAUNCH}"
        )
    if asked is not None and asked != num_processes:
        raise ValueError(
            f"recipe {recipe_name!r} asks for num_processes={asked}, and {num_processes} started. "
            f"This works on a CPU, with N = {asked}: {WORKING_LAUNCH}"
        )


def check_sharing(where: str, global_batch_size: int, num_processes: int) -> None:
    """Raises a ValueError for a global batch that the processes cannot share out evenly."""
    if global_batch_size % num_processes:
        raise ValueError(
            f"{where} has global_batch_size={global_batch_size}, which {num_processes} processes do not divide; "
            "change one of them."
        )


def check_strategy(accelerator: Accelerator) -> None:
    """Raises a ValueError for a way of sharing the model over processes that this trainer does not know."""
    way = (
        "train/accelerate has configurations that work: multi_gpu_ddp.yaml replicates the model, fsdp2.yaml shards it."
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ValueError(
            f"Accelerate is configured for {accelerator.distributed_type.value}; it must be one process, DDP, "
            f"or FSDP with fsdp_version: 2. {way}"
        )
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.activation_checkpointing:
        raise ValueError(
            "Accelerate is configured with fsdp_activation_checkpointing, which renames the parameters and so must be "
            "off; for less memory set batch_size_per_device in the recipe."
        )


def agree_on_output_dir(command_line: CommandLine, accelerator: Accelerator) -> Path:
    """The run's folder, chosen (and created) by the main process and told to the others."""
    chosen: list[Path | None] = [None]
    if accelerator.is_main_process:
        chosen = [choose_output_dir(command_line.output_dir, command_line.recipe.name, command_line.resume)]
        chosen[0].mkdir(parents=True, exist_ok=True)
    broadcast_object_list(chosen)
    return chosen[0]


def choose_output_dir(asked: Path | None, recipe_name: str, resume: bool, runs_folder: Path = RUNS_FOLDER) -> Path:
    """The folder asked for; without one, runs/RECIPE, numbered on where it is taken, or the newest one to resume.

    Raises:
        ValueError: if the folder asked for holds a run and `resume` is off.
    """
    if asked is not None and asked.exists() and not asked.is_dir():
        raise ValueError(f"--output_dir {str(asked)!r} is a file; name a folder, which need not exist yet.")
    if asked is not None:
        if not resume and ((asked / "metrics.jsonl").exists() or list_checkpoints(asked / "checkpoints")):
            raise ValueError(
                f"--output_dir {str(asked)!r} already holds a run; add --resume to go on with it, or name "
                "another folder."
            )
        return asked
    candidates = [runs_folder / recipe_name]
    while candidates[-1].exists():
        candidates.append(runs_folder / f"{recipe_name}-{len(candidates) + 1}")
    return candidates[-2] if resume and len(candidates) > 1 else candidates[-1]
