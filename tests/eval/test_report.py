"""Tables and pictures: what they must say, that they are written, and that they stay small."""

from __future__ import annotations

import numpy as np
import pytest
from page_reader import read_page
from PIL import Image

from regionmed_clip.eval.overlays import draw_region_overlays
from regionmed_clip.eval.pictures import draw_results
from regionmed_clip.eval.report import CAPTIONS, write_report
from regionmed_clip.eval.report_gallery import region_sheet
from regionmed_clip.eval.results import Result
from regionmed_clip.eval.selection import PHANTOM_NOTE, TEMPLATE_NOTE, choose_rows, collect, data_note
from regionmed_clip.eval.style import HIT, MAX_BYTES, bare, drawing
from regionmed_clip.eval.tables import format_table
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.runner import compare_outcomes, run_plain_clip, run_tasks

METRICS_ROWS = [
    {"step": step, "stage": "global" if step < 6 else "region", "loss": 3.0 / step, "loss_image_text": 2.0 / step}
    | {"lr": 0.1}
    | ({"loss_region_text": 1.0 / step} if step >= 6 else {})
    for step in range(1, 13)
]
VALIDATION_ROWS = [
    {"step": step, "stage": "region", "metric": "macro_auroc", "value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    for step in (6, 12)
]


@pytest.fixture(scope="module")
def examples(draw_example):
    """24 drawn examples of two sources; one has nine regions, one none."""
    rows = [draw_example(i, source="phantom" if i < 16 else "real", num_regions=2) for i in range(22)]
    return [*rows, draw_example(22, source="real", num_regions=9), draw_example(23, source="real", num_regions=0)]


def make_result(**changes) -> Result:
    protocol = {"gallery": 40, "unique_texts": 40, "split": "test", "split_sha256": "a", "prompts_sha256": None}
    values = {"model": "regionmed-clip", "task": "region", "metric": "region_to_text_accuracy", "value": 0.8125}
    values |= {"low": 0.75, "high": 0.85, "n": 1000, "model_revision": "m", "data_revision": "d", "seed": 0}
    values |= {"hardware": "h", "command": "c", "protocol": {**protocol, **changes.pop("protocol", {})}}
    return Result(**{**values, **changes})


def rows_of(table: str) -> list[list[str]]:
    """The cells of the table's rows, head first."""
    lines = [line for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_sets_models_side_by_side_with_interval_and_n():
    plain = make_result(model="plain-clip", value=0.4, low=0.3, high=0.5)
    head, row = rows_of(format_table([plain, make_result()]))
    assert head == ["figure", "data", "regionmed-clip", "plain-clip", "n", "candidates"]
    assert row[2:] == ["0.812 [0.750, 0.850]", "0.400 [0.300, 0.500]", "1,000", "40"]


def test_a_skipped_figure_is_one_line_with_its_reason():
    skipped = {"value": None, "low": None, "high": None, "task": "retrieval", "source": "bccd"}
    results = [
        make_result(metric=f"{way}_recall@{k}", protocol={"skipped": "12 unique texts, fewer than 20"}, **skipped)
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5)
    ]
    (_, row) = rows_of(format_table(results))
    assert row == ["image ↔ text, R@k", "bccd", "n/a", "1,000", "n/a: 12 unique texts, fewer than 20"]


def test_two_splits_of_one_revision_have_a_table_each():
    """Phantoms of one seed, 60 and 300 of them: the revision is the same, the images are not."""
    protocol = make_result().protocol
    other = make_result(value=0.2, low=0.1, high=0.3, protocol={**protocol, "split_sha256": "f" * 64})
    table = format_table([make_result(), other])
    assert table.count("| figure | data |") == 2
    assert f"(sha256 {'f' * 12})" in table
    assert "0.200 [0.100, 0.300]" in table


def test_a_split_without_regions_still_makes_a_table():
    protocol = {"readings": {"dense_mean": None, "crop": None}, "skipped": "no regions"}
    nothing = make_result(model="plain-clip", value=None, low=None, high=None, n=0, protocol=protocol)
    assert "n/a: no regions" in format_table([nothing])


def test_differences_stand_last_with_signs_and_readings_below():
    plain = make_result(model="plain-clip", protocol={"readings": {"dense_mean": 0.25, "crop": 0.5}})
    table = format_table([make_result(model="regionmed-clip minus plain-clip", low=-0.1), make_result(), plain])
    assert rows_of(table)[0][4] == "regionmed-clip minus plain-clip"
    assert rows_of(table)[1][4] == "+0.812 [-0.100, +0.850]"
    assert "dense_mean 0.250, crop 0.500" in table


def test_rows_go_from_the_whole_to_the_parts():
    results = [
        make_result(source="s", stratum="CT"),
        make_result(source="s"),
        make_result(metric="macro_auroc", task="zero_shot"),
        make_result(),
    ]
    assert [row[1] for row in rows_of(format_table(results))[1:]] == ["all", "all", "s", "s: CT"]


def test_a_stratum_over_all_sources_bears_its_own_name():
    results = [make_result(stratum="noisy boxes"), make_result(stratum="exact boxes")]
    assert [row[1] for row in rows_of(format_table(results))[1:]] == ["exact boxes", "noisy boxes"]


def test_a_report_is_complete_and_its_pictures_are_small(model, processor, examples, context, tmp_path):
    options = {"context": context, "tasks": ("retrieval", "zero_shot", "region"), "progress": False}
    ours = run_tasks(model, processor, {"test": examples}, model_name="regionmed-clip", **options)
    plain = run_plain_clip(model, processor, {"test": examples}, **options)
    report = write_report(
        tmp_path / "report",
        metrics_rows=METRICS_ROWS,
        results=[*ours.results, *plain.results, *compare_outcomes(ours, plain), make_result(metric="proposal_recall")],
        model=model,
        processor=processor,
        examples=iter(examples),
        embedded=ours.embedded,
        validation_rows=VALIDATION_ROWS,
        page=tmp_path / "report.html",
    )
    index = report.index
    text = index.read_text()
    names = "results region_overlays heat_maps grounding text_to_image image_to_text".split()
    names += ["loss_curves", "training_state", "validation"]
    assert {path.stem for path in index.parent.glob("*.png")} == set(names)
    for name in names:
        assert f"]({name}.png)" in text
        picture = index.parent / f"{name}.png"
        assert picture.stat().st_size <= MAX_BYTES
        with Image.open(picture) as image:
            assert image.width > 600
    assert PHANTOM_NOTE[1:] in text
    assert TEMPLATE_NOTE in text
    assert "| region → text, top-1 | all |" in text
    assert list(report.pictures) == [name for name in CAPTIONS if f"]({name})" in text]
    check_page(tmp_path / "report.html", report)


def check_page(path, report) -> None:
    """AssertionError unless the page shows every sheet, every image it names once, and the charts of the training."""
    page = read_page(path.read_text())
    sheets = ["regions", "worst_regions", "similar", "heat_maps", "grounding"]
    assert [sheet.name for sheet in report.sheets] == [*sheets, "text_to_image", "image_to_text", "worst_images"]
    text = page.text
    assert [sheet.title for sheet in report.sheets if sheet.title not in text] == []
    assert sum(len(row) for sheet in report.sheets for row in sheet.rows) == len(page.all(class_="card"))
    shown = {use.attributes["href"][1:] for one in page.all(class_="picture") for use in one.all("use")}
    assert shown == {image.attributes["id"] for image in page.all("image")}
    assert [img.attributes["alt"] for img in page.all("img")] == [
        CAPTIONS[name] for name in ("validation.png", "loss_curves.png", "training_state.png")
    ]
    assert len(page.all("table", class_="confusion")) == 2  # a source each
    assert PHANTOM_NOTE[1:] in page.one(class_="notice").text


def test_a_run_without_regions_or_training_still_reports(model, processor, draw_example, tmp_path):
    examples = [draw_example(i, num_regions=0) for i in range(3)]
    embedded = embed_examples(model, processor, examples, progress=False)
    report = write_report(
        tmp_path,
        metrics_rows=[],
        results=[],
        model=model,
        processor=processor,
        examples=examples,
        embedded=embedded,
    )
    assert {path.stem for path in tmp_path.glob("*.png")} == {"text_to_image", "image_to_text"}
    assert report.index.read_text().startswith("# Report")
    assert {sheet.name for sheet in report.sheets} <= {"text_to_image", "image_to_text", "worst_images"}


def test_charts_need_results(tmp_path):
    assert not draw_results(tmp_path / "b.png", [make_result(model="a minus b")])
    assert list(tmp_path.iterdir()) == []


def test_shown_images_take_turns_over_strata_in_split_order(embed_by_hand):
    modalities = ["CT", "CT", "MRI", "CT", "MRI"]
    embedded = embed_by_hand(np.eye(5, dtype=np.float32), list("abcde"), modalities=modalities)
    assert choose_rows(embedded, 4) == [0, 2, 1, 4]
    assert choose_rows(embedded, 4, min_meanings=1) == []  # none has a region


def test_images_with_different_regions_come_first_where_asked_for(embed_by_hand):
    unit = np.eye(4, dtype=np.float32)
    regions = [(0, "left cyst", unit[0], (0, 0, 1, 1)), (2, "left cyst", unit[0], (0, 0, 1, 1))]
    regions.append((2, "right cyst", unit[1], (0, 0, 1, 1)))
    assert choose_rows(embed_by_hand(unit[:3], list("abc"), regions=regions), 3, min_meanings=2) == [2, 0]


def test_collecting_stops_at_the_last_wanted_example(embed_by_hand):
    seen = []

    def stream():
        for i in range(100):
            seen.append(i)
            image = Image.new("L", (8, 8))
            yield {"image_id": f"image-{i}", "image": image, "regions": [], "modality": "CT", "source": "phantom"}

    embedded = embed_by_hand(np.eye(24, dtype=np.float32), [f"caption {i}" for i in range(24)])
    shown = collect(stream(), embedded, [3, 1])
    assert sorted(shown) == [1, 3]
    assert len(seen) == 4
    assert data_note(embedded, shown.values()) == ""


def test_a_noisy_picture_is_shrunk_below_the_limit_and_keeps_its_accents(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)
    with drawing(tmp_path / "noise.png", (9, 7)) as figure:
        axes = bare(figure.subplots())
        axes.imshow(noise)
        axes.axvspan(200, 500, color=HIT)
    with Image.open(tmp_path / "noise.png") as saved:
        image = saved.convert("RGB")
    assert (tmp_path / "noise.png").stat().st_size <= MAX_BYTES
    assert image.getpixel((round(image.width * 0.45), image.height // 2)) == (0x34, 0xD3, 0x99)


def test_an_image_that_is_in_two_parts_of_a_mixture_is_shown_in_both_places(embed_by_hand):
    embedded = embed_by_hand(np.eye(4, dtype=np.float32), ["a", "b", "c", "d"])
    embedded.image_ids[3] = embedded.image_ids[1]
    examples = [
        {"image_id": name, "image": Image.new("L", (8, 8), row), "regions": [], "modality": "CT", "source": "phantom"}
        for row, name in enumerate(embedded.image_ids)
    ]
    shown = collect(examples, embedded, [1, 3])
    assert [shown[row].image.getpixel((0, 0))[0] for row in (1, 3)] == [1, 3]


def test_examples_of_another_split_are_refused(embed_by_hand):
    embedded = embed_by_hand(np.eye(2, dtype=np.float32), ["a", "b"])
    with pytest.raises(ValueError, match=r"hold no image 'image-0' in its place \(2 of 2 missing\)"):
        collect([], embedded, [0, 1])


def test_a_region_cropped_away_by_the_processor_is_left_out_of_the_overlay(model, processor, draw_example, tmp_path):
    cropping = processor.image_processor.with_overrides(geometry="source", do_center_crop=True, crop_size=32)
    cropping = cropping.with_overrides(size={"shortest_edge": 32})
    narrow = type(processor)(cropping, processor.tokenizer)
    example = draw_example(0, num_regions=2, size=(200, 40))  # the crop keeps x = 80 .. 120
    example["regions"][1]["box"] = [90, 5, 110, 30]
    embedded = embed_examples(model, narrow, [example], progress=False)
    assert (embedded.num_regions, embedded.num_regions_outside) == (1, 1)
    shown = collect([example], embedded, [0])
    assert draw_region_overlays(tmp_path / "o.png", [shown[0]], embedded)
    (row,) = region_sheet(embedded, [shown[0]]).rows
    assert [group.heading.text for group in row[0].groups] == [example["regions"][1]["description"]]
