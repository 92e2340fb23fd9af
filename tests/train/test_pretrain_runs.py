"""The trainer as its user starts it, on the smoke recipe: outputs, two processes, and a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CPU_2_PROCESSES = "train/accelerate/cpu_2_processes.yaml"
TIMEOUT_S = 240


def launch_command(output_dir: Path, *arguments: str, config_file: str = "train/accelerate/cpu.yaml") -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    recipe = ["train/pretrain.py", "--recipe", "train/recipes/smoke.yaml", "--output_dir", str(output_dir)]
    return [*launcher, *recipe, *arguments]


def run(repository: Path, command: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def metrics_lines(output_dir: Path) -> list[str]:
    return (output_dir / "metrics.jsonl").read_text().splitlines()


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in metrics_lines(output_dir)]


def timeless_metrics(output_dir: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "samples_per_s"} for row in metrics(output_dir)]


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
    assert {path.suffix for path in (smoke_run / "final").iterdir()} <= {".json", ".safetensors", ".py", ".md", ".txt"}
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


def test_two_processes_take_the_same_steps_as_one(smoke_run, repository, tmp_path):
    finished = run(repository, launch_command(tmp_path / "run", "num_processes=2", config_file=CPU_2_PROCESSES))
    assert finished.returncode == 0, finished.stderr[-4000:]
    alone, together = metrics(smoke_run), metrics(tmp_path / "run")
    assert [row["sample_ids_sha256"] for row in together] == [row["sample_ids_sha256"] for row in alone]
    for one, two in zip(alone, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)  # float32 over 24 steps
        for name in [key for key in one if key.startswith("num_")]:
            assert two[name] == one[name], name


def test_a_run_killed_in_the_middle_and_resumed_ends_with_the_same_bits(smoke_run, repository, tmp_path):
    output_dir = tmp_path / "run"
    process = subprocess.Popen(
        launch_command(output_dir), cwd=repository, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not (output_dir / "metrics.jsonl").exists() or len(metrics_lines(output_dir)) < 10:
        assert time.monotonic() < deadline, "the run did not reach its tenth step"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output_dir / "final").exists()
    finished = run(repository, launch_command(output_dir, "--resume"))
    assert finished.returncode == 0, finished.stderr[-4000:]
    weights = "final/model.safetensors"
    assert (output_dir / weights).read_bytes() == (smoke_run / weights).read_bytes()
    assert timeless_metrics(output_dir) == timeless_metrics(smoke_run)


def test_the_baseline_runs_beside_the_model_under_a_revision_of_its_own(repository, tmp_path):
    finished = run(repository, launch_command(tmp_path / "run", "baseline=true", "evaluation.tasks=[retrieval]"))
    assert finished.returncode == 0, finished.stderr[-4000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    revisions = {result["model"]: result["model_revision"] for result in results if " minus " not in result["model"]}
    assert set(revisions) == {"regionmed-clip", "plain-clip"}
    assert revisions["regionmed-clip"] != revisions["plain-clip"]
    plain_rows = metrics(tmp_path / "run" / "plain_clip")
    assert len(plain_rows) == 24
    assert not any("loss_region_text" in row for row in plain_rows)


def test_a_mistake_ends_the_run_before_any_work_with_its_message(repository, tmp_path):
    finished = run(repository, launch_command(tmp_path / "run", "learning_rate=1"))
    assert finished.returncode != 0
    assert "ValueError" in finished.stderr
    assert "unknown key 'learning_rate'; the known keys are name, data, seed" in finished.stderr
    assert not (tmp_path / "run").exists()
