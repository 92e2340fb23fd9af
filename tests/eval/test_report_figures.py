"""Axes, panels and protocols of the page's figures."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionmed_clip.eval.report_figures import build_figures, nice_axis, slug, split_protocol
from regionmed_clip.eval.results import Result

FINITE = st.one_of(st.floats(-1e6, 1e6), st.floats(-1.0, 1.0), st.floats(-1e-10, 1e-10))


def make_result(metric="macro_auroc", model="ours", value=0.8, **changes) -> Result:
    protocol = {"gallery": None, "split": "test", "split_sha256": "a", "prompts_sha256": None, "unique_texts": None}
    values = {"task": "region", "low": value, "high": value, "n": 9, "model_revision": "m", "data_revision": "d"}
    values |= {"seed": 0, "hardware": "h", "command": "c", "protocol": {**protocol, **changes.pop("protocol", {})}}
    return Result(**{**values, **changes, "metric": metric, "model": model, "value": value})


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=6))
def test_an_axis_holds_all_values_and_zero_between_even_ticks(values):
    axis = nice_axis(values, is_share=False)
    slack = 1e-8 * (axis.high - axis.low)  # a value that lies on a tick but for its rounding needs no further one
    assert axis.low <= min(0.0, *values) + slack
    assert axis.high >= max(0.0, *values) - slack
    assert 2 <= len(axis.ticks) <= 5
    assert min(abs(tick) for tick in axis.ticks) < 1e-9
    steps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks)
    assert all(0.0 <= axis.percent(value) <= 100.0 for value in values)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.13, 0.29], ["0.0", "0.1", "0.2", "0.3"]),
        ([-0.06, 0.02], ["-0.10", "-0.05", "0.00", "0.05"]),
        ([-0.77], ["-1.0", "-0.5", "0.0"]),
        ([0.0, 4e-12], ["0.000", "0.002"]),
        ([1234.0], ["0", "500", "1000", "1500"]),
    ],
)
def test_ticks_stand_at_round_values(values, ticks):
    axis = nice_axis(values, is_share=False)
    assert [axis.label(tick) for tick in axis.ticks] == ticks


def test_shares_have_one_axis_and_figures_beyond_one_their_own():
    share, ratio = build_figures([make_result(), make_result("a_ratio", value=1.4)], {"ours": 0})
    assert (share.whole[0].axis.low, share.whole[0].axis.high) == (0.0, 1.0)
    assert ratio.whole[0].axis.high == 1.5


def test_the_whole_stands_open_and_its_parts_below():
    results = [
        make_result(),
        make_result(source="s"),
        make_result(source="s", stratum="CT"),
        make_result(stratum="small"),
    ]
    (figure,) = build_figures(results, {"ours": 0})
    assert [panel.title for panel in figure.whole] == ["whole split"]
    assert [panel.title for panel in figure.parts] == ["small", "s", "s: CT"]


def test_a_figure_without_a_whole_split_opens_with_what_it_has():
    results = [make_result(source="s"), make_result(source="t"), make_result(source="t", stratum="CT")]
    (figure,) = build_figures(results, {"ours": 0})
    assert [panel.title for panel in figure.whole] == ["s", "t"]
    assert [panel.title for panel in figure.parts] == ["t: CT"]


def test_metrics_stand_in_table_order_and_strengths_by_their_number():
    names = ["z_cosine@20", "image_to_text_recall@5", "z_cosine@5", "region_to_text_accuracy"]
    figures = build_figures([make_result(name) for name in names], {"ours": 0})
    assert [figure.metric for figure in figures] == [names[3], names[1], names[2], names[0]]
    assert figures[-1].title == "z cosine@20"


def test_a_protocol_is_split_into_what_is_shared_and_what_differs_by_row():
    results = [
        make_result(model=model, source=source, protocol={"gallery": size, "reading": model, "tuned_on": {"n": 3}})
        for model in ("ours", "plain")
        for source, size in ((None, 40), ("s", 20))
    ]
    common, varying = split_protocol(results)
    assert dict(common)["tuned_on"] == {"n": 3}
    assert dict(varying)["gallery"] == [(40, ["all"]), (20, ["s"])]
    assert dict(varying)["reading"] == [("ours", ["ours"]), ("plain", ["plain"])]
    odd = [*results, make_result(source="t", protocol={"gallery": 40, "reading": "ours", "tuned_on": {"n": 3}})]
    assert dict(split_protocol(odd)[1])["gallery"] == [(40, ["all", "t"]), (20, ["s"])]
    mixed = [make_result(model="a", protocol={"x": 1}), make_result(model="b", protocol={"x": 2})]
    mixed += [
        make_result(model="a", source="s", protocol={"x": 2}),
        make_result(model="b", source="s", protocol={"x": 1}),
    ]
    assert dict(split_protocol(mixed)[1])["x"][0] == (1, ["a (all)", "b (s)"])


@pytest.mark.parametrize("texts", [("a b", "a-b!"), ("x@1", "X→1"), ("é", "è")])
def test_ids_of_different_texts_differ(texts):
    assert len({slug(text) for text in texts}) == 2
    assert all(set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for text in texts)
