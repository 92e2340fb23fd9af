"""One rank of `test_fully_shard.py`: a training step under FSDP2, compared with the same step in one piece."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_models import tiny_batch, tiny_model


def trained_one_step(model: torch.nn.Module) -> float:
    """The loss before the step, which changes the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**tiny_batch(), return_loss=True).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def prepared_model() -> torch.nn.Module:
    model = tiny_model().train()
    torch.nn.init.constant_(model.region_fusion.alpha, 0.1)
    return model


def main() -> None:
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    sharded, whole = prepared_model(), prepared_model()
    for module in sharded.modules():
        if type(module).__name__ in sharded._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    losses = [trained_one_step(sharded), trained_one_step(whole)]
    distance = 0.0
    for parameter, expected in zip(sharded.parameters(), whole.parameters(), strict=True):
        distance = max(distance, (parameter.detach().full_tensor() - expected.detach()).abs().max().item())
    if rank == 0:
        all_sharded = all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        sys.stdout.write(json.dumps({"losses": losses, "distance": distance, "all_sharded": all_sharded}))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # the teardown of gloo aborts at random


if __name__ == "__main__":
    main()
