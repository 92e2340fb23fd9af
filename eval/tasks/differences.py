"""Paired differences of two figures on the same queries: of two models, or of one model asked in two ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from regionmed_clip.eval.intervals import paired_bootstrap_p, paired_interval, paired_permutation_p
from regionmed_clip.eval.tasks.measured import Measured

# keys of a protocol that say nothing of a difference
OF_ONE_FIGURE = ("chance", "interval", "of_the_model", "per_finding", "readings")
CHOICE = ("gallery", "prompts_sha256")  # of a protocol: what was chosen among, the same for two that are compared


def subtract(figure: Measured, other: Measured, seed: int) -> Measured:
    """The paired difference figure - other, with its interval and p; a skipped one where their queries differ.

    Args:
        seed: by which both were resampled.
    """
    protocol = in_common(figure.protocol, other.protocol) | {"paired": True}
    is_other_choice = any(figure.protocol.get(key) != other.protocol.get(key) for key in CHOICE)
    if is_other_choice or not np.array_equal(figure.clusters, other.clusters):
        what = f"queries, {figure.n:,} and {other.n:,}" if figure.n != other.n else "queries or candidates"
        reason = f"measured on different {what}: regions outside a model's frame"
        blank = {"value": None, "low": None, "high": None, "resampled": None, "clusters": None, "outcomes": None}
        return replace(figure, **blank, protocol=protocol | {"skipped": reason})
    differences = figure.resampled - other.resampled
    low, high = paired_interval(figure.resampled, other.resampled)
    if figure.outcomes is not None and other.outcomes is not None:
        p_value = paired_permutation_p(figure.outcomes, other.outcomes, figure.clusters, seed=seed)
        test = "paired permutation, patients (or texts) swapped whole"
    else:
        p_value, test = paired_bootstrap_p(differences), "paired bootstrap"
    return replace(
        figure,
        value=figure.value - other.value,
        low=low,
        high=high,
        protocol=protocol | {"p_value": p_value, "test": test},
        resampled=differences,
        outcomes=None,
    )


def in_common(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two protocols say alike, without what is said of a single figure's value."""
    return {key: value for key, value in first.items() if key not in OF_ONE_FIGURE and second.get(key) == value}
