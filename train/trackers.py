"""Experiment trackers of Accelerate: which there are, how a run starts them, and how a resumed run goes on in them.

TensorBoard, the default, needs no account and no network: its event files lie in OUTPUT_DIR/trackers, and
`tensorboard --logdir OUTPUT_DIR` shows them. Others are named in the recipe's `trackers` and keep to their own settings
(environment variables, log-in). A resumed run goes on in the runs it had with TensorBoard, wandb and mlflow; what
identifies them is kept in OUTPUT_DIR/trackers/run_ids.json. With other trackers it begins another run, and says so.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, filter_trackers, get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from .whole_files import write_whole

KNOWN_TRACKERS = tuple(sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL))
PROJECT = "regionmed-clip"
FOLDER, RUN_IDS_NAME = "trackers", "run_ids.json"
FLUSH_S = 10  # of TensorBoard's event files, between the checkpoints
RUN_ID_OF: dict[str, Callable[[GeneralTracker], str]] = {  # of a started tracker
    "wandb": lambda tracker: tracker.run.id,
    "mlflow": lambda tracker: tracker.active_run.info.run_id,
}
CONTINUATION_OF: dict[str, Callable[[str], dict[str, Any]]] = {  # what starts the tracker in a run that exists
    "wandb": lambda run_id: {"id": run_id, "resume": "allow"},
    "mlflow": lambda run_id: {"run_id": run_id},
}


class TrackedRecipe(Protocol):
    """What trackers are told of a run."""

    name: str
    trackers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""


def refuse_missing_trackers(recipe: TrackedRecipe) -> None:
    """Raises a ValueError for a tracker that Accelerate does not know, or whose package is not installed."""
    for name in recipe.trackers:
        if name not in KNOWN_TRACKERS:
            raise ValueError(
                f"recipe {recipe.name!r}: trackers has {name!r}; known are {', '.join(KNOWN_TRACKERS)}. Name one of "
                "these, or set trackers=[] for none."
            )
        if name not in map(str, get_available_trackers()):
            package = name.replace("_", "-")
            raise ValueError(
                f"recipe {recipe.name!r}: trackers has {name!r}, and its package is not installed; `pip install "
                f"{package}`, or leave it out of trackers."
            )
    if len(set(recipe.trackers)) < len(recipe.trackers):
        raise ValueError(f"recipe {recipe.name!r}: trackers is {list(recipe.trackers)}; name each tracker once.")


class Trackers:
    """The started trackers of one run; made and used on the main process alone."""

    def __init__(self, accelerator: Accelerator, recipe: TrackedRecipe, folder: Path, first_step: int):
        """Starts the recipe's trackers, or goes on in the runs whose ids `folder` keeps.

        Args:
            folder: OUTPUT_DIR/trackers.
            first_step: steps done before; what a tracker was told of later ones is not shown twice.
        """
        self._accelerator = accelerator
        names = list(recipe.trackers)
        if not names:
            return
        folder.mkdir(parents=True, exist_ok=True)
        accelerator.project_configuration = ProjectConfiguration(str(folder.parent), logging_dir=str(folder))
        accelerator.log_with = filter_trackers(names, folder)
        known_ids = _read_ids(folder / RUN_IDS_NAME)
        settings = {name: _settings(name, known_ids, folder, first_step) for name in names}
        _outlast_event_files(folder / PROJECT)
        accelerator.init_trackers(PROJECT, init_kwargs=settings)
        for tracker in accelerator.trackers:
            if tracker.name not in known_ids:
                _describe(tracker, recipe)
        run_ids = {tracker.name: _run_id(tracker) for tracker in accelerator.trackers}
        write_whole(folder / RUN_IDS_NAME, json.dumps(run_ids, indent=2) + "\n")

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Tells every tracker the numbers among `values`, as of `step`."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                _log_one_event(tracker, numbers, step)
            elif tracker.name == "mlflow":  # refuses an @ in a name
                tracker.log({name.replace("@", "_at_"): value for name, value in numbers.items()}, step=step)
            else:
                tracker.log(numbers, step=step)

    def flush(self) -> None:
        """Puts on disk what TensorBoard was told: a checkpoint must not be ahead of it."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.tracker.flush()

    def finish(self) -> None:
        """Ends the trackers' runs; what was logged is on disk, or sent, then."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers.clear()


def _outlast_event_files(folder: Path) -> None:
    """Waits, a second at most, until a new event file sorts behind those in `folder`: TensorBoard reads them by name.

    A name begins `events.out.tfevents.SECOND`; within one second a process number or counter decides, as a text.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while seconds and time.time() < max(seconds) + 1 < time.time() + 5:  # a file of the far future is not waited for
        time.sleep(0.05)


def _log_one_event(tracker: GeneralTracker, numbers: Mapping[str, float], step: int) -> None:
    """All numbers of a step as one event: Accelerate's `log` writes and flushes each, which takes 8 ms a step."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    tracker.tracker.file_writer.add_summary(Summary(value=values), step)


def _run_id(tracker: GeneralTracker) -> str | None:
    return RUN_ID_OF[tracker.name](tracker) if tracker.name in RUN_ID_OF else None


def _read_ids(path: Path) -> dict[str, str | None]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _settings(name: str, known_ids: Mapping[str, str | None], folder: Path, first_step: int) -> dict[str, Any]:
    """Keyword arguments for the start of a tracker."""
    is_resumed = name in known_ids
    if name == "tensorboard":
        return {"flush_secs": FLUSH_S} | ({"purge_step": first_step + 1} if is_resumed else {})
    given = {"dir": str(folder)} if name == "wandb" else {}
    if not is_resumed:
        return given
    run_id = known_ids[name]
    if run_id is None:
        warnings.warn(f"trackers: {name} cannot go on in the run it had; it begins another.", stacklevel=2)
        return given
    return given | CONTINUATION_OF[name](run_id)


def _describe(tracker: GeneralTracker, recipe: TrackedRecipe) -> None:
    """Tells a tracker that begins a run the recipe."""
    values = recipe.to_dict()
    if tracker.name == "tensorboard":  # its own table of hyper-parameters would be a run of its own beside this one
        tracker.log({"recipe": "```json\n" + json.dumps(values, indent=2) + "\n```"}, step=0)
    else:
        tracker.store_init_configuration(dict(_flat(values)))


def _flat(values: Any, key: str = "") -> list[tuple[str, Any]]:
    """(dotted key, plain value) of everything in nested mappings and lists."""
    if isinstance(values, dict):
        items: Sequence[tuple[Any, Any]] = list(values.items())
    elif isinstance(values, list):
        items = list(enumerate(values))
    else:
        return [(key, values)]
    return [pair for name, value in items for pair in _flat(value, f"{key}.{name}" if key else str(name))]
