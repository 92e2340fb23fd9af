"""The handler of an endpoint: every task answers as the model itself does, one input or a list, base64 or bytes."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from dicom_fixtures import write_dicom
from handler_http import load_handler
from PIL import Image

from modeling_regionmed_clip.region_pipelines import RegionClassificationPipeline, RegionGroundingPipeline
from regionmed_clip.model_cards.stage import stage_flat_folder

LABELS = ["nodule", "a cyst", "chest radiograph with a nodule"]
BOXES = [[3, 5, 20, 22.5], [10, 2, 39, 30]]


@pytest.fixture(scope="module")
def handler(model, processor, tmp_path_factory):
    folder = stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])
    before = Image.MAX_IMAGE_PIXELS
    yield load_handler(folder)
    Image.MAX_IMAGE_PIXELS = before


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of noise, `size` (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> str:
    """The picture's file in base64."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return base64.b64encode(stream.getvalue()).decode()


def ask(handler, inputs, **parameters):
    """The answer, which must be strict JSON."""
    answer = handler({"inputs": inputs, "parameters": parameters})
    json.dumps(answer, allow_nan=False)
    assert not (isinstance(answer, dict) and "error" in answer), answer
    return answer


def outputs(model, processor, **call):
    """What the model answers, without its gradient."""
    with torch.inference_mode():
        return model(**processor(**call))


def test_zero_shot_is_the_softmax_of_the_logits(handler, model, processor):
    expected = outputs(model, processor, images=picture(), text=LABELS).logits_per_image[0].softmax(-1)
    answer = ask(handler, encoded(picture()), candidate_labels=LABELS)
    order = expected.argsort(descending=True)
    assert [one["label"] for one in answer] == [LABELS[i] for i in order]
    np.testing.assert_allclose([one["score"] for one in answer], expected[order], atol=1e-6)
    assert ask(handler, {"image": encoded(picture())}, candidate_labels=LABELS, top_k=1) == answer[:1]
    framed = ask(handler, encoded(picture()), candidate_labels=["nodule"], hypothesis_template="chest radiograph {}")
    assert framed == [{"score": 1.0, "label": "nodule"}]


@pytest.mark.parametrize("kind", ["data: address", "wrapped base64", "bytes", "bytearray", "PIL", "file"])
def test_a_picture_may_come_in_several_forms(handler, kind):
    text = encoded(picture())
    forms = {
        "data: address": f"data:image/png;base64,{text}",
        "wrapped base64": base64.encodebytes(base64.b64decode(text)).decode(),
        "bytes": base64.b64decode(text),
        "bytearray": bytearray(base64.b64decode(text)),
        "PIL": picture(),
        "file": {"file": text},
    }
    assert ask(handler, forms[kind], task="embed_image") == ask(handler, text, task="embed_image")


def test_embeddings_are_the_unit_vectors_of_the_model(handler, model, processor):
    expected = outputs(model, processor, images=picture(), text=LABELS, boxes=[BOXES])
    image = ask(handler, encoded(picture()), task="embed_image")
    np.testing.assert_allclose(image["embedding"], expected.image_embeds[0], atol=1e-6)
    boxed = {"image": encoded(picture()), "boxes": BOXES}
    fused = ask(handler, boxed, task="embed_image")
    np.testing.assert_allclose(fused["embedding"], expected.fused_image_embeds[0], atol=1e-6)
    regions = ask(handler, boxed, task="embed_regions")
    np.testing.assert_allclose([one["embedding"] for one in regions], expected.region_embeds[0], atol=1e-6)
    np.testing.assert_allclose([list(one["box"].values()) for one in regions], BOXES, atol=1e-4)
    texts = ask(handler, [LABELS[0], {"text": LABELS[1]}, LABELS[2]], task="embed_text")
    np.testing.assert_allclose([one["embedding"] for one in texts], expected.text_embeds, atol=1e-5)


def test_regions_are_classified_and_grounded_as_by_the_pipelines(handler, model, processor):
    classify = RegionClassificationPipeline(model=model, processor=processor, device=-1)
    boxed = {"image": encoded(picture()), "boxes": BOXES}
    found = ask(handler, boxed, task="classify_regions", candidate_labels=LABELS, top_k=2)
    for one, other in zip(found, classify(picture(), LABELS, boxes=BOXES, top_k=2), strict=True):
        assert one["box"] == other["box"]
        assert [a["label"] for a in one["labels"]] == [a["label"] for a in other["labels"]]
        np.testing.assert_allclose(*([a["score"] for a in x["labels"]] for x in (one, other)), atol=1e-6)
    ground = RegionGroundingPipeline(model=model, processor=processor, device=-1)
    settings = {"candidate_labels": LABELS, "source": "heat", "threshold": -1, "heat_share": 0.5, "top_k": 2}
    found = ask(handler, encoded(picture()), task="ground", **settings)
    expected = ground(picture(), **settings)
    assert [(one["label"], one["box"]) for one in found] == [(one["label"], one["box"]) for one in expected]
    assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-6)


def test_proposals_come_in_original_pixels_and_may_be_none(handler, model, processor):
    found = ask(handler, encoded(picture(size=(80, 20))), task="propose", threshold=0, top_k=5)
    with torch.inference_mode():
        proposed = model.propose_regions(processor(images=picture(size=(80, 20)))["pixel_values"], 5, 0.0)
    (expected,) = processor.post_process_proposals(proposed, [(20, 80)])
    np.testing.assert_allclose([list(one["box"].values()) for one in found], expected["boxes"], atol=1e-4)
    assert ask(handler, encoded(picture()), task="propose", threshold=1) == []


def test_a_list_is_answered_item_by_item_in_order(handler):
    images = [encoded(picture(0)), encoded(picture(1, (20, 70)), "JPEG"), encoded(picture(2, (64, 33)))]
    boxes = [BOXES, [[1, 2, 8, 60]], [[0, 0, 64, 33], [1, 1, 9, 9], [30, 3, 60, 30]]]
    items = [{"image": image, "boxes": some} for image, some in zip(images, boxes, strict=True)]
    together = ask(handler, items, task="classify_regions", candidate_labels=LABELS)
    assert [len(one) for one in together] == [2, 1, 3]
    for item, one in zip(items, together, strict=True):
        for region, other in zip(
            one, ask(handler, item, task="classify_regions", candidate_labels=LABELS), strict=True
        ):
            assert region["box"] == other["box"]
            np.testing.assert_allclose(*([a["score"] for a in x["labels"]] for x in (region, other)), atol=1e-5)
    mixed = ask(handler, [items[0], images[1]], task="embed_image")  # one with boxes, one without
    for one, item in zip(mixed, (items[0], images[1]), strict=True):
        np.testing.assert_allclose(one["embedding"], ask(handler, item, task="embed_image")["embedding"], atol=1e-5)


@pytest.mark.parametrize(("box_format", "box"), [("xywh", [10, 8, 20, 16]), ("cxcywh_fraction", [0.5, 0.5, 0.5, 0.5])])
def test_boxes_may_be_given_in_other_formats(handler, box_format, box):
    item = {"image": encoded(picture()), "boxes": [box]}
    (region,) = ask(handler, item, task="embed_regions", box_format=box_format)
    np.testing.assert_allclose(list(region["box"].values()), [10, 8, 30, 24], atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "TIFF"), ("L", "BMP")]
)
def test_pictures_of_every_mode_are_read_as_the_processor_reads_them(handler, model, processor, mode, kind):
    stream = io.BytesIO(base64.b64decode(encoded(picture().convert("RGB").convert(mode), kind)))
    expected = outputs(model, processor, images=Image.open(stream)).image_embeds[0]
    answer = ask(handler, stream.getvalue(), task="embed_image")
    np.testing.assert_allclose(answer["embedding"], expected, atol=1e-6)


def test_sixteen_bits_and_dicom_are_read_whole_and_take_a_window(handler, model, processor, tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (32, 40)).astype(np.uint16)
    dicom = write_dicom(tmp_path / "slice.dcm", values).read_bytes()
    for content in (base64.b64decode(encoded(Image.fromarray(values))), dicom):
        for window in (None, (900, 1200)):
            expected = outputs(model, processor, images=content, window=window).image_embeds[0]
            settings = {} if window is None else {"window": list(window)}
            answer = ask(handler, {"file": base64.b64encode(content).decode()}, task="embed_image", **settings)
            np.testing.assert_allclose(answer["embedding"], expected, atol=1e-6)


def test_a_rotated_photograph_has_its_boxes_in_the_displayed_picture(handler):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned: 40 x 32 becomes 32 x 40
    item = {"image": encoded(picture(), "JPEG", exif=exif), "boxes": [[1, 30, 31, 39.5]]}
    (region,) = ask(handler, item, task="embed_regions")
    np.testing.assert_allclose(list(region["box"].values()), [1, 30, 31, 39.5], atol=1e-4)


def test_unicode_labels_come_back_as_they_were_sent(handler):
    labels = ["結節", "œdème 🫁", "ورم", "e\u0301"]
    answer = ask(handler, encoded(picture()), candidate_labels=labels)
    assert {one["label"] for one in answer} == set(labels)
