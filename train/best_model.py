"""The model that was the best of its run, by the figure of the validation split that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_regionmed_clip import RegionMedClipModel

from .adapter_files import merge_adapters
from .adapters import settle_adapters
from .checkpoint import AVERAGE_FILE, BEST_FOLDER, best_state, load_average, load_model_weights
from .moving_average import load_average_into
from .stage_plan import StagePlan


@dataclass(frozen=True)
class BestModel:
    """A model in evaluation mode with its adapters merged, as it was after `step`, and for which figure it was kept."""

    model: RegionMedClipModel
    step: int
    reason: str


def load_best(
    output_dir: Path,
    identity: Mapping[str, Any],
    plans: Sequence[StagePlan],
    build: Callable[[], RegionMedClipModel],
) -> BestModel | None:
    """The best model of the run of this `identity`, with its moving average for weights where its stage had one.

    None where no checkpoint was kept as the best of this run.

    Args:
        build: gives a model as it is before the first step.
    """
    checkpoints = output_dir / "checkpoints"
    state = best_state(checkpoints)
    if state is None or state.best is None or state.identity != identity:
        return None
    path, model = checkpoints / BEST_FOLDER, build()
    settle_adapters(model, plans, state.step)
    load_model_weights(path, model)
    if (path / AVERAGE_FILE).is_file():
        load_average_into(model, load_average(path))
    merge_adapters(model)
    reason = f"{state.best.metric} {state.best.value:.4f} on the split {state.best.split}"
    return BestModel(model.eval(), state.step, reason)
