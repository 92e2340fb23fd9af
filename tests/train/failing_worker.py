"""One process of `test_failures.py`: all meet, then fail as they are told to. Usage: failing_worker.py CASE"""

from __future__ import annotations

import sys
import time

import torch.distributed as dist

from regionmed_clip.train.failures import failing_together, watch_others


def run(case: str, rank: int) -> None:
    if case == "mistake":
        raise ValueError("steps is 0; it must be at least 1.")
    if rank == 1:
        raise OSError("sample-17 cannot be read")
    time.sleep(3600)  # in no exchange of gloo's, which would notice: as under NCCL in one that never ends


if __name__ == "__main__":
    with failing_together():
        dist.init_process_group("gloo")
        watch_others()
        dist.barrier()
        run(sys.argv[1], dist.get_rank())
