"""Grounding: thresholds by brute force, matches by hand, and a model that sees colours end to end."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from regionmed_clip.eval.metric_titles import METRIC_TITLES
from regionmed_clip.eval.metrics.localization import mask_iou
from regionmed_clip.eval.tasks.embedding import embed_examples
from regionmed_clip.eval.tasks.grounding import GroundingSettings, best_f1, measure, measure_grounding, tune
from regionmed_clip.eval.tasks.grounding_maps import (
    HEAT_PATHS,
    PROPOSALS,
    THRESHOLDS,
    FoundBoxes,
    GroundedPhrases,
    fill_boxes,
    ground_split,
    hottest_points,
    match_best_first,
)
from regionmed_clip.eval.tasks.grounding_phrases import Phrases, list_phrases
from regionmed_clip.eval.tasks.task_inputs import TaskInputs

COLOURS = {"glioma": (1.0, 0.0, 0.0), "meningioma": (0.0, 1.0, 0.0), "pituitary tumor": (0.0, 0.0, 1.0)}


class ColourModel(nn.Module):
    """Patches are embedded as their colour, texts as that of the finding they name: a perfect grounder of squares."""

    def __init__(self, processor):
        super().__init__()
        self.processor = processor
        self.visual_projection = nn.Identity()
        self.vision_model = SimpleNamespace(config=SimpleNamespace(model_type="clip_vision_model"))
        self.config = SimpleNamespace(image_pooling="cls", vision_config=SimpleNamespace(patch_size=8))

    def encode_patches(self, pixel_values):
        image_processor = self.processor.image_processor
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
        levels = pixel_values * std + mean
        colour = levels - levels.mean(dim=1, keepdim=True)  # grey is nothing
        colour = torch.cat([colour, torch.full_like(colour[:, :1], 0.2)], dim=1)  # so that more colour is nearer
        patches = nn.functional.avg_pool2d(colour, 8).flatten(2).transpose(1, 2)  # (B, P, 4)
        return patches, patches.mean(dim=1), None

    def get_text_features(self, input_ids, attention_mask):
        texts = self.processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        found = [next((c for name, c in COLOURS.items() if name in text.lower()), (1.0, 1.0, 1.0)) for text in texts]
        return SimpleNamespace(pooler_output=nn.functional.pad(torch.tensor(found), (0, 1)))


def draw(index: int, findings: dict[str, tuple[int, int, int, int]], size: tuple[int, int]) -> dict:
    """An example of a grey picture with a coloured box for each finding."""
    pixels = np.full((size[1], size[0], 3), 90, dtype=np.uint8)
    for name, (x0, y0, x1, y1) in findings.items():
        pixels[y0:y1, x0:x1] = [round(90 + 150 * value) for value in COLOURS[name]]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    regions = [
        {"box": list(box), "finding": name, "is_negated": False, "description": f"a {name}", "key": len(name)}
        | {"text_origin": "source"}
        for name, box in findings.items()
    ]
    return {
        "image_id": f"image {index}",
        "image": {"bytes": buffer.getvalue(), "path": None},
        "source": "drawn",
        "width": size[0],
        "height": size[1],
        "modality": "CT",
        "view": None,
        "anatomy": None,
        "caption": f"case {index}",
        "caption_key": index,
        "regions": regions,
    }


def inputs_of(processor, examples, tuning, model=None, reading="dense_mean") -> TaskInputs:
    model = model or ColourModel(processor)
    splits = {"test": examples, "validation": tuning}

    def embed(split):
        if not splits[split]:
            raise ValueError(f"there is no split {split!r}")
        return embed_examples(model, processor, splits[split], region_reading=reading, progress=False)

    return TaskInputs(
        model=model,
        processor=processor,
        region_reading=reading,
        embedded=embed("test"),
        examples=examples,
        embed_split=embed,
        splits=tuple(splits),
        tuning_split="validation",
        examples_of=splits.__getitem__,
        batch_size=2,
        is_shown=False,
    )


# Landscape and portrait, boxes off the diagonal: whoever swaps x and y or forgets the padding points elsewhere.
EXAMPLES = [
    draw(0, {"glioma": (40, 4, 60, 14), "pituitary tumor": (4, 18, 20, 30)}, (64, 32)),
    draw(1, {"pituitary tumor": (2, 44, 14, 60)}, (32, 64)),
    draw(2, {"meningioma": (36, 16, 60, 30)}, (64, 32)),
]
TUNING = [{**draw(3, {"glioma": (8, 4, 24, 20)}, (64, 32)), "image_id": "tuning 0"}]
TUNING += [{**draw(4, {"pituitary tumor": (4, 30, 20, 50)}, (32, 64)), "image_id": "tuning 1"}]


def test_a_model_that_sees_what_is_there_points_at_it_and_finds_it_in_every_image(processor):
    figures = {m.metric: m for m in measure(inputs_of(processor, EXAMPLES, TUNING)).measured if m.stratum is None}
    assert figures["grounding_pointing_game"].value == 1.0
    assert figures["grounding_pointing_game"].n == 4
    assert figures["grounding_contrast_to_noise_ratio"].value > 2.0
    assert figures["grounding_mean_iou"].value > 0.4  # whole patches of 16 pixels against boxes of 10 to 24
    assert figures["grounding_mean_iou"].protocol["tuned_on"] == {"split": "validation", "n": 2}
    assert figures["grounding_presence_auroc"].value == 1.0
    assert figures["grounding_presence_auroc"].protocol["absent_n"] == 3
    assert figures["grounding_absent_accuracy"].value == 1.0
    assert figures["grounding_box_f1"].protocol["of_the_model"]["boxes"] == "heat"
    assert 0 < figures["grounding_pointing_game"].protocol["chance"] < 0.2


def test_without_a_tuning_split_what_needs_a_threshold_is_skipped_with_the_reason(processor):
    figures = {m.metric: m for m in measure(inputs_of(processor, EXAMPLES, [])).measured if m.stratum is None}
    assert figures["grounding_pointing_game"].value == 1.0
    for name in ("grounding_mean_iou", "grounding_box_f1", "grounding_absent_accuracy"):
        assert "there is no split 'validation'" in figures[name].protocol["skipped"]


def test_a_split_without_regions_gives_reasons_alone(processor):
    findings = measure(inputs_of(processor, [draw(0, {}, (32, 32))], TUNING))
    assert len(findings.measured) == 9
    assert {m.metric for m in findings.measured} <= set(METRIC_TITLES)
    assert {m.protocol["skipped"] for m in findings.measured} == {"no phrases: no region with a text"}


def test_the_real_model_goes_through_its_own_grounding(processor, model):
    inputs = inputs_of(processor, EXAMPLES, TUNING, model=model, reading="roi")
    findings = measure(inputs)
    figures = {m.metric: m for m in findings.measured if m.stratum is None}
    assert figures["grounding_box_f1"].protocol["of_the_model"]["boxes"] in ("heat", "proposals")
    assert np.isfinite(figures["grounding_contrast_to_noise_ratio"].value)
    phrases = list_phrases(inputs.embedded)
    paths = (PROPOSALS, *HEAT_PATHS)
    grounded = ground_split(inputs, inputs.embedded, inputs.examples, phrases, paths)
    pixels = processor(images=[Image.open(io.BytesIO(e["image"]["bytes"])) for e in EXAMPLES])["pixel_values"]
    with torch.inference_mode():
        heat = model.ground_phrases(pixels, **processor.encode_texts(phrases.texts)).heat
    sizes = [(e["height"], e["width"]) for e in EXAMPLES]
    maps = processor.post_process_heatmap(heat, sizes)
    expected = [maps[image][row].max() for row, image in enumerate(phrases.images)]
    np.testing.assert_allclose(grounded.peaks, expected, atol=1e-5)  # float32, batches of two against one of three
    assert findings.details["grounding_worst"][0]["phrase"] in phrases.texts
    assert len(findings.details["grounding_iou_curve"]["threshold"]) == 101


def test_other_images_than_those_embedded_are_refused(processor):
    inputs = inputs_of(processor, EXAMPLES, TUNING)
    phrases = list_phrases(inputs.embedded)
    with pytest.raises(ValueError, match="one split in one order"):
        ground_split(inputs, inputs.embedded, EXAMPLES[::-1], phrases, ())
    with pytest.raises(ValueError, match="2 examples, and phrases for 3"):
        ground_split(inputs, inputs.embedded, EXAMPLES[:2], phrases, ())


def test_the_peak_is_the_centre_of_the_hottest_patch_that_holds_some_of_the_image(processor):
    (geometry,) = processor.geometries([(32, 64)])  # halved to 32 x 16 in the middle of 32 x 32: patches of 16 pixels
    heat = np.zeros((4, 4))
    heat[0, 3], heat[2, 3] = 9.0, 1.0  # the first lies in the padding
    assert hottest_points(heat, geometry).tolist() == [[24, 56]]
    heat[1, 0] = 1.0
    assert hottest_points(heat, geometry).tolist() == [[8, 8], [24, 56]]


def test_boxes_are_filled_to_whole_pixels_and_at_least_one():
    boxes = np.array([[10, 20, 30, 60], [99.9, 0.0, 100, 0.1]], dtype=np.float32)
    filled = fill_boxes(boxes, (100, 100), (50, 50))
    expected = np.zeros((50, 50), dtype=bool)
    expected[10:30, 5:15] = True
    expected[0, 49] = True
    assert np.array_equal(filled, expected)


def test_a_second_box_on_one_annotation_is_not_right_again():
    truths = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32)
    boxes = np.array([[0, 0, 10, 9], [1, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], dtype=np.float32)
    assert match_best_first(boxes, truths).tolist() == [True, False, True, False]
    assert match_best_first(boxes, np.zeros((0, 4), np.float32)).tolist() == [False] * 4


def found_of(scores, matches) -> FoundBoxes:
    return FoundBoxes(
        np.zeros(len(scores), dtype=np.int64), np.array(scores, dtype=float), np.array(matches, dtype=bool)
    )


def test_the_best_threshold_by_hand():
    # of 2 annotated: 0.9 alone gives 2/3, with 0.8 2/4, with 0.7 4/5
    assert best_f1(found_of([0.8, 0.9, 0.7], [False, True, True]), 2) == (0.8, 0.7)
    assert best_f1(found_of([], []), 2) == (0.0, 1.0)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 15),
)
@settings(max_examples=50)
def test_no_other_threshold_is_better(rows, extra):
    scores, matches = map(list, zip(*rows, strict=True))
    num_truths = sum(matches) + extra

    def f1_at(threshold):
        kept = [match for score, match in rows if score >= threshold]
        return 2 * sum(kept) / (len(kept) + num_truths)

    value, threshold = best_f1(found_of(scores, matches), num_truths)
    assert value == pytest.approx(f1_at(threshold), abs=1e-12)
    assert value == pytest.approx(max(f1_at(score) for score in scores), abs=1e-12)


def grounded_by_hand(num: int = 4) -> GroundedPhrases:
    """Phrases 0 and 1 of image 0 (one box, two boxes), 2 of image 1 (absent), 3 of image 1 (one box)."""
    box = np.array([[0, 0, 4, 4]], dtype=np.float32)
    boxes = [box, np.repeat(box, 2, axis=0), box[:0], box]
    phrases = Phrases(["a", "b", "c", "d"], np.array([0, 0, 1, 1]), boxes, np.array([0, 1, -1, 2]))
    ious = np.zeros((num, len(THRESHOLDS)), dtype=np.float32)
    ious[0, 100], ious[1, 200], ious[3, 200] = 0.9, 0.5, 0.5
    found = FoundBoxes(np.array([0, 1, 2, 3]), np.array([0.9, 0.8, 0.7, 0.3]), np.array([True, True, False, True]))
    return GroundedPhrases(
        phrases=phrases,
        clusters=np.array([0, 0, 1, 1]),
        peaks=np.array([0.9, 0.6, 0.7, 0.8]),
        contrasts=np.array([2.0, -1.0, np.nan, 0.5]),
        is_hit=np.array([True, False, False, True]),
        area_shares=np.array([0.1, 0.2, 0.0, 0.3]),
        ious=ious,
        found={PROPOSALS: found},
    )


def test_figures_by_hand(embed_by_hand):
    embedded = embed_by_hand(np.eye(2), ["a", "b"])
    settings = GroundingSettings(200, PROPOSALS, 0.5, {"split": "validation", "n": 1})
    figures = {m.key: m for m in measure_grounding(embedded, grounded_by_hand(), settings)}

    def value(metric, stratum=None):
        return figures[f"grounding_{metric}", None, stratum].value

    assert value("contrast_to_noise_ratio") == pytest.approx(0.5)  # (2 - 1 + 0.5) / 3
    assert value("contrast_to_noise_ratio_absolute") == pytest.approx(3.5 / 3)
    assert value("pointing_game") == pytest.approx(2 / 3)
    assert value("mean_iou") == pytest.approx(1 / 3)  # (0 + 0.5 + 0.5) / 3 at threshold 200
    assert value("presence_auroc") == roc_auc_score([1, 1, 0, 1], [0.9, 0.6, 0.7, 0.8])
    # at 0.5 three boxes are given, the one of the absent phrase is wrong; four are annotated
    assert value("box_recall") == 0.5
    assert value("box_precision") == pytest.approx(2 / 3)
    assert value("box_f1") == pytest.approx(4 / 7)
    assert value("absent_accuracy") == 0.0
    assert (value("box_recall", "phrases of one box"), value("box_recall", "phrases of several boxes")) == (0.5, 0.5)
    assert figures["grounding_box_f1", None, None].n == 4
    assert figures["grounding_box_precision", None, None].clusters.tolist() == [0, 0, 1, 1]


def test_thresholds_are_those_best_on_the_tuning_phrases():
    settings = tune(grounded_by_hand(), {"split": "validation", "n": 2})
    assert settings.map_threshold == 200  # 1.0 in sum, against 0.9
    assert settings.box_threshold == 0.3  # 6 / (4 + 4) = 0.75, against 4 / 6 at 0.8
    assert settings.path == PROPOSALS


def test_a_path_without_boxes_is_chosen_only_where_no_other_has_any():
    grounded = grounded_by_hand()
    none = FoundBoxes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    found = {PROPOSALS: none, HEAT_PATHS[0]: grounded.found[PROPOSALS]}
    assert tune(replace(grounded, found=found), {}).path == HEAT_PATHS[0]
    assert tune(replace(grounded, found={PROPOSALS: none}), {}).box_threshold == 1.0


def test_the_chosen_map_threshold_is_the_best_of_all_by_masks(processor):
    inputs = inputs_of(processor, EXAMPLES, TUNING)
    embedded = inputs.embed_split("validation")
    phrases = list_phrases(embedded)
    grounded = ground_split(inputs, embedded, TUNING, phrases, HEAT_PATHS)
    chosen = tune(grounded, {}).map_threshold
    sizes = [(e["height"], e["width"]) for e in TUNING]
    pixels = processor(images=[Image.open(io.BytesIO(e["image"]["bytes"])) for e in TUNING])["pixel_values"]
    dense = nn.functional.normalize(inputs.model.encode_patches(pixels)[0], dim=-1)  # (2, 16, 4)
    heat = (dense @ torch.from_numpy(inputs.encode(phrases.texts)).T).transpose(1, 2).unflatten(-1, (4, 4))
    maps = processor.post_process_heatmap(heat, sizes)
    shown = np.flatnonzero(phrases.num_boxes > 0)
    means = [
        np.mean(
            [
                mask_iou(
                    maps[phrases.images[row]][row] >= threshold,
                    fill_boxes(phrases.boxes[row], sizes[phrases.images[row]], sizes[phrases.images[row]]),
                )
                for row in shown
            ]
        )
        for threshold in THRESHOLDS
    ]
    assert means[chosen] == pytest.approx(max(means), abs=1e-6)
