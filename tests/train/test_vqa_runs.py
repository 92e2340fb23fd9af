"""Fine-tuning as its user starts it, on the smoke recipe: what it leaves, two processes, mistakes, an asked end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from question_fixtures import save_start, tiny_processor

from regionmed_clip.eval.saved_models import load_model, load_question_model
from regionmed_clip.processing.corpus.data_spec import stream_examples
from regionmed_clip.processing.corpus.visual_questions import questions_of_example

CPU_2_PROCESSES = "train/accelerate/cpu_2_processes.yaml"
TIMEOUT_S = 900
DATA = "phantom:num_train=48,num_test=16,num_validation=16"


def run(repository: Path, output_dir: Path, *arguments: str, config: str = "train/accelerate/cpu.yaml"):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "train/finetune_vqa.py"]
    command = [*launcher, "--recipe", "vqa_smoke", "--output_dir", str(output_dir), f"data={DATA}", *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def rows(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return save_start(tmp_path_factory.mktemp("start") / "final", tiny_processor())


@pytest.fixture(scope="module")
def smoke_run(repository, start, tmp_path_factory) -> tuple[Path, str]:
    """(OUTPUT_DIR of one run on one process, what it told)."""
    output_dir = tmp_path_factory.mktemp("smoke") / "run"
    finished = run(repository, output_dir, f"start={start}", "controls=[question_only]")
    assert finished.returncode == 0, finished.stderr[-4000:]
    return output_dir, finished.stderr


def test_a_run_leaves_its_model_its_control_and_their_figures(smoke_run):
    output_dir, told = smoke_run
    assert "training questions about 48 images" in told
    assert "question texts cut, longer than the text tower takes" in told  # of 24 tokens
    for name in ("final/model.safetensors", "final/README.md", "results.json", "recipe.yaml", "report.html"):
        assert (output_dir / name).stat().st_size > 0, name
    assert not (output_dir / "cache").exists()
    results = json.loads((output_dir / "results.json").read_text())
    assert {"regionmed-clip", "question-only", "encoder-alone"} <= {result["model"] for result in results}
    assert {row["stage"] for row in rows(output_dir)} == {"answers"}
    assert len(rows(output_dir)) == len(rows(output_dir / "controls" / "question_only")) == 12


def test_the_saved_model_answers_by_the_training_vocabulary_alone_and_its_encoder_loads_alone(smoke_run):
    output_dir, _ = smoke_run
    model, _ = load_question_model(output_dir / "final")
    training = {
        question.answer for example in stream_examples(DATA, "train") for question in questions_of_example(example)
    }
    assert set(model.config.id2label.values()) <= training
    encoder, _ = load_model(output_dir / "final")
    ours = model.regionmed_clip.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in encoder.state_dict().items())


def test_two_processes_take_the_same_steps_as_one(smoke_run, repository, start, tmp_path):
    arguments = (f"start={start}", "controls=[]", "num_processes=2", "evaluation.max_images=4")
    finished = run(repository, tmp_path / "run", *arguments, config=CPU_2_PROCESSES)
    assert finished.returncode == 0, finished.stderr[-4000:]
    alone, together = rows(smoke_run[0]), rows(tmp_path / "run")
    assert [row["num_questions"] for row in together] == [row["num_questions"] for row in alone]
    for one, two in zip(alone, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)  # float32 over 12 steps
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_a_mistake_ends_the_run_before_any_work_with_its_message(repository, tmp_path):
    finished = run(repository, tmp_path / "run", f"start={tmp_path / 'absent'}")
    assert finished.returncode != 0
    assert "is not a folder; download the checkpoint first" in finished.stderr
    assert "Traceback (most recent call last)" not in finished.stderr.partition("ValueError")[0]
    assert not (tmp_path / "run").exists()
