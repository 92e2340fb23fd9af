"""Several processes that meet over this machine's loopback interface, as a launcher would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_processes(script: Path, num_processes: int, *arguments: str, timeout_s: int = 240) -> list[tuple[int, str]]:
    """(exit code, all that it wrote) of every process of `python SCRIPT ARGUMENTS`, by rank."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(num_processes)
    ]  # fmt: skip
    deadline = time.monotonic() + timeout_s
    try:
        outputs = [process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] for process in processes]
    except subprocess.TimeoutExpired as error:
        for process in processes:
            process.send_signal(signal.SIGABRT)  # the fault handler then writes where it hangs
        outputs = [process.communicate()[0] for process in processes]
        raise AssertionError(f"not done after {timeout_s} s:\n" + "\n".join(outputs)) from error
    return [(process.returncode, output) for process, output in zip(processes, outputs)]
