"""`regionmed-corpus stats`: what a built corpus holds, counted from its columns; image bytes are never read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.records import TEXT_LEVELS

AREA_EDGES = (0.001, 0.01, 0.05, 0.20)  # shares of the image
AREA_STRATA = ("< 0.1 %", "0.1 to 1 %", "1 to 5 %", "5 to 20 %", "> 20 %")
REGION_EDGES = (1, 2, 3, 6, 11, 21)
REGION_BINS = ("0", "1", "2", "3 to 5", "6 to 10", "11 to 20", "> 20")
MAX_FINDINGS = 30
KINDS = ("source", "license", "modality", "text_origin")
_NUMBER = re.compile(r"[\d,.]+(?: %)?")
_REGION, _TEXT = "regions.list.element.", "texts.list.element."
COLUMNS = (
    *(*KINDS, "width", "height", "patient_id"),
    *(f"{_REGION}{name}" for name in ("box", "finding", "text_origin", "mask.size")),
    *(f"{_TEXT}{name}" for name in ("level", "text", "origin")),
    *("qa.list.element.kind", "negatives.list.element.changed"),
)


@dataclass
class SplitStats:
    """Counts of one split, or of several added up.

    Attributes:
        num_images, num_regions, num_questions, num_masks, num_negatives, num_with_patient: totals; the last one counts
            images whose patient is known.
        images_of: kind (KINDS) -> value -> number of images.
        regions_of_source, questions_of_source: source -> number.
        findings: finding -> number of regions.
        areas: number of regions by AREA_STRATA.
        regions_per_image: number of images by REGION_BINS.
        words: level of text -> number of words -> number of texts.
        region_origins, text_origins: "template" or "source" -> number of region texts, and of all texts.
    """

    num_images: int = 0
    num_regions: int = 0
    num_questions: int = 0
    num_masks: int = 0
    num_negatives: int = 0
    num_with_patient: int = 0
    images_of: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    regions_of_source: Counter[str] = field(default_factory=Counter)
    questions_of_source: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    areas: Counter[str] = field(default_factory=Counter)
    regions_per_image: Counter[str] = field(default_factory=Counter)
    words: dict[str, Counter[int]] = field(default_factory=dict)
    region_origins: Counter[str] = field(default_factory=Counter)
    text_origins: Counter[str] = field(default_factory=Counter)

    def add(self, other: SplitStats) -> None:
        """Nothing; takes over the counts of another split."""
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
            elif isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                for key, counter in value.items():
                    getattr(self, name).setdefault(key, Counter()).update(counter)


def collect_stats(corpus: BuiltCorpus) -> dict[str, SplitStats]:
    """Split -> its counts, for every split; at most the columns of one shard, without images, are in memory."""
    stats = {}
    for split in corpus.splits():
        stats[split] = SplitStats()
        for path in corpus.shard_paths(split):
            with pq.ParquetFile(path) as file:
                _count(file.read(columns=list(COLUMNS)), stats[split])
    return stats


def sum_stats(stats: Iterable[SplitStats]) -> SplitStats:
    """The counts of all splits added up."""
    total = SplitStats()
    for split in stats:
        total.add(split)
    return total


def percentile_of(counter: Counter[int], percent: float) -> int:
    """The smallest value that `percent` % of what is counted do not exceed."""
    values = sorted(counter)
    reached = np.cumsum([counter[value] for value in values])
    return values[int(np.searchsorted(reached, percent / 100 * reached[-1]))]


def stats_tables(stats: dict[str, SplitStats]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of every table."""
    total = sum_stats(stats.values())
    splits = [*stats.items(), ("all", total)] if len(stats) > 1 else [*stats.items()]
    numbers = ("images", "regions", "masks", "questions", "negatives", "with patient id")
    rows = []
    for name, split in splits:
        values = (split.num_images, split.num_regions, split.num_masks, split.num_questions, split.num_negatives)
        rows.append([name, *(f"{value:,}" for value in (*values, split.num_with_patient))])
    yield "Splits", ["split", *numbers], rows
    yield (
        "Sources",
        ["source", "images", "regions", "questions", *stats],
        [
            [
                name,
                f"{number:,}",
                f"{total.regions_of_source[name]:,}",
                f"{total.questions_of_source[name]:,}",
                *(f"{split.images_of['source'][name]:,}" for split in stats.values()),
            ]
            for name, number in total.images_of["source"].most_common()
        ],
    )
    for kind, title in (("license", "Licences"), ("modality", "Modalities"), ("text_origin", "Origin of image texts")):
        yield title, [kind.replace("_", " "), "images", "share"], _shares(total.images_of[kind].most_common())
    findings = total.findings.most_common(MAX_FINDINGS)
    title = (
        "Findings" if len(total.findings) <= MAX_FINDINGS else f"Findings (top {MAX_FINDINGS} of {len(total.findings)})"
    )
    yield title, ["finding", "regions", "share"], _shares(findings, total.num_regions)
    areas = [(name, total.areas[name]) for name in AREA_STRATA]
    yield "Box area, share of the image", ["area", "regions", "share"], _shares(areas)
    bins = [(name, total.regions_per_image[name]) for name in REGION_BINS]
    yield "Regions per image", ["regions", "images", "share"], _shares(bins)
    yield (
        "Text lengths in words",
        ["level", "texts", "median", "5 %", "95 %", "longest"],
        [
            [level, f"{sum(counter.values()):,}", *(f"{percentile_of(counter, p)}" for p in (50, 5, 95, 100))]
            for level, counter in _by_level(total.words)
        ],
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; columns of numbers are set right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    columns = list(zip(*cells))
    widths = [max(3, *map(len, column)) for column in columns]
    is_number = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]

    def line_of(line: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, is_number)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, is_number)]
    return "\n".join([line_of(cells[0]), f"| {' | '.join(rule)} |", *map(line_of, cells[1:])])


def _by_level(words: dict[str, Counter[int]]) -> Iterator[tuple[str, Counter[int]]]:
    """The levels that occur, in their own order."""
    return ((level, words[level]) for level in TEXT_LEVELS if words.get(level))


def _shares(numbers: Sequence[tuple[str, int]], total: int | None = None) -> list[list[str]]:
    """Rows of name, number and share of the total."""
    total = (sum(number for _, number in numbers) if total is None else total) or 1
    return [[name, f"{number:,}", f"{100 * number / total:.1f} %"] for name, number in numbers]


def _count(table: pa.Table, stats: SplitStats) -> None:
    """Nothing; adds the rows of a table of COLUMNS."""
    stats.num_images += table.num_rows
    for kind in KINDS:
        stats.images_of[kind].update(_values(table.column(kind)))
    stats.num_with_patient += table.num_rows - table.column("patient_id").null_count
    stats.num_negatives += int(pc.sum(pc.list_value_length(table.column("negatives"))).as_py() or 0)
    sources = table.column("source").to_numpy()
    for name, counter in (("regions", stats.regions_of_source), ("qa", stats.questions_of_source)):
        lengths = pc.list_value_length(table.column(name)).to_numpy()
        for source in np.unique(sources):
            counter[str(source)] += int(lengths[sources == source].sum())
        if name == "qa":
            stats.num_questions += int(lengths.sum())
            continue
        stats.num_regions += int(lengths.sum())
        places = np.searchsorted(REGION_EDGES, lengths, side="right")
        stats.regions_per_image.update(
            {REGION_BINS[place]: int((places == place).sum()) for place in np.unique(places)}
        )
    _count_regions(table, stats)
    texts = pc.list_flatten(table.column("texts").combine_chunks())
    levels = pc.struct_field(texts, "level")
    stats.text_origins.update(_values(pc.struct_field(texts, "origin")))
    num_words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.struct_field(texts, "text"))))
    for level in pc.unique(levels).to_pylist():
        chosen = num_words.filter(pc.equal(levels, level)).to_numpy(zero_copy_only=False)
        lengths, numbers = np.unique(chosen, return_counts=True)
        stats.words.setdefault(level, Counter()).update(dict(zip(lengths.tolist(), numbers.tolist())))


def _count_regions(table: pa.Table, stats: SplitStats) -> None:
    """Nothing; adds findings, areas, masks and origins of the regions of a table."""
    column = table.column("regions").combine_chunks()
    regions = pc.list_flatten(column)
    if len(regions) == 0:
        return
    stats.findings.update(_values(pc.struct_field(regions, "finding")))
    stats.region_origins.update(_values(pc.struct_field(regions, "text_origin")))
    sizes = pc.struct_field(regions, ["mask", "size"])
    stats.num_masks += len(sizes) - sizes.null_count
    boxes = pc.list_flatten(pc.struct_field(regions, "box")).to_numpy(zero_copy_only=False).reshape(-1, 4)
    image_of_region = pc.list_parent_indices(column).to_numpy()
    sides = [table.column(name).to_numpy().astype(np.float64) for name in ("width", "height")]
    shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (sides[0] * sides[1])[image_of_region]
    places = np.searchsorted(AREA_EDGES, shares, side="right")
    stats.areas.update({AREA_STRATA[place]: int((places == place).sum()) for place in np.unique(places)})


def _values(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Value -> how often it occurs in a column."""
    counts = pc.value_counts(column)
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist()))
