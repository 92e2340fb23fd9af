"""Loss and gradients do not depend on how many processes share the global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regionmed_clip.train.gather import text_fingerprints

WORKER = Path(__file__).with_name("gather_worker.py")


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_workers(num_processes: int) -> dict:
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(num_processes)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(num_processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * num_processes, outputs
    return json.loads(outputs[0][0])


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_give_the_loss_and_gradients_of_one(num_processes):
    alone, together = run_workers(1), run_workers(num_processes)
    assert alone["losses"].keys() >= {"image_text", "region_text", "proposals", "region_distillation"}
    for name, (loss, *counts) in alone["losses"].items():
        assert together["losses"][name][1:] == counts
        assert together["losses"][name][0] == pytest.approx(loss, abs=1e-6)  # the terms are float32
    for name in ("image", "text"):
        np.testing.assert_allclose(together[name], alone[name], atol=1e-6)
        assert np.abs(alone[name]).max() > 1e-3


TOKEN_ROWS = st.lists(st.integers(1, 30_000), min_size=1, max_size=12)


@given(TOKEN_ROWS, TOKEN_ROWS, st.integers(0, 5))
def test_fingerprints_are_equal_exactly_for_equal_tokens_whatever_the_padding(first, second, num_padding):
    def fingerprint(tokens: list[int], length: int) -> int:
        ids = torch.tensor([tokens + [0] * (length - len(tokens))])
        mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens))])
        return int(text_fingerprints(ids, mask))

    assert fingerprint(first, len(first)) == fingerprint(first, len(first) + num_padding)
    assert (fingerprint(first, 20) == fingerprint(second, 20)) == (first == second)
