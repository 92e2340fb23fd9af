"""How many processes share a run changes neither its steps nor its gradients; what fails on one ends all.

Real processes: the trainer through `accelerate launch` on the smoke recipe, single steps of tiny_steps.py without it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from processes import run_processes
from safetensors.torch import load_file
from tiny_steps import counts_and_losses, gradients_of, relative_difference, take_step

FOLDER = Path(__file__).parent
LOSS_ATOL = 1e-5  # float32
GRADIENT_RTOL = 1e-6  # float32, of the norm of all gradients
FEW_STEPS = ("stages.global.steps=3", "stages.region.steps=2", "stages.joint.steps=3")


def launch(repository: Path, num_processes: int, mode: str, *arguments: str) -> subprocess.CompletedProcess:
    config = "cpu.yaml" if num_processes == 1 else "cpu_2_processes.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"train/accelerate/{config}"]
    script = [str(FOLDER / "smoke_worker.py"), mode, "--recipe", "train/recipes/smoke.yaml"]
    return subprocess.run(
        [*launcher, "--num_processes", str(num_processes), *script, *FEW_STEPS, *arguments],
        cwd=repository, env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(repository, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("one") / "run"
    finished = launch(repository, 1, "gradients", "--output_dir", str(output_dir))
    assert finished.returncode == 0, finished.stderr[-4000:]
    return output_dir


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_take_the_steps_of_one(one_process, repository, tmp_path, num_processes):
    output_dir = tmp_path / "run"
    finished = launch(repository, num_processes, "gradients", "--output_dir", str(output_dir))
    assert finished.returncode == 0, finished.stderr[-4000:]
    alone, together = metrics(one_process), metrics(output_dir)
    assert len(alone) == len(together) == 8
    for one, several in zip(alone, together):
        assert several["sample_ids_sha256"] == one["sample_ids_sha256"]
        assert several["lr"] == one["lr"]
        assert several["loss"] == pytest.approx(one["loss"], abs=LOSS_ATOL)
        for name in [key for key in one if key.startswith("num_")]:
            assert several[name] == one[name], name
    gradients = [load_file(folder / "first_gradients.safetensors") for folder in (output_dir, one_process)]
    assert relative_difference(*gradients) < GRADIENT_RTOL


def test_an_unreadable_sample_of_one_process_ends_the_run_with_its_message(repository, tmp_path):
    finished = launch(repository, 2, "unreadable", "--output_dir", str(tmp_path / "run"))
    assert finished.returncode != 0
    assert finished.stderr.count("process 2 of 2 (rank 1) has failed, so all end") == 1
    assert finished.stderr.count("OSError: sample-17 cannot be read") == 1
    assert len(metrics(tmp_path / "run")) == 3


def test_a_loss_that_is_no_number_names_the_samples_of_all_processes_and_keeps_the_last_checkpoint(
    repository, tmp_path
):
    rate = "stages.global.learning_rate=1e30"
    finished = launch(
        repository, 2, "gradients", "--output_dir", str(tmp_path / "run"), rate, "checkpoint_every_steps=1"
    )
    assert finished.returncode != 0
    (message,) = [line for line in finished.stderr.splitlines() if "it must be finite" in line]
    assert message.startswith("ValueError: step 2 of stage 'global': the loss term image_text is nan")
    assert message.count("phantom-") == 16  # of the global batch
    assert (tmp_path / "run" / "checkpoints" / "step_00000001" / "model.safetensors").is_file()
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("num_processes", "micro_batch_size", "kind"), [(4, 0, "plain"), (2, 4, "plain"), (2, 4, "sharded")]
)
def test_uneven_shares_micro_batches_and_shards_give_one_process_gradients(
    tmp_path, num_processes, micro_batch_size, kind
):
    """Of 4 processes the first has no caption and the last no region; micro-batches of 4 leave 2 of a share of 6."""
    finished = run_processes(FOLDER / "step_worker.py", num_processes, str(tmp_path), str(micro_batch_size), kind)
    assert [code for code, _ in finished] == [0] * num_processes, finished
    facts = json.loads((tmp_path / "facts.json").read_text())
    outcome, prepared = take_step(Accelerator(cpu=True))
    assert facts["num_processes"] == num_processes
    assert facts["norm"] == pytest.approx(outcome.gradient_norm.item(), rel=GRADIENT_RTOL)
    for term, (loss, *counts) in counts_and_losses(outcome).items():
        assert facts["terms"][term] == [pytest.approx(loss, abs=LOSS_ATOL), *counts]
    assert relative_difference(load_file(tmp_path / "gradients.safetensors"), gradients_of(prepared)) < GRADIENT_RTOL
    num_trained = sum(value.numel() for _, value in prepared.trained_parameters())
    assert facts["num_own"] < 0.6 * num_trained if kind == "sharded" else facts["num_own"] == num_trained
    weights = load_file(tmp_path / "weights.safetensors")
    for name, value in prepared.trained_parameters():
        is_clear = value.grad.abs() > 1e-3  # Adam's first step is the sign of the gradient, whatever its size
        torch.testing.assert_close(weights[name][is_clear], value.detach()[is_clear], rtol=0, atol=1e-5)
