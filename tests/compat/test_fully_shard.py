"""The model trains under raw FSDP2 (`torch.distributed.fsdp.fully_shard`), every parameter sharded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("fully_shard_worker.py")
NUM_PROCESSES = 2


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_a_step_of_sharded_parameters_is_the_step_of_whole_ones():
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(NUM_PROCESSES)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(NUM_PROCESSES)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES, outputs
    found = json.loads(outputs[0][0])
    assert found["all_sharded"]
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-5)  # float32
    assert found["distance"] < 1e-5
