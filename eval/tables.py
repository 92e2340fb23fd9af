"""Results as text: one Markdown table, models side by side, every figure with its interval and its n."""

from __future__ import annotations

from collections.abc import Sequence

from regionmed_clip.eval.metric_titles import metric_place, metric_title
from regionmed_clip.eval.results import Result

MODEL_ORDER = ("regionmed-clip", "plain-clip", "colour-size-probe")
SKIPPED_TITLES = {  # one line instead of one for each k and direction
    "image_to_text_recall": "image ↔ text, R@k",
    "text_to_image_recall": "image ↔ text, R@k",
    "text_to_region_recall": "text → region, R@k",
}

OF_IMAGES = "all regions of an image resampled together; where texts are the queries, texts"
OF_PATIENTS = (
    "all images of a patient resampled together (an image alone where none is named, texts where they are the queries)"
    "; of shares Wilson's, at the effective number of queries"
)


def format_table(results: Sequence[Result]) -> str:
    """The Markdown table of `results`: a row for each figure and stratum, a column for each model.

    A cell is `value [low, high]`; a figure that was not computed reads `n/a`, its reason in the last column.
    Paired differences (`A minus B`) stand in the last columns. Rows: whole split first, then sources and strata.
    Results of several data have a table each.
    """
    by_data: dict[tuple[str, str | None, str | None], list[Result]] = {}
    for result in results:
        split = result.protocol.get("split"), result.protocol.get("split_sha256")
        by_data.setdefault((result.data_revision, *split), []).append(result)
    if len(by_data) < 2:
        return _format_one_table(results)
    named = [(data, split) for data, split, _ in by_data]
    parts = []
    for (data, split, sha256), own in by_data.items():
        images = f" (sha256 {str(sha256)[:12]})" if named.count((data, split)) > 1 else ""  # one seed, two lengths
        parts.append(f"## {data}, {split}{images}\n\n{_format_one_table(own)}")
    return "\n".join(parts)


def _format_one_table(results: Sequence[Result]) -> str:
    """The table of results of one split."""
    models = sorted(model_names(results), key=is_difference)
    cells = {(r.metric, r.source, r.stratum, r.model): r for r in results}
    rows = sorted({(r.metric, r.source, r.stratum) for r in results}, key=_row_order)
    lines = [["figure", "data", *models, "n", "candidates"], ["---", "---", *["---:"] * (len(models) + 1), "---"]]
    told = set()  # figures that were not computed: one line for all of a kind
    for metric, source, stratum in rows:
        of_row = [cells.get((metric, source, stratum, model)) for model in models]
        first = next(r for r in of_row if r is not None)
        title, last = metric_title(metric), _candidates(first)
        if all(r is None or r.value is None for r in of_row):
            last = f"n/a: {first.protocol['skipped']}"
            title = SKIPPED_TITLES.get(metric.partition("@")[0], title)
            if (title, source, stratum) in told:
                continue
            told.add((title, source, stratum))
        texts = [format_cell(r) for r in of_row]
        lines.append([title, stratum_title(source, stratum), *texts, f"{first.n:,}", last])
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + _notes(results)) + "\n"


def format_arm_table(results: Sequence[Result]) -> str:
    """The Markdown table of a study with many arms: a row for each arm and difference, a column for each figure.

    Only figures of the whole split are shown; below the arms stand the number of queries and chance.
    """
    whole = [r for r in results if r.source is None and r.stratum is None]
    cells = {(r.model, r.metric): r for r in whole}
    metrics = sorted({r.metric for r in whole}, key=lambda metric: _row_order((metric, None, None)))
    models = model_names(whole)
    lines = [["arm", *map(metric_title, metrics)], ["---", *["---:"] * len(metrics)]]
    for name in sorted(models, key=is_difference):
        lines.append([name, *(format_cell(cells.get((name, metric))) for metric in metrics)])
    of_first = [cells[models[0], metric] for metric in metrics]
    chances = [result.protocol.get("chance") for result in of_first]
    lines.insert(len(models) + 2, ["chance", *("-" if chance is None else f"{chance:.3f}" for chance in chances)])
    lines.insert(len(models) + 2, ["n", *(f"{result.n:,}" for result in of_first)])
    seeds = ", ".join(str(seed) for seed in of_first[0].protocol["seeds"])
    notes = ["", f"- Means over the seeds {seeds}. Brackets: 95 % interval; images resampled, trainings fixed."]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + notes) + "\n"


def model_names(results: Sequence[Result]) -> list[str]:
    """The models of the results: those of MODEL_ORDER first, others in order of appearance."""
    found = list(dict.fromkeys(r.model for r in results))
    return sorted(found, key=lambda name: MODEL_ORDER.index(name) if name in MODEL_ORDER else len(MODEL_ORDER))


def is_difference(model_name: str) -> bool:
    """Whether the name is of a paired difference of two models."""
    return " minus " in model_name


def stratum_title(source: str | None, stratum: str | None) -> str:
    """The data of a row: "all", "bccd", "phantom: fundus", or a stratum over all sources, "noisy boxes"."""
    if source is None:
        return stratum or "all"
    return source if stratum is None else f"{source}: {stratum}"


def format_cell(result: Result | None) -> str:
    """`value [low, high]`, `n/a` for a figure that was skipped, `-` for one that the model has not."""
    if result is None:
        return "-"
    if result.value is None:
        return "n/a"
    sign = "+" if is_difference(result.model) else ""
    return f"{result.value:{sign}.3f} [{result.low:{sign}.3f}, {result.high:{sign}.3f}]"


def _candidates(result: Result) -> str:
    """What was ranked, and chance where the protocol states it."""
    gallery, chance = result.protocol.get("gallery"), result.protocol.get("chance")
    text = "-" if gallery is None else f"{gallery:,}" if isinstance(gallery, int) else str(gallery)
    return text if chance is None else f"{text} (chance {chance:.3f})"


def _row_order(row: tuple[str, str | None, str | None]) -> tuple:
    """Whole split, then sources, then strata; within each the metrics in METRIC_ORDER."""
    metric, source, stratum = row
    depth = (source is not None) + (stratum is not None)
    return depth, source or "", stratum or "", metric_place(metric), metric


def _notes(results: Sequence[Result]) -> list[str]:
    """Lines below the table: what the brackets are, whether it was a smoke run, and the readings of plain-clip."""
    is_of_patients = any("interval" in r.protocol for r in results)  # else as the first published results were taken
    resampled = OF_PATIENTS if is_of_patients else OF_IMAGES
    notes = ["", f"- Brackets: 95 % bootstrap interval, {resampled}."]
    smoke = next((r.protocol["smoke"] for r in results if r.protocol.get("smoke")), None)
    if smoke is not None:
        notes.append(f"- **A smoke run ({smoke}): it tells that everything runs, and nothing about a model.**")
    for r in results:
        is_whole = r.source is None and r.stratum is None and r.value is not None
        if is_whole and r.metric == "region_to_text_accuracy" and "readings" in r.protocol:
            readings = ", ".join(f"{name} {value:.3f}" for name, value in r.protocol["readings"].items())
            notes.append(f"- {r.model} reads regions without training for it; the better counts: {readings}.")
    return notes
