"""The counts are those of the rows, taken without reading an image; the plots are files of a decent size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from built_corpora import rewrite
from PIL import Image

from regionmed_clip.processing.corpus.corpus_stats import (
    AREA_STRATA,
    COLUMNS,
    KINDS,
    MAX_FINDINGS,
    SplitStats,
    collect_stats,
    format_table,
    percentile_of,
    stats_tables,
    sum_stats,
)
from regionmed_clip.processing.corpus.stats_plots import write_plots


def test_the_counts_are_those_of_the_rows(built_once):
    stats = collect_stats(built_once)
    assert {split: counts.num_images for split, counts in stats.items()} == {"train": 5, "validation": 1, "test": 2}
    total = sum_stats(stats.values())
    assert (total.num_regions, total.num_masks, total.num_questions, total.num_with_patient) == (14, 14, 1, 8)
    assert total.findings == {"nodule": 7, "effusion": 7}
    assert total.images_of["license"] == {"CC BY 4.0": 8}
    assert total.images_of["text_origin"] == {"template": 7, "source": 1}
    assert total.regions_of_source == {"chest": 14}
    assert total.questions_of_source == {"chest": 1}
    # 17 x 9 and 30 x 28 of 60 x 48 pixels: 5.3 % and 29.2 %
    assert total.areas == {"5 to 20 %": 7, "> 20 %": 7}
    assert total.regions_per_image == {"0": 1, "2": 7}


def test_text_lengths_are_counted_in_words_by_level(built):
    texts = [("caption", "A nodule in the  left lung."), ("caption", "Nodule."), ("region", " two words ")]
    made = [{"level": level, "region": None, "text": text, "key": 1, "origin": "source"} for level, text in texts]
    corpus = rewrite(built.folder, "validation", lambda rows: rows[0].update(texts=made))
    stats = collect_stats(corpus)["validation"]
    assert stats.words == {"caption": Counter({6: 1, 1: 1}), "region": Counter({2: 1})}
    assert stats.text_origins == {"source": 3}


def test_a_box_on_the_edge_of_a_stratum_belongs_to_the_larger_one(built):
    def square(rows):
        row = next(row for row in rows if row["regions"])
        row |= {"width": 100, "height": 100}
        boxes = [[0, 0, 10, 1], [0, 0, 10, 10], [0, 0, 25, 20], [0, 0, 50, 40], [0, 0, 3, 3]]
        row["regions"] = [row["regions"][0] | {"box": [float(v) for v in box], "mask": None} for box in boxes]

    corpus = rewrite(built.folder, "validation", square)
    areas = collect_stats(corpus)["validation"].areas
    assert [areas[name] for name in AREA_STRATA] == [1, 1, 1, 1, 1]


def test_no_image_byte_is_read(built_once):
    """The leaves that are read hold no image, and every one of them exists."""
    with pq.ParquetFile(built_once.shard_paths("train")[0]) as file:
        leaves = [file.schema.column(k).path for k in range(len(file.schema))]
    read = [leaf for leaf in leaves if any(leaf == name or leaf.startswith(f"{name}.") for name in COLUMNS)]
    assert not any(leaf.startswith("image") for leaf in read)
    assert {name for name in COLUMNS if any(leaf == name or leaf.startswith(f"{name}.") for leaf in read)} == set(
        COLUMNS
    )
    assert "regions.list.element.mask.counts.list.element" not in read


@pytest.mark.parametrize("percent", [5, 50, 95, 100])
def test_a_percentile_is_numpys_by_inverted_distribution(percent):
    values = np.random.default_rng(0).integers(0, 40, 301)
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile_of(Counter(values.tolist()), percent) == expected


def test_tables_name_every_kind_of_count_and_escape_bars(built_once):
    tables = {title: (header, rows) for title, header, rows in stats_tables(collect_stats(built_once))}
    assert list(tables)[:5] == ["Splits", "Sources", "Licences", "Modalities", "Origin of image texts"]
    assert tables["Sources"][1] == [["chest", "8", "14", "1", "5", "1", "2"]]
    num_negatives = sum(len(row["negatives"]) for split in built_once.splits() for row in built_once.rows(split))
    assert tables["Splits"][1][-1] == ["all", "8", "14", "14", "1", str(num_negatives), "8"]
    assert format_table(["name", "n"], [["a|b", "1,000"]]).splitlines() == [
        "| name |     n |",
        "| ---- | ----: |",
        "| a\\|b | 1,000 |",
    ]


def test_more_findings_than_fit_are_cut_and_counted():
    stats = SplitStats(num_images=1, num_regions=90)
    stats.findings.update({f"finding {k:02d}": 2 for k in range(45)})
    title, rows = next((title, rows) for title, _, rows in stats_tables({"train": stats}) if title.startswith("Find"))
    assert title == f"Findings (top {MAX_FINDINGS} of 45)"
    assert len(rows) == MAX_FINDINGS
    assert rows[0][2] == "2.2 %"  # of all regions, not of those shown


def test_the_plots_are_readable_files_for_whatever_there_is(built_once, tmp_path):
    stats = collect_stats(built_once)
    stats["train"].words["caption"] = Counter({5: 3, 9: 1})
    paths = write_plots(stats, tmp_path / "plots", "tiny@0")
    assert [path.name for path in paths] == ["composition.png", "findings.png", "regions.png", "text_lengths.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 800
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
        assert path.stat().st_size < 200_000
    assert len(list((tmp_path / "plots").iterdir())) == 4
    bare = {"train": SplitStats(num_images=1, images_of={kind: Counter({"one": 1}) for kind in KINDS})}
    assert [path.name for path in write_plots(bare, tmp_path / "bare", "bare@0")] == ["composition.png"]
