"""Images, regions and texts become exactly the tensors of the contract, and regions come back in original pixels."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.processing.region_boxes import box_coverage
from regionmed_clip.train.tokenizer import train_tokenizer

WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8))  # frame rows 16 to 48
TALL = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 30), dtype=np.uint8))
BOX = (10, 5, 40, 45)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["small nodule in the left lung", "large effusion"] * 3, vocab_size=300, max_length=16)


@pytest.fixture
def processor(tokenizer) -> RegionMedClipProcessor:
    return RegionMedClipProcessor(RegionMedClipImageProcessor(size=64, patch_size=16), tokenizer)


def tall_masks() -> np.ndarray:
    masks = np.zeros((2, 60, 30), dtype=bool)
    masks[0, 3:9, 2:8] = True
    masks[1, 50:, 20:] = True
    return masks


def test_a_full_call_gives_every_tensor_of_the_contract(processor):
    batch = processor(
        images=[WIDE, TALL],
        text=["a nodule", "an effusion in the left lung"],
        boxes=[[BOX], None],
        masks=[None, tall_masks()],
        region_text=[["nodule"], ["effusion", "nodule"]],
    )
    length, region_length = batch["input_ids"].shape[1], batch["region_input_ids"].shape[1]
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "pixel_values": ((2, 3, 64, 64), torch.float32),
        "region_boxes": ((2, 2, 4), torch.float32),
        "region_mask": ((2, 2), torch.bool),
        "region_coverage": ((2, 2, 4, 4), torch.float32),
        "input_ids": ((2, length), torch.int64),
        "attention_mask": ((2, length), torch.int64),
        "region_input_ids": ((2, region_length), torch.int64),
        "region_attention_mask": ((2, region_length), torch.int64),
        "region_text_index": ((2, 2), torch.int64),
    }
    assert set(processor.model_input_names) == set(processor(images=WIDE, text="a nodule"))
    assert batch["region_mask"].tolist() == [[True, False], [True, True]]
    assert batch["region_text_index"].tolist() == [[0, -1], [1, 0]]
    assert not batch["region_boxes"][0, 1].any()
    assert not batch["region_coverage"][0, 1].any()


def test_boxes_follow_the_padding(processor):
    batch = processor(images=WIDE, boxes=[[(0, 0, 100, 50), (50, 25, 100, 50)]])
    expected = [[[0, 0.25, 1, 0.75], [0.5, 0.5, 1, 0.75]]]
    np.testing.assert_allclose(batch["region_boxes"], expected, atol=1e-6)


def test_a_box_covers_the_pixels_it_covered_in_the_original(processor):
    canvas = np.zeros((50, 100), dtype=np.uint8)
    canvas[20:40, 10:30] = 255
    batch = processor(images=canvas, boxes=[[(10, 20, 30, 40)]])
    x0, y0, x1, y1 = batch["region_boxes"][0, 0] * 64
    bright = batch["pixel_values"][0, 0] > batch["pixel_values"][0, 0].mean()
    rows, columns = np.flatnonzero(bright.any(dim=1)), np.flatnonzero(bright.any(dim=0))
    np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], [x0, y0, x1, y1], atol=1)


def test_pixel_values_do_not_depend_on_regions(processor):
    alone = processor(images=[WIDE, TALL])
    assert list(alone) == ["pixel_values"]
    with_boxes = processor(images=[WIDE, TALL], boxes=[[BOX], []])
    with_masks = processor(images=[WIDE, TALL], masks=[None, tall_masks()])
    assert torch.equal(alone["pixel_values"], with_boxes["pixel_values"])
    assert torch.equal(alone["pixel_values"], with_masks["pixel_values"])
    by_image_processor = processor.image_processor([WIDE, TALL], return_tensors="pt")
    assert torch.equal(alone["pixel_values"], by_image_processor["pixel_values"])


def test_masks_and_points_bring_coverage_and_boxes_beside_them_get_theirs(processor):
    assert "region_coverage" not in processor(images=[WIDE], boxes=[[BOX]])
    batch = processor(images=[WIDE, WIDE], boxes=[[BOX], None], points=[None, [(50, 25)]])
    of_boxes = box_coverage(batch["region_boxes"].reshape(-1, 4).numpy(), (4, 4)).reshape(2, 1, 4, 4)
    np.testing.assert_allclose(batch["region_coverage"], of_boxes, atol=1e-6)
    np.testing.assert_allclose(batch["region_boxes"][1, 0] * 64, [24, 24, 40, 40], atol=1e-4)


def test_a_mask_gives_its_tight_box_and_its_own_coverage(processor):
    ring = np.ones((1, 64, 64), dtype=bool)
    ring[0, 16:48, 16:48] = False
    batch = processor(images=Image.new("L", (64, 64)), masks=[ring])
    np.testing.assert_array_equal(batch["region_boxes"][0, 0], [0, 0, 1, 1])
    hole = np.ones((4, 4))
    hole[1:3, 1:3] = 0
    np.testing.assert_array_equal(batch["region_coverage"][0, 0], hole)


@pytest.mark.parametrize("boxes", [[[], []], [None, []], [np.zeros((0, 4)), None]])
def test_images_without_any_region_get_one_row_of_padding(processor, boxes):
    batch = processor(images=[WIDE, TALL], boxes=boxes)
    assert batch["region_boxes"].shape == (2, 1, 4)
    assert not batch["region_mask"].any()
    assert "region_coverage" not in batch
    matched = processor(images=[WIDE, TALL], boxes=boxes, region_text=[[], None])
    assert matched["region_text_index"].tolist() == [[-1], [-1]]
    assert "region_input_ids" not in matched


@pytest.mark.parametrize("images", [WIDE, [WIDE], np.asarray(WIDE)])
@pytest.mark.parametrize("boxes", [[BOX], [[BOX]], np.array([BOX]), np.array([[BOX]]), torch.tensor([BOX]), (BOX,)])
def test_one_image_may_leave_out_the_outer_list(processor, images, boxes):
    expected = processor(images=[WIDE], boxes=[[BOX]])
    batch = processor(images=images, boxes=boxes)
    assert torch.equal(batch["region_boxes"], expected["region_boxes"])
    assert batch["region_mask"].tolist() == [[True]]


def test_masks_and_points_of_one_image_may_leave_it_out_too(processor):
    nested = processor(images=[TALL], masks=[tall_masks()])
    for masks in (tall_masks(), list(tall_masks()), tall_masks()[None]):
        assert torch.equal(processor(images=TALL, masks=masks)["region_coverage"], nested["region_coverage"])
    points = processor(images=[TALL], points=[[(3, 4), (5, 6)]])["region_boxes"]
    assert torch.equal(processor(images=TALL, points=[(3, 4), (5, 6)])["region_boxes"], points)
    assert processor(images=TALL, boxes=[])["region_mask"].tolist() == [[False]]


def test_a_batch_equals_its_items(processor):
    boxes = [[BOX, (0, 0, 5, 5)], []]
    together = processor(images=[WIDE, TALL, WIDE], boxes=[*boxes, None], masks=[None, tall_masks(), None])
    first = processor(images=WIDE, boxes=[boxes[0]], masks=None)
    second = processor(images=TALL, masks=[tall_masks()])
    assert torch.equal(together["region_boxes"][0], first["region_boxes"][0])
    for name in ("pixel_values", "region_boxes", "region_mask", "region_coverage"):
        assert torch.equal(together[name][1], second[name][0])
    assert not together["region_mask"][2].any()


def test_matched_texts_are_encoded_once_and_a_region_may_have_none(processor):
    batch = processor(
        images=[WIDE, TALL], boxes=[[BOX, BOX], [(1, 1, 9, 9)]], region_text=[["effusion", None], ["effusion"]]
    )
    assert batch["region_input_ids"].shape[0] == 1
    assert batch["region_text_index"].tolist() == [[0, -1], [0, -1]]


def test_candidate_texts_are_encoded_as_given_without_an_index(processor):
    batch = processor(images=WIDE, boxes=[BOX], region_text=["nodule", "effusion", "nodule"])
    assert batch["region_input_ids"].shape[0] == 3
    assert "region_text_index" not in batch
    alone = processor(region_text="nodule")
    assert sorted(alone) == ["region_attention_mask", "region_input_ids"]


def test_texts_are_trimmed_to_the_longest_and_cut_at_the_limit(processor, tokenizer):
    short = processor(text=["nodule", "small nodule"])
    assert short["input_ids"].shape == (2, 4)
    assert short["attention_mask"].sum(dim=1).tolist() == [3, 4]
    long = processor(text="nodule " * 50)
    assert long["input_ids"].shape == (1, 16)
    assert long["input_ids"][0, -1] == tokenizer.eos_token_id
    assert processor(text="nodule " * 50, max_length=5)["input_ids"].shape == (1, 5)
    with pytest.raises(ValueError, match="is no Unicode text"):
        processor.encode_texts(["nodule", "\ud83d"])
    encoded = processor.encode_texts(["nodule", "small nodule"])
    assert sorted(encoded) == ["attention_mask", "input_ids"]
    assert torch.equal(encoded["input_ids"], short["input_ids"])


def test_texts_can_always_be_padded_to_the_full_length(tokenizer, tmp_path):
    processor = RegionMedClipProcessor(RegionMedClipImageProcessor(), tokenizer, text_pad_to_full_length=True)
    assert processor(text="nodule")["input_ids"].shape == (1, 16)
    assert processor.encode_texts(["a", "b"])["attention_mask"].shape == (2, 16)
    processor.save_pretrained(tmp_path)
    assert RegionMedClipProcessor.from_pretrained(tmp_path)(text="nodule")["input_ids"].shape == (1, 16)


def test_return_tensors_np_gives_arrays_of_the_same_values(processor):
    arrays = processor(images=WIDE, boxes=[BOX], text="a", return_tensors="np")
    tensors = processor(images=WIDE, boxes=[BOX], text="a")
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert all(torch.equal(torch.from_numpy(arrays[name]), tensors[name]) for name in tensors)


def test_a_setting_of_the_image_processor_for_one_call_moves_the_regions_too(processor):
    changed = processor(images=WIDE, masks=[np.ones((1, 50, 100), bool)], images_kwargs={"size": 96, "patch_size": 8})
    assert changed["pixel_values"].shape == (1, 3, 96, 96)
    assert changed["region_coverage"].shape == (1, 1, 12, 12)
    assert processor(images=WIDE, size=96)["pixel_values"].shape == (1, 3, 96, 96)


def test_a_region_cropped_away_is_masked_with_a_warning_and_the_others_follow_the_crop(tokenizer):
    image_processor = RegionMedClipImageProcessor(
        geometry="source", size={"shortest_edge": 64}, do_center_crop=True, crop_size=64, patch_size=16
    )
    processor = RegionMedClipProcessor(image_processor, tokenizer)
    with pytest.warns(UserWarning, match="image 0, region 0: the centre crop .* region_mask is False"):
        batch = processor(images=WIDE, boxes=[[(0, 0, 20, 50), (25, 0, 50, 50)]], region_text=[["nodule", "effusion"]])
    assert batch["region_mask"].tolist() == [[False, True]]
    assert batch["region_text_index"].tolist() == [[-1, 1]]
    np.testing.assert_allclose(batch["region_boxes"][0], [[0, 0, 0, 0], [0, 0, 0.5, 1]], atol=1e-6)
    masks = np.zeros((2, 50, 100), dtype=bool)
    masks[0, :, :20] = True
    masks[1, :, :50] = True
    with pytest.warns(UserWarning, match="region 0"):
        batch = processor(images=WIDE, masks=masks)
    np.testing.assert_allclose(batch["region_boxes"][0], [[0, 0, 0, 0], [0, 0, 0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(batch["region_coverage"][0, 1], [[1, 1, 0, 0]] * 4, atol=1e-6)
    with pytest.warns(UserWarning, match="region 1"):
        assert processor(images=WIDE, points=[(50, 25), (3, 25)])["region_mask"].tolist() == [[True, False]]


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"boxes": [[BOX], [(5, 5, 2, 8)]]}, r"image 1, region 0: box \(5, 5, 2, 8\).*x1 must exceed x0.*box_format"),
        ({"boxes": [[BOX, (1, float("nan"), 3, 4)], []]}, r"image 0, region 1: box \(1, nan, 3, 4\).*finite.*Drop"),
        ({"boxes": [[(90, 5, 130, 20)], []]}, r"image 0, region 0: box \(90, 5, 130, 20\).*outside.*100 x 50.*Clip"),
        ({"boxes": [[BOX], [(1, 1, 5, 5)]], "masks": [None, tall_masks()]}, "image 1 has boxes and masks.*Give None"),
        ({"boxes": [[BOX], [], []]}, "boxes has 3 entries for 2 images; give one for each image"),
        ({"boxes": [[BOX]]}, "boxes has 1 entries for 2 images"),
        ({"boxes": [BOX, BOX]}, r"boxes is one list of regions for 2 images.*boxes=\[\[...\], \[...\]\]"),
        ({"boxes": "all"}, "boxes is a str"),
        ({"masks": [tall_masks(), None]}, r"image 0, region 0: the mask has shape \(60, 30\).*\(50, 100\)"),
        ({"points": [[(3, 4)], [(30, 5)]]}, "image 1, region 0: point .*outside the image of 30 x 60"),
        ({"boxes": [[BOX], []], "box_format": "yxyx"}, "box_format 'yxyx' is not known"),
        ({"boxes": [[BOX], []], "region_text": [["a", "b"], []]}, "image 0: region_text .* 1 regions"),
        ({"boxes": [[BOX], []], "region_text": [["a"]]}, "region_text has 1 entries for 2 images"),
        ({"boxes": [[BOX], []], "region_text": [[3], []]}, "image 0, region 0: region_text.* is 3.*string"),
        ({"region_text": [["a"], ["b"]]}, "region_text is one list of texts per image, but there are no regions"),
        ({"text": ["a", 5]}, "text 1 is 5; it must be a string"),
        ({"text": []}, "text is empty"),
        ({"text": ["a", "b \ud800"]}, r"the text 'b \\ud800' is no Unicode text: it holds half a surrogate pair"),
        ({"region_text": ["\udfff"]}, r"the text '\\udfff' is no Unicode text"),
        ({"boxes": [[BOX], []], "region_text": [["\ud800"], []]}, r"the text '\\ud800' is no Unicode text"),
        ({"box": [[BOX], []]}, r"arguments \['box'\] are not known; regions are given by boxes"),
        ({"images_kwargs": {"siez": 32}}, r"images_kwargs\['siez'\].*are not known.*Check the spelling"),
        ({"text": "a", "text_kwargs": {"paddng": True}}, r"text_kwargs\['paddng'\].*are not known"),
    ],
)
def test_bad_input_is_named_with_its_item_its_value_the_rule_and_the_way_out(processor, arguments, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        processor(images=[WIDE, TALL], **arguments)


def test_a_truncated_jpeg_is_named_by_its_place_and_path(processor, tmp_path):
    WIDE.save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"image 1 \(.*half.jpg\) is truncated or corrupt.*Replace or re-export it"):
        processor(images=[WIDE, tmp_path / "half.jpg"])


@pytest.mark.parametrize(
    ("arguments", "words"), [({}, "images is missing;"), ({"boxes": [[BOX]]}, "images is missing for")]
)
def test_a_call_without_images_needs_a_text_and_no_regions(processor, arguments, words):
    with pytest.raises(ValueError, match=words):
        processor(**arguments)


def test_parts_that_cannot_work_are_refused(processor, tokenizer):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    with pytest.raises(ValueError, match="CLIPImageProcessorPil; it must be a RegionMedClipImageProcessor"):
        RegionMedClipProcessor(CLIPImageProcessorPil(), tokenizer)


# ---- back to pixels


def test_regions_come_back_in_original_pixels_with_their_best_text(processor):
    boxes = [[BOX, (0, 0, 100, 50)], [(3, 4, 20, 50)]]
    batch = processor(images=[WIDE, TALL], boxes=boxes)
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [9.0, 0.0, 0.0]]])
    results = processor.post_process_regions(
        SimpleNamespace(logits_per_region=logits),
        batch["region_boxes"],
        batch["region_mask"],
        target_sizes=[(50, 100), (60, 30)],
        text_labels=["normal", "nodule", "effusion"],
    )
    for result, expected in zip(results, boxes):
        np.testing.assert_allclose(result["boxes"], expected, atol=1e-3)
    assert [result["text_labels"] for result in results] == [["nodule", "normal"], ["effusion"]]
    assert [result["labels"].tolist() for result in results] == [[1, 0], [2]]
    torch.testing.assert_close(results[0]["scores"], logits[0].softmax(-1).max(-1).values)
    assert results[0]["probabilities"].shape == (2, 3)
    sizes = torch.tensor([[50, 100], [60, 30]])
    outputs = SimpleNamespace(logits_per_region=logits)
    sure = processor.post_process_regions(outputs, batch["region_boxes"], target_sizes=sizes, threshold=0.9)
    assert [len(result["boxes"]) for result in sure] == [1, 1]


def test_target_sizes_and_labels_must_match_the_outputs(processor):
    outputs = SimpleNamespace(logits_per_region=torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="target_sizes has 2 entries for 1 images"):
        processor.post_process_regions(outputs, torch.zeros(1, 1, 4), target_sizes=[(5, 5), (5, 5)])
    with pytest.raises(ValueError, match="text_labels has 1 entries for 2 candidate texts"):
        processor.post_process_regions(outputs, torch.zeros(1, 1, 4), target_sizes=[(5, 5)], text_labels=["a"])
    with pytest.raises(ValueError, match=r"heat has shape \(4, 4\)"):
        processor.post_process_heatmap(torch.zeros(4, 4), [(5, 5)])


@pytest.mark.parametrize("sizes", [(50, 100), [(0, 5)], [(5, 5, 3)], [(5, 5), (5,)], [(float("nan"), 5)], None])
def test_target_sizes_that_are_no_sizes_of_images_are_named(processor, sizes):
    with pytest.raises(ValueError, match=r"target_sizes is .*one \(height, width\) for each image.*Give the sizes"):
        processor.post_process_heatmap(torch.zeros(1, 4, 4), sizes)


def test_regions_of_another_call_and_outputs_without_region_texts_are_named(processor):
    outputs = SimpleNamespace(logits_per_region=torch.zeros(1, 2, 3))
    boxes, mask = np.full((1, 2, 4), 0.5, np.float32), np.array([[True, False]])
    (result,) = processor.post_process_regions(outputs, boxes, mask, target_sizes=[(5, 5)])  # arrays do too
    assert result["boxes"].shape == (1, 4)
    for given in ((boxes[:, :1], mask), (boxes, mask[:, :1])):
        with pytest.raises(ValueError, match=r"has shape .* and logits_per_region \(1, 2, 3\).*of the same call"):
            processor.post_process_regions(outputs, *given, target_sizes=[(5, 5)])
    with pytest.raises(ValueError, match=r"SimpleNamespace without logits_per_region; .*region_text"):
        processor.post_process_regions(SimpleNamespace(logits_per_region=None), boxes, target_sizes=[(5, 5)])


@pytest.mark.parametrize(("row", "column"), [(1, 0), (1, 2), (2, 3)])  # rows 0 and 3 of the patches are padding
def test_a_heat_map_peaks_where_its_patch_lies_in_the_original(processor, row, column):
    heat = torch.zeros(1, 4, 4)
    heat[0, row, column] = 1
    (pixels,) = processor.post_process_heatmap(heat, [(50, 100)])
    assert pixels.shape == (50, 100)
    assert pixels.dtype == np.float32
    assert pixels[int((row - 0.5) * 25), int((column + 0.5) * 25)] > 0.95
    far = pixels[:, [x for x in range(100) if abs(x + 0.5 - (column + 0.5) * 25) > 25]]  # more than a patch away
    assert not far.any()


# ---- saving and loading


def outputs_of(processor) -> dict:
    return dict(
        processor(
            images=[WIDE, TALL], text=["a", "small nodule"], boxes=[[BOX], None], masks=[None, tall_masks()],
            region_text=[["b"], ["c", "b"]],
        )
    )  # fmt: skip


def test_a_saved_processor_gives_equal_tensors_when_loaded_by_its_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = RegionMedClipProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    expected = outputs_of(processor)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in outputs_of(loaded).items())
    assert RegionMedClipProcessor.from_pretrained(tmp_path, size=32).image_processor.frame_size == (32, 32)


def test_a_published_processor_loads_by_the_auto_classes_from_its_own_code(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(RegionMedClipImageProcessor, "_auto_class", "AutoImageProcessor")
    monkeypatch.setattr(RegionMedClipProcessor, "_auto_class", "AutoProcessor")
    folder = tmp_path / "published"
    processor.save_pretrained(folder)
    loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules")
    expected = outputs_of(processor)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in outputs_of(loaded).items())
    alone = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(alone(images=[WIDE, TALL], return_tensors="pt")["pixel_values"], expected["pixel_values"])
    tokens = AutoTokenizer.from_pretrained(folder)(["a", "small nodule"], padding=True, return_tensors="pt")
    assert sorted(tokens) == ["attention_mask", "input_ids"]
    assert torch.equal(tokens["input_ids"], expected["input_ids"])


def test_nothing_of_it_needs_torchvision_or_warns(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs_of(processor)
    assert "torchvision" not in sys.modules
