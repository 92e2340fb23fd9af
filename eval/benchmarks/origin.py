"""Where measured figures come from: what a published file says beside them, so that they can be measured again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from regionmed_clip.eval.results import describe_hardware
from regionmed_clip.eval.tasks.revision import weights_revision

SEED = 0


def describe_origin(program: str, arguments: Sequence[str], model: Any) -> dict[str, Any]:
    """{"command", "model_revision", "seed", "hardware", "load_at_start"}, the last how busy the machine was.

    Args:
        program: how it is started, such as "python -m regionmed_clip.eval.benchmarks.search_recall".
        arguments: what follows it; an --output, which changes no figure, is left out with its value.
    """
    kept = list(arguments)
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place : place + 2]
    return {
        "command": f"{program} {shlex.join(kept)}",
        "model_revision": weights_revision(model),
        "seed": SEED,
        "hardware": describe_hardware(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
