"""What the handler of an endpoint refuses, with which status, and what it says; nothing gets it to raise or to wait."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import write_dicom
from handler_http import load_handler
from hostile_pictures import (
    animated_gif,
    bigtiff_of_many_tags,
    deflated_dicom,
    gif_of_a_huge_screen,
    jpeg_of_many_scans,
    jpeg_whose_exif_names_gigabytes,
    png_of_zeros,
    png_that_claims,
    png_whose_exif_names_gigabytes,
    postscript,
    saved,
    tiff_of_directories,
    tiff_that_names_gigabytes,
    tiff_with_a_large_tile,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regionmed_clip.model_cards.stage import stage_flat_folder

NAN, INFINITY = float("nan"), float("inf")
LABELS = {"candidate_labels": ["nodule", "cyst"]}
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40), dtype=np.uint8))
PNG, JPEG = saved(NOISE, "PNG"), saved(NOISE.resize((400, 320)), "JPEG")


@pytest.fixture(scope="module")
def handler(model, processor, tmp_path_factory):
    folder = stage_flat_folder(model, processor, tmp_path_factory.mktemp("run") / "final", results=[])
    before = Image.MAX_IMAGE_PIXELS
    yield load_handler(folder)
    Image.MAX_IMAGE_PIXELS = before


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def boxed(*boxes, image: str = "") -> dict:
    return {"image": image or b64(PNG), "boxes": list(boxes)}


def refused(handler, data) -> dict:
    """The error, which must be strict JSON of plain strings, short, and without any path of this machine."""
    answer = handler(data)
    assert isinstance(answer, dict)
    assert list(answer) == ["error"], str(answer)[:300]
    error = answer["error"]
    assert set(error) == {"status", "item", "message"}
    assert len(json.dumps(error, allow_nan=False)) < 1500
    assert str(Path.home()) not in error["message"]
    return error


REQUESTS = [
    (None, 400, "request", "must be an object"),
    ([], 400, "request", "must be an object"),
    ({"parameters": {}}, 400, "request", "must be an object"),
    ({"inputs": b64(PNG), "parameters": [1]}, 400, "parameters", "must be an object"),
    ({"inputs": b64(PNG), "parameters": {"task": "diagnose"}}, 400, "parameters.task", "must be one of zero_shot"),
    ({"inputs": b64(PNG), "parameters": {"task": ["zero_shot"]}}, 400, "parameters.task", "must be one of"),
    ({"inputs": b64(PNG), "parameters": {"labels": ["a"]}}, 400, "parameters.'labels'", "known are task, candidate_"),
    ({"inputs": b64(PNG), "parameters": {}}, 400, "parameters.candidate_labels", "list of texts"),
    ({"inputs": [], "parameters": LABELS}, 400, "inputs", "is empty"),
    ({"inputs": [b64(PNG)] * 17, "parameters": LABELS}, 413, "inputs", "17 entries; at most 16"),
    ({"inputs": [[b64(PNG)]], "parameters": LABELS}, 400, "inputs[0]", "an image is"),
    ({"inputs": {"img": b64(PNG)}, "parameters": LABELS}, 400, "inputs", "'img' are not known; image, file"),
    ({"inputs": {}, "parameters": LABELS}, 400, "inputs", 'needs "image" or "file"'),
    ({"inputs": {"image": b64(PNG), "file": b64(PNG)}, "parameters": LABELS}, 400, "inputs", "one of them"),
    ({"inputs": 7, "parameters": LABELS}, 400, "inputs", "an image is int 7"),
    ({"inputs": None, "parameters": LABELS}, 400, "inputs", 'needs "image" or "file"'),
    ({"inputs": {"image": b64(PNG), "boxes": [[1, 2, 3, 4]]}, "parameters": LABELS}, 400, "inputs", "'boxes' are not"),
    ({"inputs": b64(PNG), "parameters": {"task": "answer"}}, 422, "parameters.task", "answers no questions"),
]


@pytest.mark.parametrize(("data", "status", "item", "message"), REQUESTS)
def test_a_malformed_request_is_refused(handler, data, status, item, message):
    error = refused(handler, data)
    assert (error["status"], error["item"]) == (status, item), error
    assert message in error["message"], error


IMAGES = {
    "a web address": ("https://example.org/x.png", 400, "web addresses and paths are never read"),
    "a path": ("/etc/passwd", 400, "web addresses and paths are never read"),
    "a path that is base64": ("/etc/group/", 400, "never read"),
    "a path that is base64 of 12 letters": ("/etc/profile", 422, "no picture that is read"),
    "a file address": ("file:///etc/passwd", 400, "never read"),
    "a data address of text": ("data:text/plain,hello", 400, "not the base64"),
    "an empty text": ("", 400, "the image is empty"),
    "half of a surrogate pair": ("\ud800", 400, "not the base64"),
    "letters of another alphabet": ("結節", 400, "not the base64"),
    "empty bytes": (b"", 422, "0 bytes are no picture"),
    "text": (b64(b"no picture at all"), 422, "no picture that is read"),
    "too many bytes": (bytes(16 * 2**20 + 1), 413, "more than 16,777,216 bytes"),
    "too much base64": ("A" * (2**25), 413, "more than 16,777,216 bytes"),
    "a PNG that claims 25 billion pixels": (png_that_claims(160_000, 160_000), 413, "at most 32,000,000 are read"),
    "a whole PNG of 36 million pixels": (png_of_zeros(6000, 6000), 413, "at most 32,000,000 are read"),
    "a GIF of a huge screen": (gif_of_a_huge_screen(), 413, "has 4,294,836,225 pixels; at most 32,000,000 are read"),
    "a TIFF with a large tile": (tiff_with_a_large_tile(), 422, "tiles, 8192 x 8192, do not fit its 16 x 16"),
    "a TIFF of looping directories": (tiff_of_directories([1, 2, 0]), 422, "directories come back to one before"),
    "a TIFF that names gigabytes": (tiff_that_names_gigabytes(), 422, "340,014 bytes whose directories name at least"),
    "a TIFF of 800,000 tags": (bigtiff_of_many_tags(), 422, "more than 250,000 tags"),
    "a TIFF of 6,001 pages": (tiff_of_directories([*range(1, 6_001), None]), 422, "are more than 6,000"),
    "a PNG whose EXIF names gigabytes": (png_whose_exif_names_gigabytes(), 422, "EXIF data of 340,014 bytes"),
    "a JPEG whose EXIF names gigabytes": (jpeg_whose_exif_names_gigabytes(), 422, "EXIF data of 340,014 bytes"),
    "a JPEG of many scans": (jpeg_of_many_scans(), 422, "more than 100 scans"),
    "a truncated JPEG": (JPEG[: len(JPEG) // 2], 422, "truncated"),
    "a truncated PNG": (PNG[:-200], 422, "truncated or corrupt"),
    "the head of a PNG": (PNG[:20], 422, "picture"),
    "an animated GIF": (animated_gif(), 422, "several frames"),
    "an animated PNG": (saved(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(90)]), 422, "several frames"),
    "a TIFF of two pages": (saved(NOISE, "TIFF", save_all=True, append_images=[NOISE]), 422, "several frames"),
    "PostScript": (postscript(), 422, "no picture that is read"),
    "a WebP": (saved(NOISE, "WEBP"), 422, "must be a complete PNG, JPEG, TIFF, BMP, GIF or DICOM file"),
    "a deflated DICOM": (deflated_dicom(), 422, "deflated as a whole"),
    "a DICOM head alone": (bytes(128) + b"DICM", 422, "inputs"),
    "a PIL image of PostScript": (Image.open(io.BytesIO(postscript())), 422, "a EPS picture"),
    "a large PIL image": (Image.new("1", (8000, 8000)), 413, "8000 x 8000 pixels"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_that_is_none_or_unsafe_is_refused(handler, name):
    image, status, message = IMAGES[name]
    error = refused(handler, {"inputs": [b64(PNG), image], "parameters": LABELS})
    assert (error["status"], error["item"]) == (status, "inputs[1]"), error
    assert message in error["message"], error
    as_file = {"file": b64(image) if isinstance(image, bytes) else image}
    assert refused(handler, {"inputs": as_file, "parameters": LABELS})["status"] in (status, 400)


def test_a_dicom_bomb_is_refused_before_its_pixels_are_unpacked(handler, tmp_path):
    path = write_dicom(tmp_path / "bomb.dcm", np.zeros((4, 4), np.uint16), Rows=60000, Columns=60000)
    error = refused(handler, {"inputs": {"file": b64(path.read_bytes())}, "parameters": LABELS})
    assert (error["status"], error["item"]) == (413, "inputs.file")
    assert "60000 x 60000 pixels" in error["message"]
    frames = write_dicom(tmp_path / "frames.dcm", np.zeros((4, 4), np.uint16), NumberOfFrames=3, PixelData=bytes(96))
    item = {"file": b64(frames.read_bytes())}
    assert (
        "choose one by frame_index=0 to frame_index=2"
        in refused(handler, {"inputs": item, "parameters": LABELS})["message"]
    )
    assert len(handler({"inputs": {**item, "frame_index": 2}, "parameters": LABELS})) == 2


BOXES = [
    ("none", 400, "boxes", "must be a list of boxes"),
    ([], 400, "boxes", "is empty"),
    ([[0, 0, 9, 9]] * 65, 413, "boxes", "65 entries; at most 64"),
    ([0, 0, 9, 9], 400, "boxes[0]", "must be four numbers"),
    ([[0, 0, 9]], 400, "boxes[0]", "must be four numbers"),
    ([[0, 0, 9, 9], [0, 0, "9", 9]], 400, "boxes[1]", "must be four numbers"),
    ([[True, 0, 9, 9]], 400, "boxes[0]", "must be four numbers"),
    ([[[0, 0, 9, 9]]], 400, "boxes[0]", "must be four numbers"),
    ([[0, 0, NAN, 9]], 422, "boxes[0]", "must be finite"),
    ([[0, 0, INFINITY, 9]], 422, "boxes[0]", "must be finite"),
    ([[0, 0, 10**400, 9]], 422, "boxes[0]", "must be finite"),
    ([[0, 0, 1e30, 9]], 422, "boxes[0]", "must be finite"),
    ([[0, 0, 999999, 9]], 422, "", "inputs, region 0: box (0, 0, 999999, 9) (xyxy) lies outside the image of 40 x 32"),
    ([[0, 0, 9, 9], [-5, 0, 9, 9]], 422, "", "inputs, region 1: box (-5, 0, 9, 9) (xyxy) lies outside"),
    ([[9, 9, 3, 3]], 422, "", "is inverted or empty"),
    ([[5, 5, 5, 5]], 422, "", "is inverted or empty"),
    ([[0.1, 0.1, 0.5, 0.6]], 422, "boxes", "within the first pixel"),
    ({"x": 1}, 400, "boxes", "must be a list of boxes"),
]


@pytest.mark.parametrize(("boxes", "status", "item", "message"), BOXES)
def test_boxes_that_mean_nothing_are_refused(handler, boxes, status, item, message):
    data = {"inputs": {"image": b64(PNG), "boxes": boxes}, "parameters": {"task": "classify_regions", **LABELS}}
    error = refused(handler, data)
    assert (error["status"], error["item"]) == (status, f"inputs.{item}".rstrip(".")), error
    assert message in error["message"], error


LONG, VAST = "lung " * 2_000_000, 10**5000
PARAMETERS = [
    ({"candidate_labels": []}, 400, "candidate_labels", "is empty"),
    ({"candidate_labels": [f"label {i}" for i in range(10_000)]}, 413, "candidate_labels", "10,000 entries"),
    ({"candidate_labels": {"a": 1}}, 400, "candidate_labels", "must be a list"),
    ({"candidate_labels": ["a", 3]}, 400, "candidate_labels[1]", "must be a text"),
    ({"candidate_labels": ["a", " \n"]}, 400, "candidate_labels[1]", "says something"),
    ({"candidate_labels": ["a", ["b"]]}, 400, "candidate_labels[1]", "must be a text"),
    ({"candidate_labels": ["a", "b", "a"]}, 422, "candidate_labels[2]", "is there twice"),
    ({"candidate_labels": ["a", "b" * 1001]}, 413, "candidate_labels[1]", "1,001 characters"),
    ({"candidate_labels": ["a", "nodule " * 60]}, 422, "candidate_labels[1]", "tokens; the model reads 64"),
    ({"candidate_labels": ["a", "\ud800"]}, 422, "candidate_labels[1]", "surrogate"),
    ({**LABELS, "hypothesis_template": "a photo"}, 400, "hypothesis_template", "must hold {} once"),
    ({**LABELS, "hypothesis_template": "{}" * 400}, 400, "hypothesis_template", "must hold {} once"),
    ({**LABELS, "hypothesis_template": "{0.__class__}"}, 400, "hypothesis_template", "must hold {} once"),
    ({**LABELS, "top_k": 0}, 400, "top_k", "from 1 to 1000"),
    ({**LABELS, "top_k": "3"}, 400, "top_k", "from 1 to 1000"),
    ({**LABELS, "window": "heart"}, 422, "", "window 'heart' is not known"),
    ({**LABELS, "window": [40, 0]}, 422, "", "the width above 0"),
    ({**LABELS, "window": [40, NAN]}, 400, "window", "window is"),
    ({**LABELS, "window": {"low": 3}}, 400, "window", "window is"),
    ({**LABELS, "window": LONG}, 400, "window", "window is 'lung lung"),
    ({**LABELS, "window": ["lung", LONG, "bone"]}, 400, "window", "window is"),
    ({**LABELS, "top_k": VAST}, 400, "top_k", "top_k is int a number of 16,610 bits"),
    ({**LABELS, "window": [VAST, 3]}, 400, "window", "window is"),
    ({"task": "embed_image", "box_format": LONG}, 400, "box_format", "box_format is 'lung lung"),
    ({"task": "ground", **LABELS, "source": LONG}, 400, "source", "source is 'lung lung"),
    ({**LABELS, "window": [40, 400]}, 422, None, "is an 8-bit picture"),
    ({"task": "ground", **LABELS, "threshold": "high"}, 400, "threshold", "must be a number"),
    ({"task": "ground", **LABELS, "threshold": NAN}, 400, "threshold", "must be a number"),
    ({"task": "ground", **LABELS, "threshold": 3}, 422, "", "threshold is 3; it must lie in [-1, 1]"),
    ({"task": "ground", **LABELS, "source": "magic"}, 422, "", "source is 'magic'"),
    ({"task": "ground", **LABELS, "source": ["heat"]}, 400, "source", "must be a text"),
    ({"task": "propose", "threshold": 2}, 422, "", "a score lies in [0, 1]"),
]


@pytest.mark.parametrize(("parameters", "status", "item", "message"), PARAMETERS)
def test_parameters_out_of_their_range_are_refused(handler, parameters, status, item, message):
    error = refused(handler, {"inputs": b64(PNG), "parameters": parameters})
    wanted = "inputs" if item is None else f"parameters.{item}".rstrip(".")
    assert error["status"] == status, error
    assert error["item"].startswith(wanted), error
    assert message in error["message"], error


def test_what_is_nested_deeper_than_any_request_is_refused_not_followed(handler):
    nest: list = []
    for _ in range(100_000):
        nest = [nest]
    for data in (
        {"inputs": nest},
        {"inputs": {"image": nest}, "parameters": LABELS},
        {"inputs": boxed(nest), "parameters": {"task": "embed_regions"}},
        {"inputs": boxed([1, 2, nest, 4]), "parameters": {"task": "embed_regions"}},
        {"inputs": b64(PNG), "parameters": {"candidate_labels": nest}},
        {"inputs": b64(PNG), "parameters": {**LABELS, "window": nest}},
        {"inputs": b64(PNG), "parameters": {**LABELS, "top_k": nest}},
        {"inputs": {"image": b64(PNG), "frame_index": nest}, "parameters": LABELS},
    ):
        assert refused(handler, data)["status"] == 400


def test_whole_numbers_too_long_to_write_out_are_refused_in_any_field(handler):
    for data in (
        VAST,
        {"inputs": VAST, "parameters": LABELS},
        {"inputs": b64(PNG), "parameters": VAST},
        {"inputs": b64(PNG), "parameters": {"task": VAST}},
        {"inputs": b64(PNG), "parameters": {"candidate_labels": ["a", VAST]}},
        {"inputs": b64(PNG), "parameters": {"candidate_labels": [[VAST]]}},
        {"inputs": {"image": {"a": VAST}}, "parameters": LABELS},
        {"inputs": boxed([1, 2, [VAST], 4]), "parameters": {"task": "embed_regions"}},
        {"inputs": {"image": b64(PNG), "frame_index": VAST}, "parameters": LABELS},
    ):
        assert refused(handler, data)["status"] == 400


@pytest.mark.parametrize(
    ("kind", "words"), [(MemoryError, "more memory than there is"), (RecursionError, "too deeply")]
)
def test_what_the_machine_cannot_hold_is_answered_not_raised(handler, monkeypatch, kind, words):
    def fail(*_args, **_kwargs):
        raise kind

    monkeypatch.setattr(handler, "_see", fail)
    error = refused(handler, {"inputs": b64(PNG), "parameters": LABELS})
    assert (error["status"], error["item"]) == (413, "request")
    assert words in error["message"]


def test_refusals_take_less_than_50_ms(handler):
    many = [{"image": b64(PNG), "boxes": [[0, 0, 9, 9]]}] * 15
    cases = [data for data, *_ in REQUESTS] + [{"inputs": i, "parameters": LABELS} for i, *_ in IMAGES.values()]
    cases += [{"inputs": b64(PNG), "parameters": p} for p, *_ in PARAMETERS]
    cases += [{"inputs": [*many, boxed([0, 0, NAN, 9])], "parameters": {"task": "embed_regions"}}]
    for data in cases:
        took = []
        for _ in range(3):
            started_at = time.perf_counter()
            refused(handler, data)
            took.append(time.perf_counter() - started_at)
        assert min(took) < 0.05, (took, str(data)[:200])  # the best of three: other work runs beside the tests


def test_a_model_saved_with_a_window_says_how_to_send_an_8_bit_picture(handler, monkeypatch):
    monkeypatch.setattr(handler.processor.image_processor, "window", (-600.0, 1500.0))
    error = refused(handler, {"inputs": b64(PNG), "parameters": LABELS})
    assert (error["status"], error["item"]) == (422, "inputs")
    assert "is an 8-bit picture" in error["message"]
    assert '"window": null' in error["message"]
    assert len(handler({"inputs": b64(PNG), "parameters": {**LABELS, "window": None}})) == 2
    values = np.random.default_rng(0).integers(0, 4000, (32, 40)).astype(np.uint16)
    assert len(handler({"inputs": b64(saved(Image.fromarray(values), "PNG")), "parameters": LABELS})) == 2


def test_the_limits_are_changed_by_the_environment(handler, monkeypatch):
    limits = type(handler.limits)
    monkeypatch.setenv("REGIONMED_MAX_BOXES", "3")
    assert limits.from_environment() == limits(max_boxes=3)
    for text in ("0", "-1", "many", "1e3", ""):
        monkeypatch.setenv("REGIONMED_MAX_BOXES", text)
        with pytest.raises(ValueError, match=r"REGIONMED_MAX_BOXES is .*must be a whole number above 0, such as 64"):
            limits.from_environment()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(b64(PNG)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TASKS = ("zero_shot", "embed_image", "embed_text", "embed_regions", "classify_regions", "ground", "propose", "answer")
NAMES = ("candidate_labels", "hypothesis_template", "top_k", "window", "box_format", "threshold", "source", "regions")
ITEMS = st.fixed_dictionaries({"image": JSON | st.just(b64(PNG))}, optional={"boxes": JSON, "frame_index": JSON})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=JSON | ITEMS,
    parameters=st.fixed_dictionaries({"task": st.sampled_from(TASKS)}, optional=dict.fromkeys(NAMES, JSON)),
)
def test_any_json_at_all_is_answered_or_refused(handler, inputs, parameters):
    answer = handler({"inputs": inputs, "parameters": parameters})
    json.dumps(answer, allow_nan=False)
    if isinstance(answer, dict) and "error" in answer:
        assert answer["error"]["status"] in (400, 413, 422)


def test_the_documented_limits_and_tasks_are_those_of_the_handler(handler):
    page = (Path(__file__).resolve().parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    limits = {f"REGIONMED_{field.name.upper()}": f"{field.default:,}" for field in fields(handler.limits)}
    documented = dict(re.findall(r"\| ([\d,]+) \| `(REGIONMED_\w+)` \|", page))
    assert {name: value for value, name in documented.items()} == limits
    rows = {row[0]: set(re.findall(r"`(\w+)`", row[1])) for row in re.findall(r"\n\| `(\w+)` \|[^|]*\|([^|]*)\|", page)}
    known = {name: set(task.settings) for name, task in type(handler).__call__.__globals__["TASKS"].items()}
    assert {name: rows.get(name) for name in known} == known
