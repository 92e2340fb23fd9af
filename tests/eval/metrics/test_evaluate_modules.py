"""Every folder under eval/metrics loads offline through `evaluate.load` and gives what its functions give by hand."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest

from regionmed_clip.eval import metrics

FOLDER = Path(metrics.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name)
MAPS = [[[0.1, 0.9], [0.2, 0.3]], [[0.4, 0.1], [0.8, 0.2]]]
MASKS = [[[False, True], [False, False]], [[True, True], [False, False]]]
BOXES = [[[0, 0, 2, 2], [4, 4, 6, 5]], []]
TRUE_BOXES = [[[0, 0, 2, 2]], [[1, 1, 2, 2]]]
SCORES, RIGHT_ROWS = [[0.9, 0.5, 0.7], [0.9, 0.5, 0.7], [0.9, 0.9, 0.7]], [[0], [1, 2], [0]]  # ranks 1, 2, 2
SAID = [[0.9, 0.2], [0.1, 0.7], [0.4, 0.6]]
STATED = [[1, 0], [0, 1], [0, -1]]
CASES = [  # name, configuration, predictions, references, options, expected
    ("accuracy", None, [1, 2, 0, 0], [1, 0, 0, 0], {}, {"accuracy": 0.75}),
    ("balanced_accuracy", None, [1, 2, 0, 0], [1, 0, 0, 0], {}, {"balanced_accuracy": 5 / 6}),
    ("recall_at_k", None, SCORES, RIGHT_ROWS, {"ks": (1, 2)}, {"recall@1": 1 / 3, "recall@2": 1.0}),
    ("recall_at_k", "ranks", [1, 2, 2], None, {"ks": (1, 2)}, {"recall@1": 1 / 3, "recall@2": 1.0}),
    ("mean_reciprocal_rank", None, SCORES, RIGHT_ROWS, {}, {"mean_reciprocal_rank": 2 / 3}),
    ("mean_reciprocal_rank", "ranks", [1, 2, 2], None, {}, {"mean_reciprocal_rank": 2 / 3}),
    # the pairs by score: 0.9 +, 0.7 +, then three negatives
    ("macro_auroc", None, SAID, STATED, {}, {"macro_auroc": 1.0, "micro_auroc": 1.0}),
    ("average_precision", None, SAID, STATED, {}, {"macro_ap": 1.0, "micro_ap": 1.0}),
    ("f1_at_threshold", None, [0.9, 0.6, 0.2], [True, False, True], {"threshold": 0.5}, {"f1": 0.5}),
    ("expected_calibration_error", None, [0.6, 0.7, 0.8, 1.0], [True, False, True, True], {"num_bins": 4},
     {"expected_calibration_error": 0.125}),
    ("brier_score", None, [0.8, 0.3], [True, True], {}, {"brier_score": (0.04 + 0.49) / 2}),
    ("brier_score", "classes", [[0.5, 0.3, 0.2]], [0], {}, {"brier_score": 0.38}),
    # first map: (0.9 - 0.2) / sqrt(0 + 0.02 / 3); second: inside 0.4, 0.1, outside 0.8, 0.2
    ("contrast_to_noise_ratio", None, MAPS, MASKS, {},
     {"contrast_to_noise_ratio": (0.7 / (0.02 / 3) ** 0.5 - 0.25 / 0.1125**0.5) / 2,
      "absolute_contrast_to_noise_ratio": (0.7 / (0.02 / 3) ** 0.5 + 0.25 / 0.1125**0.5) / 2}),
    ("pointing_game", None, MAPS, MASKS, {}, {"pointing_game": 0.5}),
    ("pointing_game", None, MAPS, MASKS, {"tolerance_px": 1}, {"pointing_game": 1.0}),
    ("mean_iou", None, MAPS, MASKS, {"thresholds": (0.3,)}, {"mean_iou": (1 / 2 + 1 / 3) / 2}),
    ("box_recall", None, BOXES, TRUE_BOXES, {}, {"box_recall": 0.5, "boxes_per_image": 1.0}),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def offline_caches(tmp_path_factory):
    """Caches of its own for `evaluate`, and no way to a network."""
    folder = tmp_path_factory.mktemp("evaluate")

    def refuse(*args, **kwargs):
        raise AssertionError(f"a metric asked for the network: {args}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


def load(name, configuration=None):
    """The module as a user of the checkout loads it."""
    return evaluate.load(str(FOLDER / name), configuration)


@pytest.mark.parametrize(("name", "configuration", "predictions", "references", "options", "expected"), CASES)
def test_a_module_gives_the_figure_of_its_definition(name, configuration, predictions, references, options, expected):
    columns = {"predictions": predictions} | ({} if references is None else {"references": references})
    found = load(name, configuration).compute(**columns, **options)
    assert found == pytest.approx(expected, abs=1e-9)  # float64
    assert all(type(value) is float for value in found.values())  # as JSON has it


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_tested_and_says_what_it_takes_and_gives(name):
    assert name in {case[0] for case in CASES}
    module = load(name)
    assert module.description.endswith(".")
    assert "Args:" in module.inputs_description
    assert "Returns:" in module.inputs_description


def test_batches_add_up_to_the_whole():
    recall, table = load("recall_at_k"), np.array(SCORES)
    for row in range(3):
        recall.add_batch(predictions=table[row : row + 1], references=RIGHT_ROWS[row : row + 1])
    assert recall.compute(ks=[1]) == {"recall@1": pytest.approx(1 / 3)}


def test_metrics_combine():
    both = evaluate.combine([load("accuracy"), load("balanced_accuracy")])
    found = both.compute(predictions=[1, 2, 0, 0], references=[1, 0, 0, 0])
    assert found == pytest.approx({"accuracy": 0.75, "balanced_accuracy": 5 / 6})


def test_unseen_pixels_survive_the_columns_of_arrow():
    maps = [[[0.1, 0.9, float("nan")], [0.2, 0.3, float("nan")]]]
    masks = [[[False, True, True], [False, False, False]]]
    assert load("pointing_game").compute(predictions=maps, references=masks) == {"pointing_game": 1.0}


def test_a_rank_below_one_is_an_error():
    with pytest.raises(ValueError, match="rank 0 of query 1; ranks count from 1"):
        load("recall_at_k", "ranks").compute(predictions=[1, 0])


@pytest.mark.parametrize("row", [3, -1])
def test_a_row_that_the_gallery_lacks_is_an_error(row):
    with pytest.raises(ValueError, match=f"query 1 names gallery row {row}; 3 items have the rows 0 to 2"):
        load("recall_at_k").compute(predictions=SCORES[:2], references=[[0], [row]])


def test_box_recall_of_no_truth_is_an_error():
    with pytest.raises(ValueError, match="0 true boxes is undefined"):
        load("box_recall").compute(predictions=[[[0, 0, 1, 1]]], references=[[]])
