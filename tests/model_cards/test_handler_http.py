"""The handler over HTTP: huggingface_hub's own client gets its answers, refusals come with their status."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from handler_http import MAX_BODY_BYTES, load_handler, serving
from hostile_pictures import saved
from huggingface_hub import InferenceClient
from PIL import Image

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from regionmed_clip.model_cards.stage import stage_flat_folder

LABELS = ["nodule", "a cyst"]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8))
PNG = saved(NOISE, "PNG")
ANSWERS = ("yes", "no", "left")


@pytest.fixture(scope="module")
def answering(model):
    torch.manual_seed(1)
    names = {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: i for i, answer in enumerate(ANSWERS)}}
    config = type(model.config).from_dict(model.config.to_dict() | names)
    answering = RegionMedClipForVisualQuestionAnswering(config).eval()
    answering.regionmed_clip.load_state_dict(model.state_dict())
    return answering


@pytest.fixture(scope="module")
def address(answering, processor, tmp_path_factory):
    folder = stage_flat_folder(answering, processor, tmp_path_factory.mktemp("run") / "final", results=[])
    before = Image.MAX_IMAGE_PIXELS
    with serving(load_handler(folder)) as address:
        yield address
    Image.MAX_IMAGE_PIXELS = before


def post(address: str, body: bytes, content_type: str = "application/json") -> tuple[int, dict | list]:
    """The status and the answer."""
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def asking(inputs, **parameters) -> bytes:
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def test_the_hubs_client_asks_questions(address, answering, processor, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the address is of this machine
    client = InferenceClient(model=address, token="none")
    with torch.inference_mode():
        logits = answering(**processor(images=NOISE, text="a nodule?")).logits[0]
    answers = client.visual_question_answering(PNG, "a nodule?", top_k=2)
    scores, best = logits.sigmoid().topk(2)
    assert [one.answer for one in answers] == [ANSWERS[i] for i in best]
    np.testing.assert_allclose([one.score for one in answers], scores, atol=1e-6)
    found = client.zero_shot_image_classification(PNG, candidate_labels=LABELS)  # names no task either
    assert {one.label for one in found} == set(LABELS)


def test_the_hubs_client_classifies_images(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the address is of this machine
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the handler sets its own
    handler = load_handler(stage_flat_folder(model, processor, tmp_path / "final", results=[]))
    with torch.inference_mode():
        scores = model(**processor(images=NOISE, text=LABELS)).logits_per_image[0].softmax(-1)
    with serving(handler) as address:
        found = InferenceClient(model=address, token="none").zero_shot_image_classification(
            PNG, candidate_labels=LABELS, hypothesis_template="{}"
        )
    expected = dict(zip(LABELS, scores.tolist(), strict=True))
    assert {one.label: one.score for one in found} == pytest.approx(expected, abs=1e-6)


def test_questions_may_be_about_boxes_or_proposed_regions(address, answering, processor):
    item = {"image": base64.b64encode(PNG).decode(), "question": "a nodule?"}
    boxed = {**item, "boxes": [[3, 4, 20, 30]]}
    with torch.inference_mode():
        logits = answering(**processor(images=NOISE, text="a nodule?", boxes=[boxed["boxes"]])).logits[0]
    status, found = post(address, asking(boxed, top_k=3))
    assert status == 200
    expected = {ANSWERS[i]: score for i, score in enumerate(logits.sigmoid().tolist())}
    assert {one["answer"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-6)
    assert post(address, asking([item, item], regions="proposed"))[0] == 200
    assert post(address, asking(boxed, regions="proposed"))[1]["error"]["item"] == "parameters.regions"
    assert post(address, asking({**item, "question": " "}))[1]["error"]["item"] == "inputs.question"


def test_a_picture_as_the_body_is_an_image(address):
    status, found = post(f"{address}/?task=embed_image", PNG, "image/png")
    assert (status, len(found["embedding"])) == (200, 16)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "is no JSON"),
        (b"[" * 100_000, 400, "is no JSON"),
        (b"\xff\xfe", 400, "is no JSON"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "is no JSON"),
        (b"null", 400, "must be an object"),
        (asking("/etc/passwd", task="embed_image"), 400, "never read"),
        (asking({"image": "x", "boxes": [[0, 0, 1e999, 9]]}, task="embed_image"), 422, "must be finite"),
        (asking(["a"] * 300, task="embed_text"), 413, "300 entries"),
    ],
)
def test_a_refusal_has_its_status(address, body, status, message):
    found, answer = post(address, body)
    assert found == status == answer["error"]["status"]
    assert message in answer["error"]["message"]


def test_a_body_that_is_too_long_is_refused_unread(address):
    request = urllib.request.Request(address, b"", {"Content-Length": str(MAX_BODY_BYTES + 1)})
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=10):
        pytest.fail("it was answered")
    with caught.value as error:
        assert error.code == 413


def test_many_at_a_time_get_what_one_alone_gets(address):
    texts = [f"a nodule {i}" for i in range(8)]
    alone = [post(address, asking(text, task="embed_text")) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: post(address, asking(text, task="embed_text")), texts * 4))
    assert together == alone * 4


def test_the_load_test_finds_right_answers_and_counts_slow_refusals(address, answering, processor, monkeypatch):
    """The script whose figures docs/deployment.md shows, on few requests and this process's own server."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import handler_load

    cases = handler_load.good_cases(answering.regionmed_clip, processor, 2) + handler_load.bad_cases()
    figures = handler_load.measure(address, psutil.Process(), cases, 2)
    assert figures["wrong"] == []
    assert (figures["good"]["n"], figures["bad"]["n"]) == (11, 16)
    assert figures["bad"]["within_50_ms"] <= 16
    wrong = [replace(case, status=418) for case in cases[:2]] + cases[-1:]
    assert handler_load.measure(address, psutil.Process(), [*wrong, cases[2]], 1)["wrong"] == [
        c.name for c in cases[:2]
    ]
