"""The top of the page: the headline figures side by side, what must be known before reading them, their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regionmed_clip.eval.report_figures import figure_title, is_lower_better, metric_order
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.tables import is_difference, model_names

MARKS = {  # entries of a protocol that its reader must see before the figures
    "smoke": "a smoke run, whose figures only tell that everything runs: ",
    "leaks": "test data seen in training: ",
    "split_leaks": "thresholds or probes fitted to test data: ",
    "training_data": "training data ",
}
HEADLINES = (
    "region_to_text_accuracy",
    "text_to_region_recall@1",
    "case_mean_average_precision",
    "image_to_text_recall@1",
    "text_to_image_recall@1",
    "macro_auroc",
    "macro_auroc_pos_neg",
    "macro_ap",
    "zero_shot_balanced_accuracy",
    "grounding_pointing_game",
    "grounding_contrast_to_noise_ratio",
    "grounding_box_f1",
    "counterfactual_pair_accuracy",
    "probe_balanced_accuracy",
    "expected_calibration_error_scaled",
    "proposal_recall",
    "region_jitter_cosine@20",
    "vqa_accuracy",
    "vqa_accuracy_given_boxes",
    "vqa_marked_gain_given_boxes",
)
MAX_DIFFERENCES = 2  # columns; with more models, the figures below show them
MAX_SUMMARY = 14  # rows where none of the headlines is there


@dataclass(frozen=True)
class SummaryRow:
    """A headline figure: its results by model, None where a model has none."""

    title: str
    is_lower_better: bool
    n: int
    cells: list[Result | None]


@dataclass(frozen=True)
class Summary:
    """The headline table: models, and a row for each figure of the whole split."""

    models: list[str]
    rows: list[SummaryRow]


def summarise(results: Sequence[Result]) -> Summary:
    """The headline figures of the whole split by model, differences last; empty where no whole split was measured."""
    whole = [r for r in results if r.source is None and r.stratum is None and r.value is not None]
    cells = {(r.metric, r.model): r for r in reversed(whole)}  # the first of equals counts
    present = {r.metric for r in whole}
    metrics = [metric for metric in HEADLINES if metric in present]
    metrics = metrics or sorted(present, key=metric_order)[:MAX_SUMMARY]
    measured = [name for name in model_names(whole) if any((metric, name) in cells for metric in metrics)]
    differences = [name for name in measured if is_difference(name)]
    models = [name for name in measured if not is_difference(name)]
    models += differences if len(differences) <= MAX_DIFFERENCES else []
    rows = []
    for metric in metrics:
        of_row = [cells.get((metric, model)) for model in models]
        found = [result for result in of_row if result is not None]
        if not found:
            continue
        rows.append(SummaryRow(figure_title(metric), is_lower_better(found[0]), max(r.n for r in found), of_row))
    return Summary(models, rows)


def warnings_of(results: Sequence[Result]) -> list[str]:
    """What a reader must know before the figures: leaks, unknown training data, data or seeds that differ."""
    own = [result for result in results if not is_difference(result.model)]
    warnings = []
    for key, text in MARKS.items():
        models_of_mark: dict[str, dict[str, None]] = {}
        for result in own:
            if result.protocol.get(key):
                models_of_mark.setdefault(str(result.protocol[key]), {})[result.model] = None
        warnings += [f"{', '.join(models)}: {text}{mark}." for mark, models in models_of_mark.items()]
    by_metric: dict[str, set[tuple[str, str | None]]] = {}
    for result in own:
        by_metric.setdefault(result.metric, set()).add((result.data_revision, result.protocol["split_sha256"]))
    mixed = sorted(figure_title(metric) for metric, data in by_metric.items() if len(data) > 1)
    if mixed:
        warnings.append(f"Measured on more than one set of data, so compare within one only: {', '.join(mixed)}.")
    seeds = sorted({result.seed for result in results})
    if len(seeds) > 1:
        warnings.append(f"Intervals were drawn with different seeds ({', '.join(map(str, seeds))}).")
    return warnings


def provenance(results: Sequence[Result]) -> list[dict[str, str]]:
    """One row for each model and data: revisions, split, seed, hardware and command, equal ones once."""
    rows = {}
    for r in results:
        if is_difference(r.model):
            continue
        row = {
            "model": r.model,
            "model revision": r.model_revision,
            "data": r.data_revision,
            "split": f"{r.protocol['split']} (sha256 {r.protocol['split_sha256']})",
            "seed": str(r.seed),
            "hardware": r.hardware,
            "command": r.command,
        }
        rows[tuple(row.values())] = row
    return list(rows.values())
