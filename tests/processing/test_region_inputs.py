"""Regions of every kind and form beside images, in both geometries: the same tensors, and untouched pixel values."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from regionmed_clip.processing.corpus.records import MaskRle
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.processing.region_boxes import box_coverage
from regionmed_clip.processing.region_inputs import region_tensors
from regionmed_clip.train.tokenizer import train_tokenizer

WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8))
TALL = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 30), dtype=np.uint8))
MASK = np.zeros((50, 100), dtype=bool)
MASK[10:40, 30:60] = True
MASK[20:30, 40:50] = False
OTHER = np.zeros((50, 100), dtype=bool)
OTHER[25:, 45:80] = True
GEOMETRIES = {
    "pad": RegionMedClipImageProcessor(size=64, patch_size=16),
    "source": RegionMedClipImageProcessor(
        geometry="source", size={"shortest_edge": 64}, do_center_crop=True, crop_size=64, patch_size=16
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["small nodule in the left lung"] * 3, vocab_size=300, max_length=16)


@pytest.fixture(params=sorted(GEOMETRIES))
def processor(request, tokenizer) -> RegionMedClipProcessor:
    return RegionMedClipProcessor(GEOMETRIES[request.param], tokenizer)


def png(mask):
    stream = BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def run_lengths(mask):
    rle = MaskRle.from_array(mask)
    return {"size": list(rle.size), "counts": list(rle.counts)}


REGIONS = [
    {"boxes": [[(30, 10, 60, 40)], [(3, 4, 20, 50)]]},
    {"boxes": [[(30, 10, 30, 30)], [(3, 4, 17, 46)]], "box_format": "xywh"},
    {"boxes": [[(0.5, 0.5, 0.2, 0.2)], []], "box_format": "cxcywh_fraction"},
    {"masks": [[MASK, OTHER], np.ones((1, 60, 30), dtype=bool)]},
    {"masks": [[png(MASK), run_lengths(OTHER)], None]},
    {"points": [[(50, 25), (40, 20)], [(10, 30)]]},
    {"boxes": [[(30, 10, 60, 40)], None], "points": [None, [(10, 30)]], "region_text": [["nodule"], ["lung"]]},
]


@pytest.mark.parametrize("regions", REGIONS)
def test_pixel_values_are_the_same_with_and_without_regions(processor, regions):
    alone = processor(images=[WIDE, TALL])["pixel_values"]
    batch = processor(images=[WIDE, TALL], **regions)
    assert torch.equal(batch["pixel_values"], alone)
    assert batch["region_mask"].any()


def test_ragged_columns_as_pandas_holds_them_are_the_same_regions(processor):
    boxes = [[(30, 10, 60, 40), (0, 0, 100, 50)], [(3, 4, 20, 50)]]
    texts = [["nodule", "lung"], ["lung"]]
    expected = processor(images=[WIDE, TALL], boxes=boxes, region_text=texts)
    columns = {"boxes": np.empty(2, dtype=object), "region_text": np.empty(2, dtype=object)}
    for i in range(2):
        columns["boxes"][i] = np.empty(len(boxes[i]), dtype=object)
        columns["boxes"][i][:] = [np.array(box) for box in boxes[i]]
        columns["region_text"][i] = np.array(texts[i], dtype=object)
    for given in (columns, {name: list(column) for name, column in columns.items()}):
        batch = processor(images=[WIDE, TALL], **given)
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    candidates = processor(region_text=np.array(["nodule", "lung"]))
    assert torch.equal(candidates["region_input_ids"], expected["region_input_ids"])


def test_pixel_values_are_the_same_beside_a_region_that_is_cropped_away(tokenizer):
    processor = RegionMedClipProcessor(GEOMETRIES["source"], tokenizer)
    with pytest.warns(UserWarning, match="region 0: the centre crop"):
        batch = processor(images=WIDE, boxes=[(0, 0, 10, 50)])
    assert torch.equal(batch["pixel_values"], processor(images=WIDE)["pixel_values"])


@pytest.mark.parametrize(
    "masks",
    [
        [MASK, OTHER],
        np.stack([MASK, OTHER]),
        torch.from_numpy(np.stack([MASK, OTHER])),
        [Image.fromarray(MASK), OTHER.astype(np.uint8) * 255],
        [png(MASK), run_lengths(OTHER)],
        [run_lengths(MASK), {"polygons": [[45, 25, 80, 25, 80, 50, 45, 50]]}],
        [MASK.tolist(), OTHER],
    ],
)
def test_masks_of_every_form_give_the_same_tensors_with_and_without_the_outer_list(processor, masks):
    expected = processor(images=[WIDE], masks=[np.stack([MASK, OTHER])])
    names = ("region_boxes", "region_mask", "region_coverage")
    for batch in (processor(images=WIDE, masks=masks), processor(images=[WIDE], masks=[masks])):
        assert all(torch.equal(batch[name], expected[name]) for name in names)
    batch = processor(images=[WIDE, TALL], masks=[masks, None])
    assert all(torch.equal(batch[name][:1], expected[name]) for name in names)
    assert not batch["region_mask"][1].any()


def test_one_coded_mask_of_one_image_needs_no_outer_list(processor):
    expected = processor(images=[WIDE], masks=[[MASK]])["region_coverage"]
    for mask in (Image.fromarray(MASK), png(MASK), run_lengths(MASK)):
        assert torch.equal(processor(images=WIDE, masks=[mask])["region_coverage"], expected)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (run_lengths(MASK), r"masks is a dict; it must be one list of regions per image. Wrap it: masks=\[\[...\]\]"),
        ([png(MASK), png(OTHER)], r"masks is one list of regions for 2 images.*masks=\[\[...\], \[...\]\]"),
        ([png(MASK), None], r"image 0: masks is a bytes; it must be a list with one mask for each region"),
        ([[MASK, run_lengths(MASK.T)], None], r"image 0, region 1: the mask has run lengths of size \[100, 50\]"),
        ([[MASK], [np.zeros((60, 30), bool)]], "image 1, region 0: the mask has no pixel set"),
        ([[MASK]], "masks has 1 entries for 2 images"),
    ],
)
def test_bad_masks_are_named_by_image_and_region(processor, masks, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        processor(images=[WIDE, TALL], masks=masks)


def test_a_text_among_the_numbers_of_a_box_is_named_with_its_box(processor):
    with pytest.raises(ValueError, match=r"image 0, region 0: box \('a', 2, 3, 4\) must be 4 numbers"):
        processor(images=WIDE, boxes=[("a", 2, 3, 4)])


def test_every_kind_of_region_of_the_same_place_has_the_same_coverage(processor):
    box = np.zeros((1, 50, 100), dtype=bool)
    box[0, 10:40, 30:60] = True
    of_mask = processor(images=WIDE, masks=box)
    of_box = processor(images=[WIDE, TALL], boxes=[[(30, 10, 60, 40)], None], points=[None, [(10, 30)]])
    np.testing.assert_allclose(of_mask["region_boxes"][0], of_box["region_boxes"][0], atol=1e-6)
    np.testing.assert_allclose(of_mask["region_coverage"][0], of_box["region_coverage"][0], atol=1e-5)
    of_point = of_box["region_coverage"][1]
    np.testing.assert_allclose(of_point, box_coverage(of_box["region_boxes"][1].numpy(), (4, 4)), atol=1e-6)
    np.testing.assert_allclose(of_point.sum(), 1, atol=1e-5)  # a square of one patch


def test_a_mask_just_outside_of_what_a_crop_keeps_is_not_visible():
    geometry = GEOMETRIES["source"].geometry_for(4000, 1)  # 64 times larger: half of pixel 1999, half of 2000
    visible = geometry.visible_pixels()[1]
    mask = np.zeros((1, 1, 4000), dtype=bool)
    mask[0, 0, visible] = True
    arrays, _ = region_tensors({"masks": [mask]}, [geometry], 16, "xyxy")
    assert arrays["region_mask"].all()
    assert arrays["region_coverage"].sum() == 16
    mask[0, 0, visible] = False
    mask[0, 0, visible.stop] = True
    with pytest.warns(UserWarning, match="region 0: the centre crop"):
        arrays, _ = region_tensors({"masks": [mask]}, [geometry], 16, "xyxy")
    assert not arrays["region_mask"].any()
    assert not arrays["region_coverage"].any()
    assert not arrays["region_boxes"].any()


def test_a_box_of_a_thousandth_pixel_keeps_a_box_in_the_frame():
    unresized = RegionMedClipImageProcessor(size=1024, patch_size=16, do_resize=False).geometry_for(10, 10)
    arrays, _ = region_tensors({"boxes": [[(5, 5, 5.001, 5.0011)]]}, [unresized], 16, "xyxy")
    assert arrays["region_mask"].all()
    x0, y0, x1, y1 = arrays["region_boxes"][0, 0]
    assert x1 > x0
    assert y1 > y0
