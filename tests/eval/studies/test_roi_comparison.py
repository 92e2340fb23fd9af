"""Arms pooled over seeds and compared region by region; expected numbers are sums by hand."""

from dataclasses import replace

import numpy as np
import pytest

from regionmed_clip.eval.studies.pooling import judge
from regionmed_clip.eval.studies.region_outcomes import Figure, RegionOutcomes
from regionmed_clip.eval.studies.roi_comparison import Arm, compare_arms

IMAGES = [0, 0, 1, 2]
FACTS = {"steps": 5, "images_per_s": 10.0, "wall_s": 3.0, "model_code": "c0de"}


def outcomes(seed: int, exact: list[int], noisy: list[int], mode: str = "prompter") -> RegionOutcomes:
    shared = {"metric": "region_to_text_accuracy", "images": IMAGES, "gallery": 4, "unique_texts": 4}
    shared |= {"prompts_sha256": "abc", "chance": 0.25}
    return RegionOutcomes(
        mode=mode,
        seed=seed,
        box_noise=0.2,
        noisy_iou=0.7,
        model_revision=f"{mode}{seed}",
        data_revision="phantom@1",
        split="test",
        split_sha256="0" * 64,
        training=FACTS,
        figures=[Figure(boxes="exact", outcomes=exact, **shared), Figure(boxes="noisy", outcomes=noisy, **shared)],
    )


PROMPTER = Arm("prompter", 0.0, [outcomes(0, [1, 1, 1, 1], [1, 0, 1, 1]), outcomes(1, [1, 1, 1, 0], [1, 1, 1, 0])])
ROIALIGN = Arm("roialign", 0.0, [outcomes(0, [0, 0, 0, 0], [0, 0, 0, 0]), outcomes(1, [1, 0, 0, 0], [1, 0, 0, 0])])


def test_an_arm_is_the_mean_over_its_seeds_and_regions():
    figure = PROMPTER.figures()["region_to_text_accuracy", "exact"]
    assert figure.value == 7 / 8
    assert figure.per_seed == [1.0, 0.75]
    assert 0.5 <= figure.low <= 7 / 8 <= figure.high == 1.0  # at worst the third image alone


def test_a_difference_is_paired_by_region_and_by_seed():
    comparison = compare_arms([PROMPTER, ROIALIGN], "prompter")
    (pair,) = comparison.differences
    assert pair == ("prompter", "roialign")
    exact = comparison.differences[pair]["region_to_text_accuracy", "exact"]
    assert exact.value == 6 / 8
    assert exact.per_seed == [1.0, 0.5]
    assert 0.5 <= exact.low <= 6 / 8 <= exact.high <= 1  # the least and the greatest difference of any region


def test_a_result_names_the_boxes_the_seeds_and_all_weights():
    results = compare_arms([PROMPTER, ROIALIGN], "prompter").results("a CPU", "python")
    assert [(r.model, r.stratum) for r in results] == [
        (model, f"{boxes} boxes")
        for model in ("prompter", "roialign", "prompter minus roialign")
        for boxes in ("exact", "noisy")
    ]
    for result in results:
        result.check()
        assert result.n == 4
        assert result.protocol["seeds"] == [0, 1]
    assert results[0].model_revision == "prompter0+prompter1"
    assert results[1].protocol["box_noise"] == 0.2
    assert results[1].protocol["mean_iou_with_exact"] == pytest.approx(0.7)
    assert results[4].protocol["paired"]


def test_arms_trained_on_noisy_boxes_are_compared_with_their_like_and_with_modes_that_see_no_box():
    crop = replace(ROIALIGN, mode="crop-and-encode")
    noisy = [replace(arm, train_noise=0.2) for arm in (PROMPTER, ROIALIGN)]
    pairs = list(compare_arms([PROMPTER, ROIALIGN, crop, *noisy], "prompter").differences)
    assert pairs == [
        ("prompter", "roialign"),
        ("prompter", "crop-and-encode"),
        ("prompter, trained on noisy boxes", "crop-and-encode"),
        ("prompter, trained on noisy boxes", "roialign, trained on noisy boxes"),
    ]


def test_arms_of_other_seeds_or_other_questions_are_refused():
    with pytest.raises(ValueError, match="roialign has other seeds than prompter"):
        compare_arms([PROMPTER, replace(ROIALIGN, runs=ROIALIGN.runs[:1])], "prompter")
    other = [replace(run, split_sha256="1" * 64) for run in ROIALIGN.runs]
    with pytest.raises(
        ValueError, match=r"roialign, seed 0 was evaluated on other regions.*Delete their outcomes.json"
    ):
        compare_arms([PROMPTER, replace(ROIALIGN, runs=other)], "prompter")
    with pytest.raises(ValueError, match="no arm"):
        compare_arms([], "prompter")


@pytest.mark.parametrize(
    ("first", "second", "difference", "verdict"),
    [
        ((0.8, 0.9), (0.6, 0.7), (0.1, 0.3), "above, intervals apart"),
        ((0.8, 0.9), (0.7, 0.85), (0.01, 0.1), "above, paired only"),
        ((0.8, 0.9), (0.8, 0.9), (-0.1, 0.1), "no difference shown"),
        ((0.1, 0.2), (0.3, 0.4), (-0.3, -0.1), "below, intervals apart"),
    ],
)
def test_the_verdict_follows_from_the_three_intervals(first, second, difference, verdict):
    figure = PROMPTER.figures()["region_to_text_accuracy", "exact"]
    with_bounds = [replace(figure, low=low, high=high) for low, high in (first, second, difference)]
    assert judge(*with_bounds) == verdict


def test_outcomes_read_back_equal(tmp_path):
    PROMPTER.runs[0].write(tmp_path / "outcomes.json")
    assert RegionOutcomes.read(tmp_path / "outcomes.json") == PROMPTER.runs[0]
    assert np.mean(PROMPTER.runs[0].figures[1].outcomes) == PROMPTER.runs[0].figures[1].accuracy
