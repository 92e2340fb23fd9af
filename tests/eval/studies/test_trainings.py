"""Trainings of a study: their command, what marks them as finished, and that none outlives its study."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from regionmed_clip.eval.studies import trainings
from regionmed_clip.eval.studies.trainings import Training, launch, run_group

RESOLVED = {"data": "phantom:num_train=4,num_test=12", "evaluation": {"split": "test"}}


@pytest.fixture
def training(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: 3\n")
    return Training("prompter-0", tmp_path / "prompter-0", recipe, ("model.roi_mode=prompter", "seed=0"))


def leave_a_run(folder) -> None:
    """What a training leaves in its folder, as far as a study reads it."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RESOLVED))
    rows = [{"stage": "global", "samples_per_s": 9.0}] + [
        {"stage": "region", "samples_per_s": s} for s in (1.0, 2.0, 9.0)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_launch_runs_pretrain_with_the_overrides_and_marks_the_end(training, monkeypatch):
    commands = []

    def run(command, stdout, stderr):
        commands.append(command)
        leave_a_run(training.folder)
        return 0

    monkeypatch.setattr(trainings, "run_group", run)
    assert not training.is_finished
    launch(training)
    assert training.is_finished
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[-5:] == ["--output_dir", str(training.folder), "--resume", *training.overrides]
    facts = training.facts()
    assert facts["steps"] == 4
    assert facts["images_per_s"] == 2.0  # the median of the last stage
    assert facts["data_revision"].startswith("phantom@")
    training.check()


def test_a_failed_launch_is_told_and_not_marked(training, monkeypatch):
    monkeypatch.setattr(trainings, "run_group", lambda command, stdout, stderr: 3)
    with pytest.raises(RuntimeError, match="prompter-0 ended with status 3"):
        launch(training)
    with pytest.raises(RuntimeError, match=r"its last words stand in .*prompter-0/progress.txt"):
        launch(training, is_quiet=True)
    assert not training.is_finished


def test_a_folder_of_another_training_is_refused(training, monkeypatch):
    monkeypatch.setattr(trainings, "run_group", lambda *_: leave_a_run(training.folder) or 0)
    launch(training)
    other = Training("prompter-0", training.folder, training.recipe, ("model.roi_mode=roialign", "seed=0"))
    with pytest.raises(ValueError, match="holds a training of another recipe, other overrides"):
        other.check()
    training.recipe.write_text("steps: 4\n")
    with pytest.raises(ValueError, match="Name another --output, or delete that folder"):
        training.check()


def test_a_training_on_data_that_has_changed_since_is_refused(training, monkeypatch):
    monkeypatch.setattr(trainings, "run_group", lambda *_: leave_a_run(training.folder) or 0)
    launch(training)
    monkeypatch.setattr(trainings, "data_revision", lambda data: "phantom@next")
    with pytest.raises(ValueError, match=r"was trained on phantom@.* and .* is now phantom@next"):
        training.check()


def test_an_interrupted_study_ends_its_training_and_the_children_of_that(tmp_path, monkeypatch):
    child_file = tmp_path / "child"
    inner = f"import os, time; open({str(child_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    wait = subprocess.Popen.wait

    def interrupted_wait(process, timeout=None):
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not (child_file.exists() and child_file.read_text()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_wait)
    with pytest.raises(KeyboardInterrupt):
        run_group([sys.executable, "-c", outer], subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while is_running(int(child_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process_id: int) -> bool:
    """Whether the process exists and is no zombie that nobody has collected yet."""
    try:
        os.kill(process_id, 0)
        with open(f"/proc/{process_id}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_training_that_saves_its_last_step_after_its_launcher_has_gone_is_waited_for(tmp_path):
    saved = tmp_path / "saved"
    inner = f"import time; time.sleep(0.3); open({str(saved)!r}, 'w').close()"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}]); raise SystemExit(3)"
    assert run_group([sys.executable, "-c", outer], subprocess.DEVNULL) == 3
    assert saved.exists()


def test_the_exit_status_of_a_command_is_given_back():
    assert run_group([sys.executable, "-c", "raise SystemExit(7)"], subprocess.DEVNULL) == 7
