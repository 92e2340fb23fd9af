"""Measured figures as Markdown: what the files under model_cards/results/measured say of search, export and serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Figures = Mapping[str, Any]


def render_measured(name: str, figures: Figures) -> str:
    """The table of a file of that name, and a line on where its figures come from.

    Raises:
        ValueError: no table is known for the name.
    """
    if name not in TABLES:
        raise ValueError(f"no table is known for {name!r}; known are {', '.join(TABLES)}. Name one of these.")
    origin = (
        f"Command: `{figures['command']}`. Weights {figures['model_revision']}. Data: {figures['data_revision']}, "
        f"seed {figures['seed']}. {figures['hardware']}, load average {figures['load_at_start']:g} when it began."
    )
    return f"{TABLES[name](figures)}\n\n{origin}\n"


def search_table(figures: Figures) -> str:
    """A row for each way to search."""
    num_queries, exact_ms = figures["num_queries"], figures["forms"][0]["ms_per_query"]
    head = ["regions found by", f"recall@10, asked by {num_queries['regions']:,} regions"]
    head += [f"by {num_queries['texts']:,} texts", "time a query, exact = 1", "build, s"]
    lines = [head, ["---", "---:", "---:", "---:", "---:"]]
    for form in figures["forms"]:
        recalls = [_interval(form["recall@10"][kind]) for kind in ("regions", "texts")]
        is_exact = form["kind"] == "exact"
        relative = f"1 ({exact_ms:.3g} ms)" if is_exact else f"{form['relative_time']:.3f}"
        built = "-" if is_exact else f"{form['build_s']:.1f}"
        recalls = ["1", "1"] if is_exact else recalls
        lines.append([_form_title(form, figures["tuned_search_width"]), *recalls, relative, built])
    making = figures["making"]
    queries = ", ".join(f"{ms:g} by {kind}" for kind, ms in figures["whole_query_ms"].items())
    return _markdown(lines) + (
        f"\n\n{figures['num_rows']:,} regions, D = {figures['width']}; asked by {figures['queries_revision']}. 95 % "
        "intervals are Wilson's, at the effective number of neighbours. Times are processor time of one thread. "
        f"A whole query through `Searcher`, model included, took {queries} (median ms). Making the index of "
        f"{making['num_images']:,} images took {making['processor_s']:.0f} s: of each image "
        f"{making['read_ms_per_image']:.1f} ms to draw it, {making['embed_ms_per_image']:.1f} to embed it."
    )


def export_table(figures: Figures) -> str:
    """A row for each path."""
    lines = [
        [
            "graph",
            "largest difference",
            "int8: least cosine",
            "times as fast as torch",
            "int8, times as fast",
            "MB, of int8",
        ],
        ["---", *["---:"] * 5],
    ]
    for name, path in figures["paths"].items():
        speeds = [_spread(path["times_as_fast_as_eager"][kind]) for kind in ("onnx", "int8")]
        size = f"{path['bytes'] / 1e6:.1f}, {path['int8_bytes'] / 1e6:.1f}"
        difference, cosine = f"{path['largest_difference']:.1e}", f"{path['least_int8_cosine']:.4f}"
        lines.append([f"`{name}`", difference, cosine, *speeds, size])
    inputs, batch = figures["inputs"], max(path["batch"] for path in figures["paths"].values())
    count = len(figures["paths"]["image"]["times_as_fast_as_eager"]["onnx"])
    pixels = figures["preprocessing"]["largest_pixel_difference"]
    return _markdown(lines) + (
        f"\n\n{inputs['images']} images, {inputs['regions']} regions, {inputs['texts']} texts. Passes of {batch}, "
        f"{figures['threads']} thread; speeds: median, and in brackets least and most, of {count} exports. Pixel "
        f"values of the program beside the graphs differ from the processor's by at most {pixels:.1g}."
    )


def load_table(figures: Figures) -> str:
    """A row for each number of clients."""
    lines = [
        ["clients", "wrong", "good: median, 95 %, worst", "bad: median, 95 %, worst", "bad within 50 ms",
         "memory after 100, at the end"],
        ["---:", "---:", "---", "---", "---:", "---"],
    ]  # fmt: skip
    for run in figures["runs"]:
        times = ["{p50_ms:.0f}, {p95_ms:.0f}, {max_ms:.0f} ms".format(**run[kind]) for kind in ("good", "bad")]
        within = f"{run['bad']['within_50_ms']:,} of {run['bad']['n']:,}"
        memory = f"{run['memory_mb'][0]:.0f}, {run['memory_mb'][-1]:.0f} MiB"
        wrong = f"{len(run['wrong'])} of {run['requests']:,}"
        lines.append([str(run["clients"]), wrong, *times, within, memory])
    return _markdown(lines)


def _form_title(form: Figures, tuned_search_width: int) -> str:
    if form["kind"] == "hnsw":
        chosen = ", which the tuning chose" if form["search_width"] == tuned_search_width else ""
        return f"HNSW, search width {form['search_width']}{chosen}"
    if form["kind"] == "ivf":
        return f"IVF of {form['num_lists']} lists, {form['lists_looked_at']} looked at"
    return "looking at all: exact"


def _interval(figure: Figures) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _spread(values: Sequence[float]) -> str:
    """Median (least, most); "left out" of a graph that was not kept."""
    return f"{median(values):.1f} ({min(values):.1f}, {max(values):.1f})" if values else "left out"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[Figures], str]] = {
    "search.json": search_table,
    "export.json": export_table,
    "handler_load.json": load_table,
}
