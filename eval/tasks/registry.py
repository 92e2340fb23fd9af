"""The tasks by name; each is a module of this package with `measure(inputs: TaskInputs) -> TaskFindings`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from regionmed_clip.eval.tasks.task_inputs import Task

TASKS = (
    "retrieval",
    "zero_shot",
    "region",
    "proposals",
    "robustness",
    "grounding",
    "counterfactual",
    "probe",
    "calibration",
    "vqa",
)
TUNED_TASKS = frozenset({"zero_shot", "grounding", "probe", "calibration"})  # they choose on the tuning split
TAUGHT_TASKS = frozenset({"probe"})  # they learn from the training split
GLOBAL_TASKS = frozenset({"retrieval"})  # they read no region
OWN_PASS_TASKS = ("zero_shot", "proposals", "robustness", "grounding", "vqa")  # they go through the examples again
READING_TASKS = frozenset({"region", "robustness", "counterfactual"})  # what another reading of one model changes
TRAINED_REGION_TASKS = frozenset({"proposals"})  # they tell nothing of a model whose region path is untrained


def find_task(name: str) -> Task:
    """The task's `measure`; its module, and what that needs, is imported at the first call."""
    check_tasks([name])
    return import_module(f"regionmed_clip.eval.tasks.{name}").measure


def check_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repeats, in the order of TASKS; ValueError for one that is not known, or for none."""
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise ValueError(f"tasks {list(names)} are not known; choose from {', '.join(TASKS)}.")
    return tuple(name for name in TASKS if name in names)
