"""Arms of measured trainings: pooled over seeds, paired draw by draw; expected numbers are sums by hand."""

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.intervals import percentile_interval, resample_mean
from regionmed_clip.eval.studies.arms import MeasuredArm, compare
from regionmed_clip.eval.studies.measured_runs import MeasuredFigure, MeasuredRun
from regionmed_clip.eval.studies.pooling import WIDENED_RULE, pool, subtract

METRICS = ("macro_auroc", "region_to_text_accuracy")
IMAGES = np.array([0, 0, 1, 2])
PROTOCOL = {"gallery": 4, "unique_texts": 4, "prompts_sha256": "abc", "chance": 0.25}


def run(arm: str, seed: int, hits: list[int], **changes) -> MeasuredRun:
    """A training with one figure: whether each of the four regions of three images was named rightly."""
    figure = MeasuredFigure(
        task="region",
        metric="region_to_text_accuracy",
        source=changes.pop("source", None),
        value=float(np.mean(hits)),
        n=4,
        resampled=resample_mean(np.array(hits), IMAGES).tolist(),
        protocol={**PROTOCOL, **changes.pop("protocol", {})},
    )
    values = {"metrics": list(METRICS), "arm": arm, "seed": seed, "model_revision": f"{arm}{seed}"}
    values |= {
        "data_revision": "phantom@1",
        "split": "test",
        "split_sha256": "0" * 64,
        "training": {"steps": 5, "threads": 1},
        "figures": [figure],
    }
    return MeasuredRun(**{**values, **changes})


BETTER = MeasuredArm("joint", [run("joint", 0, [1, 1, 1, 1]), run("joint", 1, [1, 1, 1, 0])])
WORSE = MeasuredArm("default", [run("default", 0, [0, 0, 1, 0]), run("default", 1, [1, 0, 0, 0])])
KEY = ("region_to_text_accuracy", None)


def test_an_arm_is_the_mean_over_its_seeds_with_the_interval_of_the_mean_outcome():
    figure = BETTER.figures(METRICS)[KEY]
    assert figure.value == 7 / 8
    assert figure.per_seed == [1.0, 0.75]
    expected = percentile_interval(resample_mean(np.array([1, 1, 1, 0.5]), IMAGES))  # each region's mean over the seeds
    assert (figure.low, figure.high) == pytest.approx(expected)


def test_a_difference_is_that_of_the_mean_outcomes_of_every_query():
    comparison = compare([BETTER, WORSE], [("joint", "default"), ("joint", "absent")], METRICS)
    (pair,) = comparison.differences
    figure = comparison.differences[pair][KEY]
    assert pair == ("joint", "default")
    assert figure.value == 5 / 8
    assert figure.per_seed == [0.75, 0.5]
    expected = percentile_interval(resample_mean(np.array([0.5, 1, 0.5, 0.5]), IMAGES))
    assert (figure.low, figure.high) == pytest.approx(expected)
    assert expected == pytest.approx((0.5, 0.75))  # of one arm alone: 0.5 to 1 and 0 to 0.5


def test_results_name_seeds_weights_and_the_figure_of_each_seed():
    results = compare([BETTER, WORSE], [("joint", "default")], METRICS).results("a CPU", "python")
    assert [result.model for result in results] == ["joint", "default", "joint minus default"]
    for result in results:
        result.check()
        assert result.n == 4
        assert result.protocol["seeds"] == [0, 1]
    assert results[0].model_revision == "joint0+joint1"
    assert results[0].protocol["per_seed"] == [1.0, 0.75]
    assert results[2].protocol["paired"]


def test_a_draw_in_which_a_figure_is_undefined_counts_in_no_interval():
    figures = [replace(BETTER.runs[0].figures[0], resampled=[None, 0.25, 0.5, 0.75]) for _ in range(2)]
    pooled = pool(figures, [0, 1], {})
    assert pooled.protocol["interval"] == "images resampled, trainings fixed"
    assert np.isnan(pooled.resampled[0])
    assert (pooled.low, pooled.high) == pytest.approx((0.2625, 0.7375))  # 2.5 % and 97.5 % of 0.25, 0.5, 0.75


def test_where_every_draw_is_equal_the_interval_is_not_a_point():
    right = {"value": 1.0, "n": 11, "resampled": [1.0] * 4}
    own = [{"low": 0.74, "high": 1.0}, {"low": 0.71, "high": 1.0}]  # Wilson's of 11 of 11; fewer effective queries
    figures = [replace(BETTER.runs[0].figures[0], **right, **ends) for ends in own]
    pooled = pool(figures, [0, 1], {})
    assert (pooled.value, pooled.low, pooled.high) == (1.0, 0.71, 1.0)
    assert pooled.protocol["interval"] == WIDENED_RULE
    difference = subtract({KEY: pooled}, {KEY: pool(figures[:1] * 2, [0, 1], {})})[KEY]
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.0, 0.71 - 1.0, 1.0 - 0.74))
    assert difference.protocol["interval"] == WIDENED_RULE


def test_of_retrieval_by_text_the_texts_are_resampled_and_it_is_said():
    figure = replace(BETTER.runs[0].figures[0], metric="text_to_image_recall@1")
    assert pool([figure], [0], {}).protocol["interval"] == "texts resampled, trainings fixed"


def test_figures_stand_by_source_and_only_those_asked_for():
    figures = [run("a", 0, [1, 1, 0, 0], source=source).figures[0] for source in ("usgra", None, "bccd")]
    other = replace(figures[0], metric="region_median_cosine")
    arm = MeasuredArm("a", [run("a", 0, [1, 1, 0, 0], figures=[*figures, other])])
    assert list(arm.figures(METRICS)) == [KEY, (KEY[0], "bccd"), (KEY[0], "usgra")]


def test_what_a_model_says_of_itself_hinders_no_comparison_and_readings_are_kept():
    plain = run("plain", 0, [0, 0, 1, 0], protocol={"readings": {"crop": 0.25}, "reading": "crop"})
    joint = MeasuredArm("joint", BETTER.runs[:1])
    comparison = compare([joint, MeasuredArm("plain", [plain])], [("joint", "plain")], METRICS)
    assert comparison.figures["plain"][KEY].protocol["readings_per_seed"] == [{"crop": 0.25}]
    assert "reading" not in comparison.figures["plain"][KEY].protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_sha256": "1" * 64}, "default, seed 0 was evaluated on other queries or texts than joint, seed 0"),
        ({"protocol": {"prompts_sha256": "def"}}, "evaluated on other queries or texts"),
        ({"training": {"steps": 5, "threads": 2}}, r"trained with 2 thread\(s\) and joint, seed 0 with 1"),
        ({"training": {"steps": 6, "threads": 1}}, r"\{'joint': \[5\], 'default': \[6\]\}; only equal numbers"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(changes, message):
    other = MeasuredArm("default", [run("default", 0, [0, 0, 0, 0], **changes)])
    with pytest.raises(ValueError, match=message):
        compare([MeasuredArm("joint", BETTER.runs[:1]), other], [("joint", "default")], METRICS)


def test_a_run_reads_back_equal(tmp_path):
    BETTER.runs[0].write(tmp_path / "outcomes.json")
    assert MeasuredRun.read(tmp_path / "outcomes.json") == BETTER.runs[0]
