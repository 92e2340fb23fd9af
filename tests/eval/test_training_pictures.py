"""Charts of a run by step: which panels there are, what lies in them, and where curves break."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from regionmed_clip.eval import training_pictures
from regionmed_clip.eval.style import STAGE_SHADES
from regionmed_clip.eval.training_pictures import draw_loss_curves, draw_training_state, draw_validation

ROWS = [
    {"step": step, "stage": "global" if step <= 4 else "region", "loss": 10.0 - step, "grad_norm": 2.0, "lr": 0.1}
    | {"loss_image_text": 1.0, "logit_scale_image_text": 14.0, "data_wait_share": 0.25, "fusion_alpha": 0.0}
    | ({"gate_mean": 0.5 if step != 6 else None, "loss_region_text": 3.0, "grad_norm_roi": 1.0} if step > 4 else {})
    for step in range(1, 9)
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept instead of written."""
    drawn: list[Figure] = []

    @contextmanager
    def keep(path, size_inches):
        drawn.append(Figure(figsize=size_inches))
        yield drawn[-1]

    monkeypatch.setattr(training_pictures, "drawing", keep)
    return drawn


def panels_of(figure: Figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def points_of(axes) -> list[tuple[float, float]]:
    return [tuple(point) for line in axes.lines for point in line.get_xydata() if np.isfinite(point[1])]


def test_nothing_is_drawn_of_a_run_without_rows(figures, tmp_path):
    assert not draw_loss_curves(tmp_path / "a.png", [])
    assert not draw_training_state(tmp_path / "a.png", [])
    assert not draw_validation(tmp_path / "a.png", [])
    assert figures == []


def test_every_loss_has_a_panel_and_a_term_is_drawn_only_where_its_stage_has_it(figures, tmp_path):
    assert draw_loss_curves(tmp_path / "a.png", ROWS)
    panels = panels_of(figures[0])
    assert list(panels) == ["total loss", "image-text loss", "region-text loss"]
    assert {step for step, _ in points_of(panels["region-text loss"])} == {5, 6, 7, 8}
    assert {step for step, _ in points_of(panels["total loss"])} == set(range(1, 9))


def test_smoothing_averages_the_neighbours_of_the_same_stage(figures, tmp_path):
    draw_loss_curves(tmp_path / "a.png", ROWS)
    thick = [line for line in panels_of(figures[0])["total loss"].lines if line.get_linewidth() == 2]
    assert [line.get_xdata().tolist() for line in thick] == [[1, 2, 3, 4], [5, 6, 7, 8]]  # no line over the boundary
    # losses 9 8 7 6 | 5 4 3 2, one neighbour on either side
    assert [value for line in thick for value in line.get_ydata()] == [8.5, 8.0, 7.0, 6.5, 4.5, 4.0, 3.0, 2.5]


def test_stages_are_shaded_and_named_over_the_first_line(figures, tmp_path):
    draw_loss_curves(tmp_path / "a.png", ROWS)
    first = figures[0].axes[0]
    assert [text.get_text() for text in first.texts] == ["global", "region"]
    assert [patch.get_facecolor()[:3] for patch in first.patches] == [to_rgb(shade) for shade in STAGE_SHADES[:2]]
    assert [(patch.get_x(), patch.get_width()) for patch in first.patches] == [(0.5, 4.0), (4.5, 4.0)]
    assert list(figures[0].axes[2].texts) == []


def test_the_state_of_training_has_a_panel_for_each_kind_of_column_and_none_without_one(figures, tmp_path):
    assert draw_training_state(tmp_path / "a.png", ROWS)
    panels = panels_of(figures[0])
    assert list(panels) == [
        "inverse temperatures",
        "gate of the prompter, mean over regions",
        "fusion alpha",
        "gradient norms before clipping",
        "learning rate",
        "share of time waiting for data",
    ]
    assert points_of(panels["gate of the prompter, mean over regions"]) == [(5, 0.5), (7, 0.5), (8, 0.5)]
    legend = panels["gradient norms before clipping"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["all", "roi"]
    assert panels["gradient norms before clipping"].get_yscale() == "log"


def test_rates_of_groups_stand_in_one_panel_where_they_differ(figures, tmp_path):
    rows = [{"step": 1, "stage": "a", "lr": 0.1, "lr_vision": 0.1, "lr_text": 0.01}]
    draw_training_state(tmp_path / "a.png", rows)
    axes = panels_of(figures[0])["learning rates"]
    assert sorted(points_of(axes)) == [(1, 0.01), (1, 0.1)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["text", "vision"]


def test_validation_shows_every_figure_with_its_interval_recalls_together(figures, tmp_path):
    def row(step, metric, value):
        return {"step": step, "stage": "a", "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.2}

    recalls = [row(step, f"image_to_text_recall@{k}", k / 20) for step in (4, 8) for k in (1, 10)]
    assert draw_validation(tmp_path / "a.png", [*recalls, row(4, "macro_auroc", 0.5)])
    panels = panels_of(figures[0])
    assert list(panels) == ["image → text, R@k", "zero-shot finding, macro AUROC"]
    axes = panels["image → text, R@k"]
    assert points_of(axes) == [(4, 0.05), (8, 0.05), (4, 0.5), (8, 0.5)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["@1", "@10"]
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    np.testing.assert_allclose([(band.ymin, band.ymax) for band in bands], [(-0.05, 0.25), (0.4, 0.7)], atol=1e-12)


def test_a_picture_is_written(tmp_path):
    assert draw_training_state(tmp_path / "a.png", ROWS, "drawings, not patients")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
