"""The pipelines of regions: their call forms, what they give back in original pixels, bad input named."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from modeling_regionmed_clip.region_pipelines import RegionClassificationPipeline, RegionGroundingPipeline
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.tokenizer import train_tokenizer

LABELS = ["nodule", "cyst", "a chest"]
BOXES = [(3, 4, 40, 50), (10.5, 5, 70, 55)]


@pytest.fixture(scope="module")
def processor():
    image_processor = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12)
    tokenizer = train_tokenizer(["is there a nodule in the chest radiograph"], vocab_size=280, max_length=32)
    return RegionMedClipProcessor(image_processor, tokenizer)


@pytest.fixture(scope="module")
def model(processor):
    text = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 32}
    return tiny_model(text_config={**text, "pad_token_id": processor.tokenizer.pad_token_id})


@pytest.fixture(scope="module")
def classify(model, processor):
    return RegionClassificationPipeline(model=model, processor=processor, device=-1)


@pytest.fixture(scope="module")
def ground(model, processor):
    return RegionGroundingPipeline(model=model, processor=processor, device=-1)


def picture(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture of noise, `size` (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8))


def corners(region: dict) -> list[float]:
    return [region["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]


def test_a_region_gets_the_softmax_of_its_logits_best_first(classify, model, processor):
    answer = classify(picture(), LABELS, boxes=BOXES)
    inputs = processor(images=picture(), boxes=[BOXES], region_text=LABELS)
    with torch.inference_mode():
        expected = model(**inputs).logits_per_region[0].softmax(dim=-1)  # (2, 3)
    for region, probabilities, box in zip(answer, expected, BOXES, strict=True):
        assert corners(region) == list(box)  # as it was given, though it went through fractions of the frame
        order = probabilities.argsort(descending=True).tolist()
        assert [label["label"] for label in region["labels"]] == [LABELS[i] for i in order]
        scores = [label["score"] for label in region["labels"]]
        np.testing.assert_allclose(scores, probabilities[order], atol=1e-6)
        assert sum(scores) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_lists_dicts_datasets_and_generators_give_what_single_images_give(classify, batch_size):
    asks = [{"image": picture(0), "boxes": BOXES}, {"image": picture(1, (40, 90)), "boxes": []}]
    asks.append({"image": picture(2), "points": [(5, 6)]})
    singles = [classify(ask, LABELS, top_k=1) for ask in asks]
    assert [len(regions) for regions in singles] == [2, 0, 1]
    settings = {"candidate_labels": LABELS, "top_k": 1, "batch_size": batch_size}
    pairs = [picture(0), picture(1, (40, 90))]
    assert_alike(classify(pairs, boxes=[BOXES, []], **settings), singles[:2])
    assert_alike(classify(asks, **settings), singles)
    assert_alike(list(classify((ask for ask in asks), **settings)), singles)
    assert_alike(list(classify(ListOf(asks), **settings)), singles)
    assert_alike(list(classify(RowsOf(asks), **settings)), singles)


class ListOf(torch.utils.data.Dataset):
    """A dataset that holds a list."""

    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.items[i]


class RowsOf:
    """A dataset that is known by its methods alone, as `datasets.Dataset` is; that has a `shape` too."""

    shape = (3, 2)

    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.items[i]


def test_rows_of_the_datasets_library_are_taken_and_one_array_stays_one_image(classify):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [{"image": {"bytes": as_png(picture(i)), "path": None}, "boxes": BOXES} for i in (0, 1)]
    )
    found = list(classify(rows.cast_column("image", datasets.Image()), LABELS, batch_size=2))
    assert_alike(found, [classify(picture(i), LABELS, boxes=BOXES) for i in (0, 1)])
    assert_alike([classify(np.asarray(picture()), LABELS, boxes=BOXES)], found[:1])
    assert_alike([classify(as_png(picture()), LABELS, boxes=BOXES)], found[:1])


def as_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_an_unknown_setting_is_a_type_error(classify):
    with pytest.raises(TypeError, match="foo"):
        classify(picture(), LABELS, boxes=BOXES, foo=1)


def assert_alike(found: list, expected: list) -> None:
    """Equal labels and boxes; scores as near as batches of other shapes come (float32)."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for region, wanted in zip(one, other, strict=True):
            assert region["box"] == wanted["box"]
            assert [a["label"] for a in region["labels"]] == [a["label"] for a in wanted["labels"]]
            scores = [[a["score"] for a in either["labels"]] for either in (region, wanted)]
            np.testing.assert_allclose(*scores, atol=1e-5)


def test_masks_and_other_box_formats_are_regions_too(classify):
    mask = np.zeros((1, 60, 80), dtype=bool)
    mask[0, 10:20, 30:50] = True
    (by_mask,) = classify(picture(), LABELS, masks=mask)
    np.testing.assert_allclose(corners(by_mask), (30, 10, 50, 20), atol=1e-4)
    (by_format,) = classify(picture(), LABELS, boxes=[(30, 10, 20, 10)], box_format="xywh")
    np.testing.assert_allclose(corners(by_format), (30, 10, 50, 20), atol=1e-4)


def test_proposed_regions_are_classified_too_and_none_is_an_answer(classify, model, monkeypatch):
    monkeypatch.setattr(model.config, "proposal_threshold", 0.0)  # an untrained head proposes all the same
    found = classify([picture(), picture(1, (20, 80))], LABELS, regions="proposed")
    assert all(len(regions) > 1 for regions in found)
    for regions, (width, height) in zip(found, [(80, 60), (20, 80)], strict=True):
        boxes = np.array([corners(region) for region in regions])
        assert (boxes >= 0).all()
        assert (boxes <= [width, height] * 2).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    monkeypatch.setattr(model.config, "proposal_threshold", 1.0)
    assert classify(picture(), LABELS, regions="proposed") == []


def test_a_region_that_the_geometry_cuts_away_keeps_its_place(model, processor):
    image_processor = RegionMedClipImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_center_crop=True, geometry="source",
        patch_size=12,
    )  # fmt: skip
    cropping = RegionMedClipProcessor(image_processor, processor.tokenizer)
    pipe = RegionClassificationPipeline(model=model, processor=cropping, device=-1)
    with pytest.warns(UserWarning, match="the centre crop of this geometry cuts it away"):
        found = pipe(picture(size=(200, 60)), LABELS, boxes=[(0, 0, 9, 9), (90, 20, 110, 40)])
    assert found[0] == {"box": None, "labels": []}
    np.testing.assert_allclose(corners(found[1]), (90, 20, 110, 40), atol=1e-3)


def test_the_template_stands_around_each_label(classify):
    plain = classify(picture(), ["in the chest a nodule", "in the chest a cyst"], boxes=BOXES)
    framed = classify(picture(), ["nodule", "cyst"], boxes=BOXES, hypothesis_template="in the chest a {}")
    for one, other in zip(plain, framed, strict=True):
        assert [a["score"] for a in one["labels"]] == [a["score"] for a in other["labels"]]


def test_grounding_gives_what_the_processor_reads_from_ground_phrases(ground, model, processor):
    found = ground(picture(), LABELS, source="heat", threshold=-1, heat_share=0.9)
    inputs = processor(images=picture(), text=LABELS)
    with torch.inference_mode():
        outputs = model.ground_phrases(**inputs)
    (expected,) = processor.post_process_grounding(
        outputs, [(60, 80)], LABELS, source="heat", threshold=-1, heat_share=0.9
    )
    assert {one["label"] for one in found} == set(LABELS)
    assert [one["label"] for one in found] == expected["text_labels"]
    np.testing.assert_allclose([one["score"] for one in found], expected["scores"], atol=1e-6)
    np.testing.assert_allclose([corners(one) for one in found], expected["boxes"], atol=1e-4)
    assert ground(picture(), "nodule", threshold=1.0) == []
    assert len(ground(picture(), LABELS, source="heat", threshold=-1, heat_share=0, top_k=1)) == len(LABELS)


def test_grounding_takes_streams_and_lists_of_images(ground):
    settings = {"candidate_labels": LABELS, "source": "heat", "threshold": -1.0}
    images = [picture(0), picture(1, (40, 90)), picture(2)]
    singles = [ground(image, **settings) for image in images]
    for found in (ground(images, batch_size=2, **settings), list(ground(iter(images), batch_size=2, **settings))):
        assert [[one["label"] for one in some] for some in found] == [[o["label"] for o in some] for some in singles]
        assert [[one["box"] for one in some] for some in found] == [[one["box"] for one in some] for some in singles]


def test_a_path_is_read_and_an_exif_rotation_is_applied_before_the_boxes(classify, ground, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned: 80 x 60 becomes 60 x 80
    picture().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (region,) = classify(str(tmp_path / "turned.jpg"), LABELS, boxes=[(5, 62, 50, 79)])
    np.testing.assert_allclose(corners(region), (5, 62, 50, 79), atol=1e-4)
    whole = ground(str(tmp_path / "turned.jpg"), "nodule", source="heat", threshold=-1.0, heat_share=0.0)
    assert max(corners(one)[2] for one in whole) <= 60
    assert max(corners(one)[3] for one in whole) == pytest.approx(80, abs=1e-3)


def test_a_saved_window_is_lifted_by_saying_none(model, processor, classify):
    windowed = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12, window=(-600, 1500))
    pipe = RegionClassificationPipeline(
        model=model, processor=RegionMedClipProcessor(windowed, processor.tokenizer), device=-1
    )
    with pytest.raises(ValueError, match=r"image 0 is an 8-bit picture .* say window=None in the call"):
        pipe(picture(), LABELS, boxes=BOXES)
    assert_alike([pipe(picture(), LABELS, boxes=BOXES, window=None)], [classify(picture(), LABELS, boxes=BOXES)])
    levels = np.random.default_rng(0).integers(-1000, 400, (60, 80)).astype(np.int16)
    shown = pipe(levels, LABELS, boxes=BOXES)
    assert shown != classify(levels, LABELS, boxes=BOXES)
    assert_alike([shown], [classify(levels, LABELS, boxes=BOXES, window=(-600, 1500))])


def test_a_model_in_bfloat16_works(model, processor):
    half = type(model)(model.config).bfloat16()
    classify = RegionClassificationPipeline(model=half, processor=processor, device=-1)
    assert len(classify(picture(), LABELS, boxes=BOXES)) == 2
    ground = RegionGroundingPipeline(model=half, processor=processor, device=-1)
    assert ground(picture(), LABELS, source="heat", threshold=-1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "no image is given"),
        ({"image": picture()}, r"no candidate_labels are given"),
        ({"image": picture(), "candidate_labels": LABELS}, "image 0: no boxes, masks or points are given"),
        ({"image": picture(), "candidate_labels": [], "boxes": BOXES}, "candidate_labels is empty"),
        ({"image": picture(), "candidate_labels": ["a", " "], "boxes": BOXES}, "candidate label 1 is ' '"),
        (
            {"image": picture(), "candidate_labels": ["a", "a"], "boxes": BOXES},
            "candidate label 1, 'a', is there twice",
        ),
        (
            {"image": picture(), "candidate_labels": ["nodule " * 40], "boxes": BOXES},
            "tokens and the text tower takes 32",
        ),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": [(0, 0, 90, 9)]}, "outside the image of 80 x 60"),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": [(0, 0, float("nan"), 9)]}, "is not finite"),
        ({"image": [picture()] * 2, "candidate_labels": LABELS, "boxes": [[(0, 0, 9, 9)]]}, "1 entries for 2 images"),
        ({"image": {"image": picture()}, "candidate_labels": LABELS, "boxes": BOXES}, "boxes is given beside dicts"),
        ({"image": {"image": picture(), "box": BOXES}, "candidate_labels": LABELS}, r"has the keys \['box', 'image'\]"),
        (
            {"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "regions": "proposed"},
            "regions are given and",
        ),
        ({"image": picture(), "candidate_labels": LABELS, "regions": "all"}, "regions is 'all'"),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "top_k": 0}, "top_k is 0"),
        (
            {"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "hypothesis_template": "x"},
            "must hold {} once",
        ),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "hypothesis_template": "{} {}"}, "{} once"),
        ({"image": picture(), "candidate_labels": 5, "boxes": BOXES}, "candidate_labels is 5; it must be one text or"),
        (
            {"image": picture(), "candidate_labels": ["\ud800"], "boxes": BOXES},
            r"the text '\\ud800' is no Unicode text",
        ),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "batch_size": -1}, "batch_size is -1"),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "batch_size": "2"}, "batch_size is '2'"),
        ({"image": iter([picture()]), "candidate_labels": LABELS, "boxes": BOXES}, "boxes is given beside dicts"),
        ({"image": [picture()] * 2, "candidate_labels": LABELS, "boxes": [BOXES, None]}, "^image 1: no boxes"),
        ({"image": [picture()] * 2, "candidate_labels": LABELS, "boxes": [[], [(0, 0, 90, 9)]]}, "^image 1, region 0:"),
        ({"image": [picture(), "no.png"], "candidate_labels": LABELS, "regions": "proposed"}, "^image 1 .*no.png"),
        ({"image": picture(), "candidate_labels": LABELS, "boxes": BOXES, "window": "heart"}, "window 'heart' is not"),
    ],
)
def test_what_cannot_be_classified_is_refused_by_name(classify, call, message):
    with pytest.raises(ValueError, match=message):
        classify(**call)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"image": picture(), "candidate_labels": LABELS, "threshold": 2}, "threshold is 2"),
        ({"image": picture(), "candidate_labels": LABELS, "threshold": "a"}, "threshold is 'a'; it must lie in"),
        ({"image": picture(), "candidate_labels": LABELS, "source": "dense"}, "source is 'dense'"),
        ({"image": picture(), "candidate_labels": LABELS, "top_k": True}, "top_k is True"),
        (
            {"image": {"image": picture(), "boxes": BOXES}, "candidate_labels": LABELS},
            r"has the keys \['boxes', 'image'\]",
        ),
    ],
)
def test_what_cannot_be_grounded_is_refused_by_name(ground, call, message):
    with pytest.raises(ValueError, match=message):
        ground(**call)


def test_without_a_processor_there_is_no_pipeline(model):
    with pytest.raises(ValueError, match="RegionGroundingPipeline got no processor"):
        RegionGroundingPipeline(model=model, device=-1)


def test_labels_set_when_it_is_built_hold_for_every_call(model, processor):
    pipe = RegionGroundingPipeline(
        model=model, processor=processor, device=-1, candidate_labels=["nodule"], source="heat", threshold=-1.0
    )
    assert {one["label"] for one in pipe(picture())} == {"nodule"}
    assert {one["label"] for one in pipe(picture(), ["cyst"])} == {"cyst"}
