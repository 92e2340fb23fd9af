"""Rehearses a model or a Space before it is published: in a process that has nothing of ours."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("bare_rehearsal.py")
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Rehearsal:
    """What one interpreter did with the folder; `told` is what bare_rehearsal.py gives."""

    python: str
    told: dict[str, Any]

    def line(self) -> str:
        """The outcome for a person."""
        handler = "" if self.told["handler"] is None else "; handler.py answers"
        return f"{self.told['golden']}; pipelines {', '.join(self.told['pipelines'])}{handler}"


def rehearse(folder: Path, python: str = sys.executable) -> Rehearsal:
    """What `python -I` did with a model's flat folder; offline, without token and caches, all others' packages hidden.

    Raises:
        ValueError: the interpreter is none, golden outputs differ, or something does not load; with the reason.
    """
    return Rehearsal(python, _run(python, "model", folder))


def rehearse_space(folder: Path, model_folder: Path | None = None) -> str:
    """One line on what the page of a Space showed in such a process, or on why it could not be asked: no gradio.

    Args:
        folder: of the Space.
        model_folder: of the model, where the Space holds no copy of it.

    Raises:
        ValueError: the page cannot be built or does not answer; with the reason.
    """
    if importlib.util.find_spec("gradio") is None:
        return "not rehearsed: gradio is not installed; pip install -e '.[demo]'"
    chosen = {} if model_folder is None else {"REGIONMED_MODEL": str(model_folder.absolute())}
    told = _run(sys.executable, "space", folder, **chosen)
    return f"rehearsed without our packages: the page reads {told['labels'][0]!r}, shows a heat map, and searches"


def _run(python: str, what: str, folder: Path, **variables: str) -> dict[str, Any]:
    """What bare_rehearsal.py tells of the folder; ValueError where it fails."""
    with tempfile.TemporaryDirectory(prefix="regionmed-rehearsal-") as empty:
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {"HOME": empty, "HF_HOME": f"{empty}/hf", "HF_MODULES_CACHE": f"{empty}/modules"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{empty}/files", **variables}
        # Found here, for the process starts elsewhere. -B: no byte code, which names paths, in the folder.
        command = [os.path.abspath(shutil.which(python) or python), "-I", "-B", str(SCRIPT), what, str(folder)]
        try:
            run = subprocess.run(
                command, cwd=empty, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(
                f"{python} cannot be started ({error}); give --python the path of an interpreter."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"the rehearsal by {python} took over {TIMEOUT_S:g} s and was ended.") from error
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"]
        raise ValueError(
            f"the rehearsal in a bare process of {python} failed, and so would a stranger's: {lines[-1]} Nothing was "
            "published."
        )
    return json.loads(run.stdout.strip().splitlines()[-1])
