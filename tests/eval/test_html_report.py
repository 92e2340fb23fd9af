"""The page: it loads nothing, escapes everything, and gives every figure its interval, its n and its protocol."""

from __future__ import annotations

import re

import numpy as np
import pytest
from page_reader import read_page
from PIL import Image

from regionmed_clip.eval.html_report import PAGE_FOLDER, model_slots, render_page, share_sheets, write_page
from regionmed_clip.eval.model_report import ModelReport
from regionmed_clip.eval.report_gallery import Card, Group, Line, Sheet, place_box, small_picture
from regionmed_clip.eval.results import Result

EVIL = """<script>alert("1")</script></style><img src=http://evil.example/x onerror='y'>&"""
BINS = [{"low": 0.0, "high": 0.5, "n": 4, "confidence": 0.3, "accuracy": 0.25}]
BINS += [{"low": 0.5, "high": 1.0, "n": 0, "confidence": 0.0, "accuracy": 0.0}]


def make_result(**changes) -> Result:
    protocol = {"gallery": 40, "unique_texts": 40, "split": "test", "split_sha256": "a" * 64, "prompts_sha256": None}
    values = {"model": "ours", "task": "region", "metric": "region_to_text_accuracy", "value": 0.8}
    values |= {"low": 0.75, "high": 0.85, "n": 1000, "model_revision": "m", "data_revision": "d", "seed": 0}
    values |= {"hardware": "h", "command": "c", "protocol": {**protocol, **changes.pop("protocol", {})}}
    return Result(**{**values, **changes})


def make_picture(shade: int = 100, size=(40, 20)):
    return small_picture(Image.new("RGB", size, (shade, 0, 0)))


def make_sheet(answer: str = "cyst", *, shade: int = 100, number_of_cards: int = 1) -> Sheet:
    picture = make_picture(shade)
    card = Card(
        "CT · a", picture, [place_box(picture, (0, 0, 10, 10))], [Group(Line("nodule"), [Line(answer, "miss", 0.5)])]
    )
    return Sheet("regions", "Regions", "a note", [[card] * number_of_cards])


@pytest.fixture(scope="module")
def full_page() -> str:
    """A page with one of everything, hostile text wherever text comes from outside."""
    results = [
        make_result(model=EVIL, protocol={"per_finding": {EVIL: 0.5}, "chance": 0.1}),
        make_result(model="plain", value=0.4, low=0.3, high=0.5, source=EVIL, stratum=EVIL),
        make_result(model=f"{EVIL} minus plain", value=0.4, low=0.2, high=0.5, protocol={"p_value": 0.0004}),
        make_result(metric=EVIL, task=EVIL, value=None, low=None, high=None, protocol={"skipped": EVIL}, command=EVIL),
        *(make_result(task="robustness", metric=f"a_cosine@{k}", value=0.9, low=0.8, high=1.0) for k in (5, 10)),
    ]
    picture = make_picture()
    card = Card(
        EVIL, picture, [place_box(picture, (1, 1, 9, 9), "hit", EVIL)], [Group(Line(EVIL), [Line(EVIL, "hit", 1)])]
    )
    details = {"reliability": {EVIL: BINS}, EVIL: [{EVIL: EVIL}], "matrix": {"labels": [EVIL], "counts": [[3]]}}
    details |= {"pairs": {EVIL: EVIL}, "empty": [], "text": EVIL}
    report = ModelReport(PAGE_FOLDER / "none", {}, EVIL, [Sheet(EVIL, EVIL, EVIL, [[card]])])
    return render_page(results, reports={"plain": report}, details={"plain": {"region": details}}, title=EVIL)


def test_the_page_loads_nothing_and_runs_nothing(full_page):
    text, page = full_page, read_page(full_page)
    references = [
        e.attributes[name] for e in page.all() for name in ("src", "href", "action", "data") if name in e.attributes
    ]
    assert len(references) > 5
    assert [r for r in references if not r.startswith(("#", "data:image/"))] == []
    assert page.all("script") == page.all("link") == page.all("iframe") == page.all("object") == []
    assert [e for e in page.all() for name in e.attributes if name.startswith("on")] == []
    style = page.one("style").text
    assert re.findall(r"@import|url\(", style) == []
    assert [target for target in re.findall(r"url\(([^)]*)", text) if not target.startswith("#")] == []
    policies = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_text_is_shown_as_text_wherever_it_comes_from(full_page):
    page = read_page(full_page)
    assert page.all("img") == []
    shown = " ".join(EVIL.split())
    places = {
        "title": page.one("title"),
        "note": page.one(class_="notice"),
        "heading": page.one("h1"),
        "model": page.all(class_="result")[0],
        "task": next(e for e in page.all("h2") if "alert" in e.text),
        "reason": page.all(class_="skipped")[0],
        "protocol": page.all(class_="protocol")[0],
        "table": next(e for e in page.all("td") if "alert" in e.text),
        "card": page.one(class_="card"),
        "origin": page.all("section")[-1],
    }
    assert [name for name, element in places.items() if shown.lower() not in element.text.lower()] == []


def test_ids_are_unique_and_every_link_of_the_page_leads_somewhere(full_page):
    page = read_page(full_page)
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {e.attributes["href"][1:] for e in page.all() if e.attributes.get("href", "").startswith("#")}
    assert targets <= set(ids)
    assert {e.attributes["aria-labelledby"] for e in page.all("section")} <= set(ids)


def test_every_figure_has_its_value_its_interval_and_its_n():
    results = [make_result(), make_result(model="plain", value=0.4, low=0.3, high=0.5, n=12)]
    results += [make_result(source="s", value=0.1, low=0.0, high=0.2, n=7)]
    rows = read_page(render_page(results)).all(class_="result")
    texts = [row.one(class_="value").text for row in rows]
    assert texts == ["0.800 [0.750, 0.850] n = 1,000", "0.400 [0.300, 0.500] n = 12", "0.100 [0.000, 0.200] n = 7"]
    labels = [row.one("svg").attributes["aria-label"] for row in rows]
    assert labels[0] == "ours: 0.800, 95 % interval [0.750, 0.850], n = 1,000"


def test_marks_stand_where_the_values_are_on_the_axis():
    (row,) = read_page(render_page([make_result(protocol={"chance": 0.25})])).all(class_="result")
    assert row.one("circle").attributes["cx"] == "80.0%"
    interval = row.one("line", class_="interval").attributes
    assert (interval["x1"], interval["x2"]) == ("75.0%", "85.0%")
    assert row.one("line", class_="chance").attributes["x1"] == "25.0%"


def test_a_figure_that_was_not_computed_says_why_and_draws_nothing():
    skipped = make_result(value=None, low=None, high=None, protocol={"skipped": "too few texts"})
    alone = read_page(render_page([skipped]))
    assert (alone.all("circle"), alone.one(class_="skipped").text) == ([], "not computed: too few texts")
    beside = read_page(render_page([skipped, make_result(model="plain")]))
    assert beside.all(class_="row")[0].text == "ours not computed: too few texts n/a"
    assert len(beside.all("circle")) == 1


@pytest.mark.parametrize(
    ("low", "high", "is_lower_better", "verdict"),
    [
        (0.1, 0.3, False, "better"),
        (0.1, 0.3, True, "worse"),
        (-0.3, -0.1, True, "better"),
        (-0.1, 0.1, False, "unclear"),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_by_which_way_is_better(low, high, is_lower_better, verdict):
    protocol = {"lower_is_better": is_lower_better, "p_value": 0.0312}
    difference = make_result(model="ours minus plain", value=0.5 * (low + high), low=low, high=high, protocol=protocol)
    results = [make_result(protocol=protocol), make_result(model="plain", protocol=protocol), difference]
    (row,) = read_page(render_page(results)).one("details", class_="differences").all(class_="result")
    assert verdict in row.attributes["class"].split()
    assert row.one(class_="verdict").text.endswith(verdict)
    assert "p = 0.031" in row.text
    tags = [tag.text for tag in read_page(render_page(results)).all(class_="tag")]
    assert tags == ["lower is better"] * (2 * is_lower_better)  # in the summary and at the figure


def test_the_protocol_names_what_is_shared_once_and_what_differs_with_its_rows():
    results = [make_result(protocol={"gallery": 672}), make_result(source="s", protocol={"gallery": 154})]
    protocol = read_page(render_page(results)).one(class_="protocol").text
    assert "672 (all) 154 (s)" in protocol
    assert protocol.count("a" * 64) == 1


def test_the_summary_sets_models_side_by_side():
    results = [make_result(), make_result(model="plain", value=0.4, low=0.3, high=0.5)]
    results += [make_result(model="ours minus plain", value=0.4, low=0.35, high=0.45)]
    table = read_page(render_page(results)).one("table", class_="summary")
    assert [e.text for e in table.one("thead").all("th")] == ["figure", "ours", "plain", "ours minus plain", "n"]
    cells = [e.text for e in table.one("tbody").all("td")]
    assert cells == ["0.800 [0.750, 0.850]", "0.400 [0.300, 0.500]", "+0.400 [+0.350, +0.450]", "1,000"]


def test_figures_of_different_data_are_not_shown_as_comparable():
    results = [make_result(), make_result(model="plain", data_revision="other")]
    page = read_page(render_page(results))
    assert "more than one set of data" in page.one(class_="notice").text
    titles = [panel.one("p").text for panel in page.all(class_="panel")]
    assert titles == ["d, test", "other, test"]


def test_leaks_unknown_training_data_and_smoke_runs_are_told_first():
    marks = {"leaks": "3 of 9 test images", "training_data": "unknown (no record)", "smoke": "the first 24 images"}
    results = [
        make_result(protocol=marks),
        make_result(model="plain", protocol={"training_data": "unknown (no record)"}),
    ]
    notice = read_page(render_page(results)).one(class_="notice")
    assert [line.text for line in notice.all("li")] == [
        "ours: a smoke run, whose figures only tell that everything runs: the first 24 images.",
        "ours: test data seen in training: 3 of 9 test images.",
        "ours, plain: training data unknown (no record).",
    ]
    assert read_page(render_page([make_result()])).all(class_="notice") == []


def test_the_title_of_a_curve_has_x_for_the_number_and_tells_which_way_is_better():
    names = [f"region_to_text_accuracy_drop_noise@{k}" for k in (5, 15)]
    results = [make_result(task="robustness", metric=name, protocol={"lower_is_better": True}) for name in names]
    chart = read_page(render_page(results)).one("figure", class_="chart")
    assert chart.one("svg").attributes["aria-label"] == "Curve: noise of x %: region → text lost"
    assert chart.one("figcaption").text == "Bars: 95 % intervals; n = 1,000; lower is better"


def test_a_curve_over_shots_ends_at_all():
    metrics = ("probe_balanced_accuracy@4", "probe_balanced_accuracy@16", "probe_balanced_accuracy")
    chart = read_page(render_page([make_result(task="probe", metric=metric) for metric in metrics])).one("figure")
    words = [element.text for element in chart.all("text")]
    assert [word for word in words if word in ("4", "16", "all")] == ["4", "16", "all"]
    assert "labelled examples of each class" in words


def test_recalls_at_several_k_are_rows_and_no_curve():
    results = [make_result(task="retrieval", metric=f"image_to_text_recall@{k}") for k in (1, 5)]
    page = read_page(render_page(results))
    assert page.all("figure") == []
    assert len(page.all(class_="result")) == 2


def test_a_section_opens_with_its_headlines_and_a_few_more_and_keeps_the_others_one_tap_away():
    metrics = ["region_to_text_accuracy", *(f"figure {letter}" for letter in "abcde"), "text_to_region_recall@1"]
    page = read_page(render_page([make_result(metric=metric) for metric in metrics]))
    others = [figure.one("h3").text for figure in page.all("details", class_="block")[0].all("article")]
    assert others == ["figure c", "figure d", "figure e"]
    assert len(page.all("article")) == len(metrics)


def test_lists_of_numbers_become_lines_and_points_of_curves_are_not_told_twice():
    lines = {"threshold": [0.1, 0.2], "mean_iou": [0.3, 0.4], "chosen_threshold": 0.2}
    points = [{"figure": "a", "strength": 5, "value": 1, "low": 0, "high": 1}]
    page = read_page(render_page([], details={"m": {"grounding": {"iou": lines, "curves": points}}}))
    assert page.one("figure").one("figcaption").text == "chosen threshold: 0.2"
    assert {"threshold", "mean iou"} <= {element.text for element in page.all("text")}
    assert page.all("table") == []


def test_light_and_dark_define_every_colour_that_is_used(full_page):
    style = (PAGE_FOLDER / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", style, flags=re.DOTALL)[:2]
    defined = [set(re.findall(r"(--[\w-]+):", theme)) for theme in (light, dark)]
    assert defined[0] == defined[1]
    used = set(re.findall(r"var\((--[\w-]+)", style + full_page))
    assert used - {"--colour"} <= defined[0]
    assert set(re.findall(r"--model-\d", light)) == {f"--model-{slot}" for slot in range(8)}


def test_a_chart_is_inline_svg_whose_letters_are_text_and_whose_colours_follow_the_page():
    results = [make_result(task="robustness", metric=f"noise_cosine@{k}", n=90) for k in (5, 20)]
    text = render_page([*results, make_result(task="robustness", metric="noise_cosine@5", model="$a$ & b")])
    chart = read_page(text).one("figure", class_="chart")
    words = [e.text for e in chart.all("text")]
    assert {"5", "20", "ours", "$a$ & b", "noise cosine@x"} <= set(words)
    assert chart.one("figcaption").text == "Bars: 95 % intervals; n = 90 to 1,000"
    assert "#fe0" not in text
    assert "var(--model-1)" in text
    assert chart.one("svg").attributes["aria-label"] == "Curve: noise cosine@x"


def test_reliability_diagrams_of_all_models_stand_together_with_their_counts():
    details = {model: {"calibration": {"bins": {"before": BINS, "after": BINS}}} for model in ("a", "b")}
    charts = read_page(render_page([], details=details)).all("figure", class_="chart")
    assert len(charts) == 2
    assert all("before n = 4, after n = 4" in chart.text for chart in charts)


def test_a_confusion_matrix_shades_by_share_and_must_be_square():
    matrix = {"labels": ["a", "b"], "counts": [[3, 1], [0, 2]]}
    table = read_page(render_page([], details={"m": {"region": {"x": matrix}}})).one("table", class_="confusion")
    rows = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
    assert rows == [["4", "3", "1"], ["2", "", "2"]]
    assert "0.45" in table.all("td", class_="right")[0].attributes["style"]  # 0.6 of 3 / 4
    with pytest.raises(ValueError, match="2 labels and counts of 1 x"):
        render_page([], details={"m": {"region": {"x": {"labels": ["a", "b"], "counts": [[1, 2]]}}}})


def test_a_long_table_says_how_many_rows_it_leaves_out():
    rows = [{"image": f"i{k}", "score": 1 / 3} for k in range(75)]
    page = read_page(render_page([], details={"m": {"region": {"worst_errors": rows}}}))
    assert len(page.one("tbody").all("tr")) == 60
    assert "15 more rows are not shown." in page.text
    assert page.one("tbody").all("td")[1].text == "0.3333"


def test_equal_sheets_of_models_stand_side_by_side_and_a_picture_is_held_once():
    first, second, other = make_sheet("cyst"), make_sheet("effusion"), make_sheet(shade=7)
    shared = share_sheets({"a": [first], "b": [second], "c": [other]})
    assert [sheet.models for sheet in shared] == [["a", "b"], ["c"]]
    reports = {m: ModelReport(PAGE_FOLDER / "none", sheets=[s]) for m, s in {"a": first, "b": second}.items()}
    page = read_page(render_page([], reports=reports))
    assert len(page.all("image")) == 1
    assert page.one("use").attributes["href"] == "#" + page.one("image").attributes["id"]
    lines = [line.text for line in page.one(class_="card").all("li")]
    assert lines == ["nodule", "a", "✗ cyst 0.50", "b", "✗ effusion 0.50"]


def test_strips_are_one_only_where_all_of_them_is_equal():
    same, again, other = (make_sheet(answer, number_of_cards=2) for answer in ("cyst", "cyst", "effusion"))
    assert [s.models for s in share_sheets({"a": [same], "b": [again], "c": [other]})] == [["a", "b"], ["c"]]


def test_boxes_are_drawn_in_the_pixels_of_the_small_picture():
    picture = make_picture(size=(576, 288))  # twice the largest side
    box = place_box(picture, (100, 50, 700, 90), "hit", "1")
    assert (picture.width, picture.height) == (288, 144)
    assert (box.x, box.y, box.width, box.height) == (50.0, 25.0, 238.0, 20.0)  # cut at the right rim


def test_a_page_without_anything_still_stands_and_is_written_whole(tmp_path):
    path = write_page(tmp_path / "sub" / "report.html", [])
    assert read_page(path.read_text()).one("h1").text == "Evaluation report"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_difference_bears_the_colour_of_its_first_model():
    slots = model_slots([make_result(model="b"), make_result(model="a"), make_result(model="a minus b")])
    assert slots["a minus b"] == slots["a"] != slots["b"]
    assert np.ptp(list(slots.values())) == 1
