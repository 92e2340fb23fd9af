"""Phrases get zero, one or many boxes in original pixels, from proposals or from heat; heat maps keep their place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionmed_clip.processing.grounding import connected_groups, hot_boxes, patches_in_image
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.processing.region_boxes import FrameGeometry
from regionmed_clip.train.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["small nodule in the left lung"] * 3, vocab_size=300, max_length=16)
PADDING = RegionMedClipProcessor(RegionMedClipImageProcessor(size=64, patch_size=16), TOKENIZER)
CROPPING = RegionMedClipProcessor(
    RegionMedClipImageProcessor(
        geometry="source", size={"shortest_edge": 64}, do_center_crop=True, crop_size=64, patch_size=16
    ),
    TOKENIZER,
)
PROCESSORS = pytest.mark.parametrize("processor", [PADDING, CROPPING], ids=["pad", "crop"])
WIDE = (50, 100)  # (height, width): in the padded frame of 64 pixels rows 16 to 48, 0.64 frame pixels a pixel
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 4000))


def grounding(similarity, boxes, mask=None, scores=None, heat=None) -> SimpleNamespace:
    """What `ground_phrases` gives, for one image: similarity (K, T), boxes (K, 4) fractions, heat (T, h, w)."""
    similarity, boxes = torch.tensor([similarity]), torch.tensor([boxes], dtype=torch.float32)
    num_boxes, num_phrases = similarity.shape[1:]
    return SimpleNamespace(
        phrase_similarity=similarity,
        region_boxes=boxes,
        region_mask=torch.ones(1, num_boxes, dtype=torch.bool) if mask is None else torch.tensor([mask]),
        region_scores=torch.full((1, num_boxes), 0.9) if scores is None else torch.tensor([scores]),
        heat=torch.zeros(1, num_phrases, 4, 4) if heat is None else torch.tensor(heat)[None],
    )


def heat_only(heat) -> SimpleNamespace:
    return SimpleNamespace(heat=torch.as_tensor(heat)[None])


LEFT, RIGHT = [0.0, 0.25, 0.25, 0.5], [0.5, 0.25, 1.0, 0.75]  # in pixels of WIDE: (0, 0, 25, 25), (50, 0, 100, 50)
MARGIN = [0.0, 0.0, 1.0, 0.25]  # the frame's upper padding


# ---- proposals


def test_a_phrase_gets_no_box_one_or_many_and_a_box_may_answer_several():
    similarity = [[0.8, 0.1, 0.7], [0.1, 0.1, 0.9]]  # two proposals, three phrases
    (found,) = PADDING.post_process_grounding(
        grounding(similarity, [LEFT, RIGHT]), [WIDE], ["nodule", "effusion", "opacity"]
    )
    assert found["labels"].tolist() == [2, 0, 2]
    assert found["text_labels"] == ["opacity", "nodule", "opacity"]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8, 0.7]))
    expected = torch.tensor([[50.0, 0, 100, 50], [0, 0, 25, 25], [0, 0, 25, 25]])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-3, rtol=0)
    assert [found[name].dtype for name in ("scores", "labels", "boxes")] == [torch.float32, torch.int64, torch.float32]


def test_what_the_model_did_not_propose_or_is_unsure_of_is_left_out():
    similarity = [[0.9], [0.8], [0.7]]
    outputs = grounding(similarity, [LEFT, RIGHT, RIGHT], mask=[True, False, True], scores=[0.3, 0.0, 0.6])
    (found,) = PADDING.post_process_grounding(outputs, [WIDE])
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7]))
    assert "text_labels" not in found
    (sure,) = PADDING.post_process_grounding(outputs, [WIDE], box_threshold=0.5)
    torch.testing.assert_close(sure["scores"], torch.tensor([0.7]))
    (nothing,) = PADDING.post_process_grounding(outputs, [WIDE], ["nodule"], threshold=0.95)
    assert {name: len(values) for name, values in nothing.items()} == dict.fromkeys(nothing, 0)
    assert nothing["boxes"].shape == (0, 4)


def test_a_zero_row_of_an_abstaining_model_answers_no_phrase_even_without_a_threshold():
    outputs = grounding([[0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]], mask=[False], scores=[0.0])
    (found,) = PADDING.post_process_grounding(outputs, [WIDE], threshold=-1.0)
    assert len(found["scores"]) == 0


def test_boxes_in_the_padding_are_left_out_and_boxes_across_its_edge_are_cut():
    across = [0.25, 0.0, 0.5, 0.5]  # its upper half is padding
    (found,) = PADDING.post_process_grounding(grounding([[0.9], [0.8]], [MARGIN, across]), [WIDE])
    torch.testing.assert_close(found["boxes"], torch.tensor([[25.0, 0, 50, 25]]), atol=1e-3, rtol=0)


def test_max_boxes_keeps_the_best_of_every_phrase():
    similarity = [[0.75, 0.7], [0.9, 0.1], [0.8, 0.95]]
    boxes = [LEFT, RIGHT, [0.25, 0.25, 0.5, 0.5]]
    (found,) = PADDING.post_process_grounding(grounding(similarity, boxes), [WIDE], max_boxes=1)
    assert found["labels"].tolist() == [1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.95, 0.9]))
    (two,) = PADDING.post_process_grounding(grounding(similarity, boxes), [WIDE], max_boxes=2)
    assert two["labels"].tolist() == [1, 0, 0, 1]


def test_proposals_come_back_in_original_pixels_with_their_scores():
    proposals = SimpleNamespace(
        region_boxes=torch.tensor([[RIGHT, MARGIN, LEFT, [0.0] * 4], [LEFT, [0.0] * 4, [0.0] * 4, [0.0] * 4]]),
        region_mask=torch.tensor([[True, True, True, False], [False] * 4]),
        scores=torch.tensor([[0.9, 0.8, 0.7, 0.0], [0.0] * 4], dtype=torch.bfloat16),
    )
    first, second = PADDING.post_process_proposals(proposals, torch.tensor([WIDE, (30, 30)]))
    torch.testing.assert_close(first["boxes"], torch.tensor([[50.0, 0, 100, 50], [0, 0, 25, 25]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.7]), atol=4e-3, rtol=0)  # bfloat16
    assert second["boxes"].shape == (0, 4)
    assert second["scores"].shape == (0,)


@PROCESSORS
@given(size=SIZES, corners=st.tuples(*[st.floats(0, 1)] * 4))
@settings(max_examples=60)
def test_a_box_of_the_image_comes_back_to_its_pixels_and_may_be_given_again(processor, size, corners):
    height, width = size
    (x0, x1), (y0, y1) = (sorted(pair) for pair in (corners[:2], corners[2:]))
    box = np.array([x0 * width, y0 * height, x1 * width, y1 * height])
    (geometry,) = processor.geometries([size])
    fractions = np.clip(geometry.boxes_to_frame_fractions([box]), 0, 1)
    (found,) = processor.post_process_grounding(grounding([[1.0]], fractions.tolist()), [size])
    rows, columns = geometry.visible_pixels()
    visible = np.clip(box, [columns.start, rows.start] * 2, [columns.stop, rows.stop] * 2)
    if len(found["boxes"]):
        np.testing.assert_allclose(found["boxes"][0], visible, atol=1)
        image = np.zeros((height, width), dtype=np.uint8)
        assert processor(images=image, boxes=[found["boxes"]])["region_mask"].item()
    else:
        assert ((visible[2:] - visible[:2]) < max(0.01, 1e-5 * max(size))).any()


# ---- heat


def plain_groups(is_member: np.ndarray) -> list[set[tuple[int, int]]]:
    """The groups of cells that touch at an edge or a corner, by a walk from cell to cell."""
    left = {tuple(cell) for cell in np.argwhere(is_member).tolist()}
    groups = []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            row, column = todo.pop()
            if (row, column) in left:
                left.remove((row, column))
                group.add((row, column))
                todo += [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        groups.append(group)
    return groups


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_groups_are_those_of_a_walk_from_cell_to_cell(height, width, share, seed):
    is_member = np.random.default_rng(seed).random((2, height, width)) < share
    numbers = connected_groups(is_member)
    for map_numbers, map_members in zip(numbers, is_member):
        assert ((map_numbers > 0) == map_members).all()
        groups = {n: set(map(tuple, np.argwhere(map_numbers == n).tolist())) for n in set(map_numbers[map_members])}
        assert sorted(map(sorted, groups.values())) == sorted(map(sorted, plain_groups(map_members)))
        for number, group in groups.items():
            assert number == 1 + min(row * width + column for row, column in group)


def test_a_long_winding_group_is_one():
    snake = np.zeros((1, 15, 15), dtype=bool)
    snake[0, ::2] = True
    snake[0, 1::4, -1] = snake[0, 3::4, 0] = True
    assert set(np.unique(connected_groups(snake))) == {0, 1}


HEAT = [
    [0.9, 0.9, 0.0, 0.0],  # rows 0 and 3 are padding of WIDE
    [0.1, 0.8, 0.1, 0.7],
    [0.1, 0.1, 0.1, 0.66],
    [0.9, 0.0, 0.0, 0.0],
]


def test_hot_patches_that_touch_become_one_box_and_the_padding_takes_no_part():
    (found,) = PADDING.post_process_grounding(heat_only([HEAT]), [WIDE], ["nodule"], source="heat", heat_share=0.0)
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.7]))
    expected = torch.tensor([[25.0, 0, 50, 25], [75, 0, 100, 50]])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-3, rtol=0)
    assert found["text_labels"] == ["nodule", "nodule"]


def test_the_heat_share_is_counted_from_the_median_to_the_peak_of_the_image():
    # the eight patches of the image: median 0.1, peak 0.8, so a share of 0.85 asks for 0.695
    (found,) = PADDING.post_process_grounding(heat_only([HEAT]), [WIDE], source="heat", heat_share=0.85)
    torch.testing.assert_close(found["boxes"][1], torch.tensor([75.0, 0, 100, 25]), atol=1e-3, rtol=0)
    (peak,) = PADDING.post_process_grounding(heat_only([HEAT]), [WIDE], source="heat", heat_share=1.0)
    torch.testing.assert_close(peak["scores"], torch.tensor([0.8]))
    (nothing,) = PADDING.post_process_grounding(heat_only([HEAT]), [WIDE], source="heat", threshold=0.85)
    assert nothing["boxes"].shape == (0, 4)


def test_every_phrase_is_thresholded_by_its_own_map():
    maps = [HEAT, (0.9 * np.array(HEAT)).tolist(), np.full((4, 4), 0.2).tolist()]
    (found,) = PADDING.post_process_grounding(heat_only(maps), [WIDE], source="heat", max_boxes=1)
    assert found["labels"].tolist() == [0, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.8, 0.72]))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(7, 7), (3, 5)]), SIZES, st.floats(0, 1), st.floats(-1, 1))
@settings(max_examples=60)
def test_every_hot_patch_lies_in_a_box_of_its_phrase_and_every_box_holds_its_score(seed, grid, size, share, threshold):
    heat = np.random.default_rng(seed).uniform(-1, 1, (3, *grid)).astype(np.float32)
    geometry = FrameGeometry.padded((size[1], size[0]), (grid[1] * 16, grid[0] * 16))
    labels, scores, boxes = hot_boxes(heat, geometry, threshold, share)
    is_image = patches_in_image(geometry, grid)
    cells = np.round(boxes * np.tile(grid[::-1], 2)).astype(int)
    covered = np.zeros_like(heat, dtype=bool)
    for label, score, (x0, y0, x1, y1) in zip(labels, scores, cells):
        covered[label, y0:y1, x0:x1] = True
        inside = np.where(is_image, heat[label], -2)[y0:y1, x0:x1]
        assert score >= threshold
        assert (inside == score).any()
    for label, one in enumerate(heat):
        seen = one[is_image]
        level = max(threshold, np.median(seen) + share * (seen.max() - np.median(seen)) + 1e-6)
        assert covered[label][is_image & (one >= level)].all()
        assert (label in labels) == (seen.max() >= threshold)


# ---- heat maps in original pixels


@PROCESSORS
@given(size=st.tuples(st.integers(8, 500), st.integers(8, 500)), row=st.integers(0, 3), column=st.integers(0, 3))
@settings(max_examples=60)
def test_the_peak_of_a_single_hot_patch_lies_in_that_patch(processor, size, row, column):
    heat = np.zeros((1, 4, 4), dtype=np.float32)
    heat[0, row, column] = 1
    (pixels,) = processor.post_process_heatmap(heat, [size])
    assert pixels.shape == size
    (geometry,) = processor.geometries([size])
    corners = np.array([[column, row, column + 1, row + 1]]) / 4
    (x0, y0, x1, y1) = geometry.frame_fractions_to_boxes(corners)[0]
    if not (np.ceil(x0 - 0.5) < x1 - 0.5 and np.ceil(y0 - 0.5) < y1 - 0.5):  # no pixel has its centre in the patch
        return
    y, x = np.unravel_index(np.nanargmax(pixels), size)
    assert x0 <= x + 0.5 <= x1
    assert y0 <= y + 0.5 <= y1


@PROCESSORS
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), value=st.floats(-1, 1, width=32))
@settings(max_examples=40)
def test_a_constant_map_stays_constant_wherever_the_model_saw_the_image(processor, size, value):
    (pixels,) = processor.post_process_heatmap(np.full((1, 4, 4), value, dtype=np.float32), [size])
    (geometry,) = processor.geometries([size])
    is_seen = np.isfinite(pixels)
    np.testing.assert_allclose(pixels[is_seen], value, atol=1e-6)
    if processor is PADDING:
        assert is_seen.all()
    else:  # a pixel is seen if its centre is
        centre_x = (np.arange(size[1]) + 0.5) * geometry.scale_x + geometry.offset_x
        centre_y = (np.arange(size[0]) + 0.5) * geometry.scale_y + geometry.offset_y
        in_frame = [(centres >= 0) & (centres <= 64) for centres in (centre_y, centre_x)]
        np.testing.assert_array_equal(is_seen, in_frame[0][:, None] & in_frame[1])


def test_what_the_padding_looks_like_does_not_touch_the_image():
    heat = torch.zeros(1, 4, 4)
    heat[0, [0, 3]] = 100.0  # padding rows of WIDE
    heat[0, 1] = 1.0
    (pixels,) = PADDING.post_process_heatmap(heat, [WIDE])
    assert pixels[0].tolist() == [1.0] * 100
    assert pixels[-1].tolist() == [0.0] * 100


def test_maps_of_several_texts_come_back_together():
    heat = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sizes = [WIDE, (30, 20)]
    together = PADDING.post_process_heatmap(heat.bfloat16(), sizes)
    assert [maps.shape for maps in together] == [(3, 50, 100), (3, 30, 20)]
    for text in range(3):
        for maps, alone in zip(together, PADDING.post_process_heatmap(heat[:, text], sizes)):
            np.testing.assert_allclose(maps[text], alone, atol=4e-3)  # bfloat16


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "both"}, "source is 'both'; it must be 'proposals' .* or 'heat'"),
        ({"threshold": 1.5}, r"threshold is 1.5; it must lie in \[-1, 1\]"),
        ({"box_threshold": -0.1}, r"box_threshold is -0.1; it must lie in \[0, 1\]"),
        ({"heat_share": 2}, r"heat_share is 2; it must lie in \[0, 1\]"),
        ({"max_boxes": 0}, "max_boxes is 0; it must be at least 1, or None"),
        ({"target_sizes": [WIDE, WIDE]}, "target_sizes has 2 entries for 1 images"),
        ({"text_labels": ["a"]}, "text_labels has 1 entries for 2 phrases"),
        ({"outputs": heat_only([HEAT])}, r"without phrase_similarity; give what model.ground_phrases\(...\) returns"),
        ({"outputs": SimpleNamespace(), "source": "heat"}, "without heat"),
    ],
)
def test_bad_settings_and_outputs_are_named_with_the_way_out(arguments, words):
    given_arguments = {"outputs": grounding([[0.9, 0.8]], [LEFT]), "target_sizes": [WIDE], **arguments}
    with pytest.raises(ValueError, match=words):
        PADDING.post_process_grounding(**given_arguments)


def test_proposals_and_target_sizes_must_match():
    proposals = SimpleNamespace(
        region_boxes=torch.zeros(1, 2, 4), region_mask=torch.zeros(1, 2, dtype=torch.bool), scores=torch.zeros(1, 2)
    )
    with pytest.raises(ValueError, match="target_sizes has 3 entries for 1 images"):
        PADDING.post_process_proposals(proposals, [WIDE] * 3)
