"""The trainer as its user starts it, on the smoke recipe: outputs, two processes, and a kill in the middle."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regionmed_clip.eval.saved_models import load_model
from regionmed_clip.train.checkpoint import read_state

CPU_2_PROCESSES = "train/accelerate/cpu_2_processes.yaml"
TIMEOUT_S = 240


def launch_command(output_dir: Path, *arguments: str, config_file: str = "train/accelerate/cpu.yaml") -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    recipe = ["train/pretrain.py", "--recipe", "train/recipes/smoke.yaml", "--output_dir", str(output_dir)]
    return [*launcher, *recipe, *arguments]


def run(repository: Path, command: list[str], num_runs: int = 1) -> subprocess.CompletedProcess:
    environment, limit_s = {**os.environ, "ACCELERATE_USE_CPU": "true"}, TIMEOUT_S * num_runs
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )


def metrics_lines(output_dir: Path) -> list[str]:
    return (output_dir / "metrics.jsonl").read_text().splitlines()


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in metrics_lines(output_dir)]


@pytest.fixture(scope="module")
def smoke_run(repository, tmp_path_factory) -> Path:
    """OUTPUT_DIR of one undisturbed run of the smoke recipe on one process."""
    output_dir = tmp_path_factory.mktemp("smoke") / "run"
    finished = run(repository, launch_command(output_dir))
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "region → text" in finished.stdout
    return output_dir


def test_a_run_leaves_what_the_design_lists_and_nothing_pickled_in_final(smoke_run):
    for name in ("final/model.safetensors", "final/README.md", "results.json", "recipe.yaml", "report/index.md"):
        assert (smoke_run / name).stat().st_size > 0, name
    kinds = {path.suffix for path in (smoke_run / "final").rglob("*") if path.is_file() and path.name != "LICENSE"}
    assert kinds <= {".json", ".safetensors", ".py", ".md", ".txt", ".png"}
    pictures = {path.name for path in (smoke_run / "report").iterdir()}
    assert {"loss_curves.png", "region_overlays.png", "heat_maps.png"} <= pictures
    assert not (smoke_run / "cache").exists()
    config = json.loads((smoke_run / "final" / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"} <= set(config["auto_map"])
    assert config["text_config"]["pad_token_id"] == 0
    assert config["text_config"]["eos_token_id"] == 3


def test_every_step_is_logged_with_the_terms_of_its_stage(smoke_run):
    rows = metrics(smoke_run)
    assert [row["step"] for row in rows] == list(range(1, 25))
    terms = {row["stage"]: {key for key in row if key.startswith("loss_")} for row in rows}
    assert terms == {
        "global": {"loss_image_text"},
        "region": {"loss_image_text", "loss_region_text", "loss_image_region_text"},
        "joint": {"loss_image_text", "loss_region_text", "loss_image_region_text", "loss_fused_image_text"},
    }
    assert all(row["num_positives_image_text"] >= 16 and row["lr"] > 0 and row["samples_per_s"] > 0 for row in rows)


def test_every_result_states_its_interval_number_and_protocol(smoke_run):
    results = json.loads((smoke_run / "results.json").read_text())
    accuracy = next(r for r in results if r["metric"] == "region_to_text_accuracy" and r["stratum"] is None)
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["n"] > 0
    assert accuracy["protocol"]["split"] == "test"
    assert len(accuracy["protocol"]["split_sha256"]) == 64
    assert {"model_revision", "data_revision", "seed", "hardware", "command"} <= set(accuracy)
    training_images = json.loads((smoke_run / "training_data.json").read_text())["images"]["num_images"]
    nothing = {"status": "none found", "num_shared": 0, "exact": 0, "near": 0, "patient": 0}
    assert [r["protocol"]["leak_check"] for r in results] == [
        {**nothing, "num_training_images": training_images}
    ] * len(results)


def test_two_processes_take_the_same_steps_as_one(smoke_run, repository, tmp_path):
    finished = run(repository, launch_command(tmp_path / "run", "num_processes=2", config_file=CPU_2_PROCESSES))
    assert finished.returncode == 0, finished.stderr[-4000:]
    alone, together = metrics(smoke_run), metrics(tmp_path / "run")
    assert [row["sample_ids_sha256"] for row in together] == [row["sample_ids_sha256"] for row in alone]
    for one, two in zip(alone, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)  # float32 over 24 steps
        for name in [key for key in one if key.startswith("num_")]:
            assert two[name] == one[name], name


def test_two_processes_take_the_same_steps_as_one_where_adapters_train(repository, tmp_path):
    terms = {"image_text": 1.0, "region_text": 1.0}
    stages = [
        {"name": "global", "steps": 3, "loss_weights": {"image_text": 1.0}, "modes": {"roi": "frozen"}},
        {"name": "lora", "steps": 3, "loss_weights": terms, "modes": {"vision": "lora", "text": "lora"}},
    ]
    given = [f"stages={json.dumps(stages)}", "evaluation.tasks=[retrieval]"]
    rows = []
    for number, config in ((1, "train/accelerate/cpu.yaml"), (2, CPU_2_PROCESSES)):
        output_dir = tmp_path / str(number)
        finished = run(repository, launch_command(output_dir, *given, config_file=config))
        assert finished.returncode == 0, finished.stderr[-4000:]
        rows.append(metrics(output_dir))
    assert [row["stage"] for row in rows[0]] == ["global"] * 3 + ["lora"] * 3
    assert rows[0][-1]["loss"] != rows[0][3]["loss"]
    for one, two in zip(*rows, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)  # float32 over 6 steps


def test_a_run_killed_in_writing_a_checkpoint_and_again_and_resumed_ends_with_the_same_bits(
    smoke_run, repository, tmp_path
):
    script = [sys.executable, "tests/train/kill_and_resume.py", "--kills", "2", "--reference", str(smoke_run)]
    killed = run(repository, [*script, "--folder", str(tmp_path)], num_runs=3)
    assert killed.returncode == 0, killed.stdout + killed.stderr[-4000:]
    assert "equal bit for bit" in killed.stdout
    rows = [line for line in killed.stdout.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert len(rows) == 2
    assert ".partial" in rows[0]  # a checkpoint was being written


def test_a_run_that_is_asked_to_end_saves_says_how_to_go_on_and_leaves_with_code_75(repository, tmp_path):
    output_dir = tmp_path / "run"
    recipe = ["--recipe", "train/recipes/smoke.yaml", "--output_dir", str(output_dir), "checkpoint_every_steps=100"]
    command = [sys.executable, "train/pretrain.py", *recipe]
    process = subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not (output_dir / "metrics.jsonl").exists() or len(metrics_lines(output_dir)) < 2:
        assert time.monotonic() < deadline, "the run did not reach its second step"
        assert process.poll() is None, "the run ended before it could be asked to"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, told[-4000:]
    (checkpoint,) = (output_dir / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{len(metrics_lines(output_dir)):08d}"
    assert told.splitlines()[-1] == shlex.join([*command, "--resume"])


@pytest.fixture(scope="module")
def run_with_baseline(repository, tmp_path_factory) -> tuple[Path, str]:
    """(OUTPUT_DIR of a run with a baseline that keeps its best model, what it printed)."""
    output_dir = tmp_path_factory.mktemp("baseline") / "run"
    options = [
        "baseline=true",
        "evaluation.tasks=[retrieval]",
        "data=phantom:num_train=96,num_test=48,num_validation=40",
    ]
    best = "validation={every_steps: 8, tasks: [retrieval], keep_best: image_to_text_recall@10}"
    finished = run(repository, launch_command(output_dir, *options, best))
    assert finished.returncode == 0, finished.stderr[-4000:]
    return output_dir, finished.stdout


def test_the_baseline_runs_beside_the_model_under_a_revision_of_its_own(run_with_baseline):
    output_dir, _ = run_with_baseline
    results = json.loads((output_dir / "results.json").read_text())
    revisions = {result["model"]: result["model_revision"] for result in results if " minus " not in result["model"]}
    assert set(revisions) == {"regionmed-clip", "plain-clip"}
    assert revisions["regionmed-clip"] != revisions["plain-clip"]
    plain_rows = metrics(output_dir / "plain_clip")
    assert len(plain_rows) == 24
    assert not any("loss_region_text" in row for row in plain_rows)


def test_the_best_model_lies_beside_the_last_one_and_loads_as_it_does(run_with_baseline):
    output_dir, told = run_with_baseline
    state = read_state(output_dir / "checkpoints" / "best")
    rows = [json.loads(line) for line in (output_dir / "validation.jsonl").read_text().splitlines()]
    figures = {row["step"]: row["value"] for row in rows if row["metric"] == "image_to_text_recall@10"}
    assert list(figures) == [8, 16, 24]
    assert (state.best.value, state.best.split) == (max(figures.values()), "validation")
    assert figures[state.step] == state.best.value
    assert told.splitlines()[-1].startswith(f"best model: {output_dir / 'best'} (step {state.step}, image_to_text")
    weights = load_model(output_dir / "best")[0].state_dict()
    kept = load_file(output_dir / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    assert "the best by image_to_text_recall@10" in (output_dir / "best" / "README.md").read_text()


def test_a_mistake_ends_the_run_before_any_work_with_its_message(repository, tmp_path):
    finished = run(repository, launch_command(tmp_path / "run", "learning_rate=1"))
    assert finished.returncode != 0
    assert "ValueError" in finished.stderr
    assert "unknown key 'learning_rate'; the known keys are name, data, seed" in finished.stderr
    assert not (tmp_path / "run").exists()
