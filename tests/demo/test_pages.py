"""The HTML of the answers: right numbers, escaped texts, colours that follow the cosines."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

EVIL = '<img src=x onerror="alert(1)">'


def test_the_whole_picture_and_each_box_have_a_card_with_their_best_text_first(demo):
    image = np.array([0.25, 0.75], dtype=np.float32)
    regions = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    html = demo.pages.reading(["cyst", "nodule"], image, regions, [None, "nodule in the liver ✓"], 1)
    assert re.findall(r'bar-text">(\w+)<.*?bar-share">(\d+) %', html) == [
        *[("nodule", "75"), ("cyst", "25")],
        *[("cyst", "90"), ("nodule", "10")],
        *[("nodule", "80"), ("cyst", "20")],
    ]
    assert html.count("is-selected") == 1
    assert "Drawn here: nodule in the liver ✓" in html


def test_without_boxes_the_page_says_what_a_box_would_do(demo):
    html = demo.pages.reading(["a", "b"], np.array([0.5, 0.5]), np.zeros((0, 2)), [], None)
    assert "Draw a box" in html


def test_what_a_visitor_writes_is_text_and_never_markup(demo):
    picture, heat = Image.new("RGB", (4, 4)), np.arange(16, dtype=np.float32).reshape(4, 4)
    one = np.ones((1, 1), dtype=np.float32)
    pages = [
        demo.pages.reading([EVIL], one[0], one, [EVIL], 0),
        demo.pages.heat_page(picture, EVIL, heat, [], []),
        demo.pages.cases_page(EVIL, [(0.5, EVIL, picture)], 1),
        demo.pages.note(EVIL, is_error=True),
    ]
    for html in pages:
        assert "<img src=x" not in html
        assert "&lt;img src=x onerror=" in html


def test_the_heat_map_is_dark_where_the_cosine_is_low_and_bright_where_it_is_high(demo):
    heat = np.array([[0.0, 1.0]], dtype=np.float32)
    shown = np.asarray(demo.pages.heat_picture(Image.new("RGB", (2, 1), (100, 100, 100)), heat))[0]
    # opacity 0.1 of #0b0724 and 0.75 of #fcffa4 over grey 0.7 * 100: 0.9 * 70 + 0.1 * 11 = 64.1, ...
    assert shown.tolist() == [[64, 64, 67], [206, 209, 140]]


def test_a_constant_heat_map_and_one_with_gaps_are_drawn(demo):
    picture = Image.new("RGB", (2, 1))
    for heat in ([[0.3, 0.3]], [[np.nan, 0.3]]):
        assert demo.pages.heat_picture(picture, np.array(heat, dtype=np.float32)).size == (2, 1)


def test_the_ring_lies_on_the_highest_place(demo):
    heat = np.zeros((4, 5), dtype=np.float32)
    heat[1, 3] = 1.0
    html = demo.pages.heat_page(Image.new("RGB", (5, 4)), "cyst", heat, [(1, 1, 3, 2)], [0.71])
    assert 'class="peak" style="left:70.00%;top:37.50%"' in html  # (3 + 0.5) / 5 and (1 + 0.5) / 4
    assert 'left:20.00%;top:25.00%;width:40.00%;height:25.00%"><b>0.71</b>' in html
