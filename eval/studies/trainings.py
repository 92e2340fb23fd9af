"""Trainings of a study: each in a folder and a process of its own, taken up again where it was interrupted.

Evaluation never imports training; it starts `accelerate launch train/pretrain.py` and reads what that leaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

import modeling_regionmed_clip
from regionmed_clip.processing.corpus.data_spec import data_revision

TRAIN_FOLDER = Path(__file__).resolve().parents[2] / "train"
REQUEST, FINISHED = "request.json", "finished.json"


@dataclass(frozen=True)
class Training:
    """One training: `recipe` with the `overrides` (key=value), in `folder`."""

    name: str
    folder: Path
    recipe: Path
    overrides: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether its model lies in `folder`/final."""
        return (self.folder / FINISHED).is_file()

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, as kept in the folder; equal for equal trainings."""
        return {"recipe": yaml.safe_load(self.recipe.read_text(encoding="utf-8")), "overrides": list(self.overrides)}

    def check(self) -> None:
        """None; a ValueError where the folder holds a training of another recipe, other overrides or other data."""
        path = self.folder / REQUEST
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != self.request:
            raise ValueError(
                f"{self.folder} holds a training of another recipe or other overrides (see its {REQUEST}); one "
                "folder holds one. Name another --output, or delete that folder."
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

        `wall_s` of the last launch, `model_code` and `data_revision` as they were then, `data` and `split` of the
        recipe, the `steps` done, and the median `images_per_s` of the last stage.
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
        write_json(self.folder / FINISHED, values)

    def _resolved_recipe(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))


def launch(training: Training) -> None:
    """None; runs the training to its end, from its last checkpoint where there is one.

    Its progress goes to stderr, its tables to `output.txt` in its folder.

    Raises:
        RuntimeError: it failed; its own message stands above on stderr.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    write_json(training.folder / REQUEST, training.request)
    config = TRAIN_FOLDER / "accelerate" / ("one_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    script = [str(TRAIN_FOLDER / "pretrain.py"), "--recipe", str(training.recipe)]
    command = [*launcher, *script, "--output_dir", str(training.folder), "--resume", *training.overrides]
    started_at, model_code = time.monotonic(), model_code_revision()
    with open(training.folder / "output.txt", "w", encoding="utf-8") as output:
        code = run_group(command, output)
    if code != 0:
        raise RuntimeError(f"training {training.name} ended with status {code}: {' '.join(command)}")
    training.mark_finished(time.monotonic() - started_at, model_code)


def run_group(command: Sequence[str], stdout: Any) -> int:
    """The exit status of the command; where we are interrupted, it and all its children end too."""
    process = subprocess.Popen(command, stdout=stdout, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise


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
