"""Kills runs of the smoke recipe with -9 and resumes them; what they leave must be what an undisturbed run leaves.

    python tests/train/kill_and_resume.py --kills 10 [--processes 2] [--seed 0] [--reference DIR] [key=value ...]

One run is killed at random moments: every second time while it writes a checkpoint, else in a step or while it starts.
All its processes are killed, those of the launcher's other sessions too. Exit code 0 if the weights are equal bit for
bit and the rows of the logs are equal but for their times.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.metrics_log import read_metrics, timeless

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = RECIPES_FOLDER / "smoke.yaml"
CONFIG_FILES = {1: "train/accelerate/cpu.yaml", 2: "train/accelerate/cpu_2_processes.yaml"}
WAIT_S = 600  # for a run to come to the moment at which it is killed
POLL_S = 0.0005
START_UP_S = (1.0, 15.0)  # after its start, within which a run is killed that is to die before its first step
LOGS = ("metrics.jsonl", "validation.jsonl")


@dataclass(frozen=True)
class Kill:
    """When a run was killed: what it was waited for, the rows of its log, the checkpoint that it was writing if any."""

    moment: str
    num_steps: int
    writing: str


def launch_command(output_dir: Path, num_processes: int, overrides: Sequence[str]) -> list[str]:
    """The command of a run in `output_dir`; it resumes what is there."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG_FILES[num_processes]]
    recipe = ["train/pretrain.py", "--recipe", str(SMOKE), "--output_dir", str(output_dir), "--resume"]
    return [*launcher, *recipe, "checkpoint_every_steps=1", "evaluation.tasks=[retrieval]", *overrides]


def start(command: Sequence[str], log: Path) -> subprocess.Popen:
    """The started run; what it says is appended to `log`."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("a") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def run_to_its_end(command: Sequence[str], log: Path) -> None:
    """Waits for a run; a RuntimeError with the end of its log if it fails."""
    code = start(command, log).wait()
    if code:
        raise RuntimeError(f"the run ended with code {code}; the end of {log}:\n{log.read_text()[-4000:]}")


def kill_all(process: subprocess.Popen) -> None:
    """Kills the run: the launcher's process group, and what it started in sessions of their own."""
    root = psutil.Process(process.pid)
    root.suspend()  # so that it starts nothing while its children are listed
    doomed = [*root.children(recursive=True), root]
    for one in doomed:
        one.kill()
    process.wait()
    psutil.wait_procs(doomed)


def num_rows(output_dir: Path) -> int:
    """Whole rows of metrics.jsonl."""
    path = output_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def written_since(output_dir: Path, started_at: float) -> str:
    """The name of the checkpoint that is being written, or was when the run was killed; empty if none is.

    One that an earlier kill has left does not count: it is older than the time, in seconds since 1970.
    """
    partial = (output_dir / "checkpoints").glob("step_*.partial")
    return next((path.name for path in partial if _changed_at(path) > started_at), "")


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # it has just been renamed
        return 0.0


def wait_for(process: subprocess.Popen, is_there: Callable[[], bool]) -> None:
    """Returns at the moment; a RuntimeError if the run ends before it."""
    deadline = time.monotonic() + WAIT_S
    while not is_there():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run ended (code {process.poll()}) or stood still before the moment of its kill.")
        time.sleep(POLL_S)


def kill_once(output_dir: Path, command: Sequence[str], log: Path, moment: str, step: int, draw: random.Random) -> Kill:
    """Starts or resumes the run and kills it: after `step`, in writing its checkpoint, or before its first step."""
    started_at, rows = time.time(), num_rows(output_dir)
    process = start(command, log)
    if moment == "starting":
        end = started_at + draw.uniform(*START_UP_S)
        wait_for(process, lambda: time.time() >= end or num_rows(output_dir) > rows)  # it may start faster than that
    elif moment == "writing":
        wait_for(process, lambda: written_since(output_dir, started_at) >= f"step_{step:08d}")
    else:
        wait_for(process, lambda: num_rows(output_dir) >= step)
        time.sleep(draw.uniform(0.0, 0.3))
    kill_all(process)
    return Kill(moment, num_rows(output_dir), written_since(output_dir, started_at))


def kill_and_resume(output_dir: Path, command: Sequence[str], log: Path, num_kills: int, seed: int) -> list[Kill]:
    """The kills that the run in `output_dir` has outlived; it is finished."""
    draw = random.Random(seed)
    num_steps = load_recipe(SMOKE).num_steps
    steps = sorted(draw.sample(range(1, num_steps), num_kills))
    kills = []
    for number, step in enumerate(steps):
        step = min(max(step, num_rows(output_dir) + 1), num_steps)  # the kill before may have come late
        moment = "writing" if number % 2 == 0 else draw.choice(("in a step", "in a step", "starting"))
        kills.append(kill_once(output_dir, command, log, moment, step, draw))
        sys.stdout.write(f"kill {number + 1}: {kills[-1]}\n")
        sys.stdout.flush()
    run_to_its_end(command, log)
    return kills


def differences(output_dir: Path, reference: Path) -> list[str]:
    """What of the finished run differs from that in `reference`."""
    weights = "final/model.safetensors"
    found = [] if (output_dir / weights).read_bytes() == (reference / weights).read_bytes() else [weights]
    for name in LOGS:
        if timeless(read_metrics(output_dir / name)) != timeless(read_metrics(reference / name)):
            found.append(name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 if the killed run has left what the undisturbed one left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, choices=sorted(CONFIG_FILES), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="OUTPUT_DIR of an undisturbed run; by default it is run first")
    parser.add_argument("--folder", type=Path, help="for the runs and their logs; by default a temporary one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    options = parser.parse_intermixed_args(list(arguments))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    folder.mkdir(parents=True, exist_ok=True)
    reference = options.reference or folder / "undisturbed"
    if options.reference is None:
        run_to_its_end(launch_command(reference, options.processes, options.overrides), folder / "undisturbed.log")
    command = launch_command(folder / "killed", options.processes, options.overrides)
    kills = kill_and_resume(folder / "killed", command, folder / "killed.log", options.kills, options.seed)
    sys.stdout.write("| kill | moment | after step | half-written checkpoint |\n|---|---|---|---|\n")
    for number, kill in enumerate(kills, start=1):
        sys.stdout.write(f"| {number} | {kill.moment} | {kill.num_steps} | {kill.writing or 'none'} |\n")
    found = differences(folder / "killed", reference)
    sys.stdout.write(f"{folder}: {'differs in ' + ', '.join(found) if found else 'equal bit for bit'}\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
