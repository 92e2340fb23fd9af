"""Trainings of a study: each in a folder and a process of its own, taken up again where it was interrupted.

Evaluation never imports training; it starts `accelerate launch train/pretrain.py` and reads what that leaves.
A training takes as many threads as there are cores on which the thread that launches it may run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import yaml

import modeling_regionmed_clip
from regionmed_clip.processing.corpus.data_spec import data_revision

TRAIN_FOLDER = Path(__file__).resolve().parents[2] / "train"
REQUEST, FINISHED, PROGRESS = "request.json", "finished.json", "progress.txt"
POLL_S = 0.05
_running: set[subprocess.Popen] = set()  # groups of processes that nobody has told to end
_running_lock = threading.Lock()


@dataclass(frozen=True)
class Training:
    """One training: `recipe` with the `overrides` (key=value), in `folder`.

    `conditions`: what decides its weights besides, such as the number of threads, on which the order of sums depends.
    """

    name: str
    folder: Path
    recipe: Path
    overrides: tuple[str, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether its model lies in `folder`/final."""
        return (self.folder / FINISHED).is_file()

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, as kept in the folder; equal for equal trainings."""
        recipe = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        return {"recipe": recipe, "overrides": list(self.overrides), **self.conditions}

    def check(self) -> None:
        """None; a ValueError where the folder holds another training, or one on data that has changed since."""
        path = self.folder / REQUEST
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != self.request:
            raise ValueError(
                f"{self.folder} holds a training of another recipe, other overrides or other conditions (see its "
                f"{REQUEST}); one folder holds one. Name another --output, or delete that folder."
            )
        if self.is_finished:
            facts = self.facts()
            if facts["data_revision"] != data_revision(facts["data"]):
                raise ValueError(
                    f"{self.folder} was trained on {facts['data_revision']}, and {facts['data']!r} is now "
                    f"{data_revision(facts['data'])}; a study has one revision. Delete that folder to train anew."
                )

    def facts(self) -> dict[str, Any]:
        """What is known of a finished training.

        `wall_s` of the last launch, `model_code` and `data_revision` as they were then, the `conditions`, `data`
        and `split` of the recipe, the `steps` done, and the median `images_per_s` of the last stage.
        """
        resolved = self._resolved_recipe()
        finished = json.loads((self.folder / FINISHED).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = [row["samples_per_s"] for row in rows if row["stage"] == rows[-1]["stage"]]
        split = resolved["evaluation"]["split"]
        speed = round(median(speeds), 1)
        return {**finished, "data": resolved["data"], "split": split, "steps": len(rows), "images_per_s": speed}

    def mark_finished(self, wall_s: float, model_code: str) -> None:
        """None; the training counts as finished from now on."""
        revision = data_revision(self._resolved_recipe()["data"])
        values = {"wall_s": round(wall_s, 1), "model_code": model_code, "data_revision": revision}
        write_json(self.folder / FINISHED, {**values, **self.conditions})

    def _resolved_recipe(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))


def launch(training: Training, is_quiet: bool = False) -> None:
    """None; runs the training to its end, from its last checkpoint where there is one.

    Its progress goes to stderr, or to `progress.txt` in its folder where `is_quiet`; its tables to `output.txt`.

    Raises:
        RuntimeError: it failed; its own message stands where its progress went.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    write_json(training.folder / REQUEST, training.request)
    config = TRAIN_FOLDER / "accelerate" / ("one_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    script = [str(TRAIN_FOLDER / "pretrain.py"), "--recipe", str(training.recipe)]
    command = [*launcher, *script, "--output_dir", str(training.folder), "--resume", *training.overrides]
    started_at, model_code = time.monotonic(), model_code_revision()
    with ExitStack() as files:
        output = files.enter_context(open(training.folder / "output.txt", "w", encoding="utf-8"))
        progress = files.enter_context(open(training.folder / PROGRESS, "w", encoding="utf-8")) if is_quiet else None
        code = run_group(command, output, progress)
    if code != 0:
        told = f"; its last words stand in {training.folder / PROGRESS}" if is_quiet else ""
        raise RuntimeError(f"training {training.name} ended with status {code}: {' '.join(command)}{told}")
    training.mark_finished(time.monotonic() - started_at, model_code)


def run_group(command: Sequence[str], stdout: Any, stderr: Any = None) -> int:
    """The exit status of the command; where we are interrupted, it and all its children end too.

    It has ended when the last of its children has: a training that is told to end still saves its last step, after its
    launcher has gone.
    """
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
    with _running_lock:
        _running.add(process)
    try:
        code = process.wait()
        _wait_for_group(process.pid)
        return code
    except BaseException:
        _end_group(process)
        process.wait()
        _wait_for_group(process.pid)
        raise
    finally:
        with _running_lock:
            _running.discard(process)


def end_launched() -> None:
    """None; tells all trainings that were launched by other threads, and their children, to end."""
    with _running_lock:
        processes = list(_running)
    for process in processes:
        _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    """None; one signal to the group of processes, however often it is asked for."""
    with _running_lock:
        if process not in _running:
            return
        _running.discard(process)
        os.killpg(process.pid, signal.SIGTERM)


def _wait_for_group(group: int) -> None:
    """None; no process of the group runs any more."""
    while any(_is_running_in(group, number) for number in psutil.pids()):
        time.sleep(POLL_S)


def _is_running_in(group: int, number: int) -> bool:
    """Whether process `number` belongs to the group and has not ended; one that nobody has collected yet has."""
    try:
        return os.getpgid(number) == group and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):  # it has ended meanwhile, or is another user's
        return False


def model_code_revision() -> str:
    """First 12 hex digits of a hash over the model's source files: tells which code a training ran."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(modeling_regionmed_clip.__file__)).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def write_json(path: Path, value: Any) -> None:
    """None; `path` then holds the value, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
