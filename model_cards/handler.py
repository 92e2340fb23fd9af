"""What an Inference Endpoint runs: requests as plain data in, answers as plain data out, every mistake named.

`EndpointHandler(folder)(data)` takes {"inputs": ..., "parameters": {"task": ..., ...}} and never raises for a bad
request: it answers {"error": {"status", "item", "message"}}. The file stands alone beside the model in its flat folder.
Nothing is ever fetched or read from disk for a request: a picture is its bytes, in base64 where the request is JSON.
docs/deployment.md shows every task.
"""

from __future__ import annotations

import base64
import math
import os
import re
import reprlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # no others: some of Pillow's readers start programs
READ_AS = (*FORMATS, "MPO")  # MPO: how Pillow names the photographs of phones, which are JPEG
DEFLATED_DICOM = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95", b"1.2.840.10008.1.2.4.205")
MAX_MESSAGE_CHARS = 600
MAX_NAME_CHARS = 100  # of a window, a source, a format of boxes
LARGEST_NUMBER = 1e9  # of a box: no image is that large
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    Warning,
)
ONLY_BYTES = "Send the bytes of the file in base64; web addresses and paths are never read."


@dataclass(frozen=True)
class Limits:
    """What one request may hold; beyond it the answer is status 413. REGIONMED_MAX_PIXELS and so on change them."""

    max_image_bytes: int = 16 * 2**20
    max_pixels: int = 32_000_000
    max_items: int = 16  # images
    max_boxes: int = 64  # of an image
    max_texts: int = 256  # candidate labels, or texts to embed
    max_text_chars: int = 1000

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits, each from the environment variable REGIONMED_<ITS NAME> where that is set; ValueError if odd."""
        found = {}
        for field in fields(cls):
            name = f"REGIONMED_{field.name.upper()}"
            text = os.environ.get(name, str(field.default))
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise ValueError(f"{name} is {text!r}; it must be a whole number above 0, such as {field.default}.")
            found[field.name] = int(text)
        return cls(**found)


class RequestError(ValueError):
    """A request that is refused: `status` 400 (its form), 413 (its size) or 422 (its content), and which `item`."""

    def __init__(self, status: int, item: str, message: str):
        super().__init__(message)
        self.status, self.item = status, item


class EndpointHandler:
    """Answers requests with the model of a flat folder, on the GPU if there is one; may be called by several threads.

    Args:
        path: the folder; its code is run.
        limits: None: `Limits.from_environment()`. Pillow's own limit of pixels is set to the same, for the process.
    """

    def __init__(self, path: str = "", limits: Limits | None = None):
        self.limits = limits or Limits.from_environment()
        Image.MAX_IMAGE_PIXELS = self.limits.max_pixels
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        answers = AutoModelForVisualQuestionAnswering.__name__ in config.auto_map
        auto_class = AutoModelForVisualQuestionAnswering if answers else AutoModel
        model = auto_class.from_pretrained(path, trust_remote_code=True).eval()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.answering = model.to(self.device) if answers else None
        self.model = model.regionmed_clip if answers else model.to(self.device)
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.check_encoded = get_class_from_dynamic_module("encoded_pictures.check_encoded", path)  # of the processor
        positions = getattr(self.model.config.text_config, "max_position_embeddings", None) or math.inf
        self.max_tokens = min(self.processor.tokenizer.model_max_length, positions)
        self.text_lock, self.model_lock = threading.Lock(), threading.Lock()  # a fast tokenizer serves one at a time

    def __call__(self, data: Any) -> Any:
        """The answer to one input, a list of answers to a list, or {"error": {"status", "item", "message"}}.

        Args:
            data: {"inputs": one input or a list, "parameters": {"task": one of TASKS, and its settings}}. An input is
                an image (base64, bytes or PIL), a text (embed_text), or a dict of "image" or "file", "boxes",
                "frame_index", "question", "text", as the task takes them. Without a task it is "answer" where the
                model answers questions and no candidate_labels are given, else "zero_shot".
        """
        try:
            return self._answer(data)
        except RequestError as error:
            return {"error": {"status": error.status, "item": error.item, "message": str(error)}}
        except (MemoryError, RecursionError) as error:
            what = "needs more memory than there is" if isinstance(error, MemoryError) else "is nested too deeply"
            return {"error": {"status": 413, "item": "request", "message": f"the request {what}. Send a smaller one."}}

    def _answer(self, data: Any) -> Any:
        """What `__call__` gives, a refusal raised."""
        if not isinstance(data, dict) or "inputs" not in data:
            raise RequestError(400, "request", 'the request must be an object {"inputs": ..., "parameters": {...}}.')
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestError(400, "parameters", f"parameters is {_short(parameters)}; it must be an object.")
        given = {name: value for name, value in parameters.items() if value is not None or name == "window"}
        is_question = self.answering is not None and "candidate_labels" not in given
        name = given.pop("task", "answer" if is_question else "zero_shot")
        if not isinstance(name, str) or name not in TASKS:
            raise RequestError(400, "parameters.task", f"task is {_short(name)}; it must be one of {', '.join(TASKS)}.")
        task = TASKS[name]
        settings = _checked_settings(given, task, name)
        inputs = data["inputs"]
        if "question" in data and isinstance(inputs, (str, bytes, Image.Image)):  # as huggingface_hub's client asks
            inputs = {"image": inputs, "question": data["question"]}
        is_several = isinstance(inputs, (list, tuple))
        limit = self.limits.max_texts if name == "embed_text" else self.limits.max_items
        _check_count(inputs if is_several else [inputs], limit, "inputs")
        places = [f"inputs[{i}]" for i in range(len(inputs))] if is_several else ["inputs"]
        items = [_item(value, place, task) for value, place in zip(inputs if is_several else [inputs], places)]
        answers = task.method(self, items, places, settings)
        return answers if is_several else answers[0]

    def _zero_shot(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image {"score", "label"} of every candidate, best first; the scores are a softmax over them."""
        labels, texts = self._labels(settings)
        tensors, _ = self._see(items, places, settings)
        scores = self._run(self.model, **tensors, **texts).logits_per_image.softmax(dim=-1)
        return [_best(row, labels, "label", settings.get("top_k")) for row in scores.tolist()]

    def _embed_image(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image {"embedding"} of unit length: with boxes the one that these refine."""
        tensors, _ = self._see(items, places, settings)
        output = self._run(self.model, **tensors)
        embeds = output.fused_image_embeds if "region_boxes" in tensors else output.image_embeds
        return [{"embedding": row} for row in embeds.tolist()]

    def _embed_text(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each text {"embedding"} of unit length, comparable with those of images and regions."""
        texts = [self._text(item.get("text"), f"{place}.text") for item, place in zip(items, places)]
        output = self._run(self.model, **self._encode(texts, [f"{place}.text" for place in places]))
        return [{"embedding": row} for row in output.text_embeds.tolist()]

    def _embed_regions(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image its regions in the given order: {"box", "embedding"} of unit length."""
        tensors, geometries = self._see(items, places, settings, needs_boxes=True)
        embeds = self._run(self.model, **tensors).region_embeds
        return _per_region("embedding", embeds.tolist(), items, tensors, geometries)

    def _classify_regions(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image its regions in the given order: {"box", "labels"}, the labels as `_zero_shot` gives them."""
        labels, texts = self._labels(settings)
        tensors, geometries = self._see(items, places, settings, needs_boxes=True)
        texts = {f"region_{name}": value for name, value in texts.items()}
        scores = self._run(self.model, **tensors, **texts).logits_per_region.softmax(dim=-1)
        top_k = settings.get("top_k")
        found = [[_best(row, labels, "label", top_k) for row in rows] for rows in scores.tolist()]
        return _per_region("labels", found, items, tensors, geometries)

    def _ground(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image the regions that show one of the labels, best first: {"score", "label", "box"}."""
        labels, texts = self._labels(settings)
        tensors, geometries = self._see(items, places, settings)
        outputs = self._run(self.model.ground_phrases, **tensors, **texts)
        names = {"source": "source", "threshold": "threshold", "box_threshold": "box_threshold"}
        names |= {"heat_share": "heat_share", "top_k": "max_boxes"}
        chosen = {names[name]: value for name, value in settings.items() if name in names}
        sizes = [geometry.original[::-1] for geometry in geometries]
        found = _or_refuse("parameters", self.processor.post_process_grounding, outputs, sizes, labels, **chosen)
        return [
            [
                {"score": score, "label": label, "box": _corners(box)}
                for score, label, box in zip(one["scores"].tolist(), one["text_labels"], one["boxes"].tolist())
            ]
            for one in found
        ]

    def _propose(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each image the regions worth a look, best first: {"score", "box"}; none where the model abstains."""
        tensors, geometries = self._see(items, places, settings)
        chosen = {name: settings[name] for name in ("top_k", "threshold") if name in settings}
        outputs = _or_refuse("parameters", self._run, self.model.propose_regions, **tensors, **chosen)
        sizes = [geometry.original[::-1] for geometry in geometries]
        return [
            [
                {"score": score, "box": _corners(box)}
                for score, box in zip(one["scores"].tolist(), one["boxes"].tolist())
            ]
            for one in self.processor.post_process_proposals(outputs, sizes)
        ]

    def _answer_questions(self, items: list[dict], places: list[str], settings: dict) -> list[Any]:
        """Of each question {"score", "answer"}, best first, the scores each in [0, 1]."""
        if self.answering is None:
            raise RequestError(422, "parameters.task", "this model answers no questions; ask for another task.")
        named = [f"{place}.question" for place in places]
        texts = self._encode([self._text(item.get("question"), name) for item, name in zip(items, named)], named)
        tensors, _ = self._see(items, places, settings)
        if "regions" in settings and (settings["regions"] != "proposed" or "region_boxes" in tensors):
            message = f"regions is {_short(settings['regions'])}; it is 'proposed', without boxes, or left out."
            raise RequestError(400, "parameters.regions", message)
        logits = self._run(self.answering, **tensors, **texts, regions=settings.get("regions")).logits
        names = [self.answering.config.id2label[i] for i in range(logits.shape[-1])]
        return [_best(row, names, "answer", settings.get("top_k", 5)) for row in logits.sigmoid().tolist()]

    def _run(self, function: Callable[..., Any], **tensors: Any) -> Any:
        """What the model gives, its tensors of floats in float32 on the CPU; one request at a time."""
        moved = {n: v.to(self.device) if isinstance(v, torch.Tensor) else v for n, v in tensors.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        with self.model_lock, torch.inference_mode():
            output = function(**moved)
            for name, value in list(output.items()):
                if isinstance(value, torch.Tensor):
                    output[name] = value.cpu().float() if value.is_floating_point() else value.cpu()
        return output

    def _labels(self, settings: dict) -> tuple[list[str], dict[str, torch.Tensor]]:
        """The candidate labels, and the tensors of their texts."""
        labels = settings.get("candidate_labels")
        labels = [labels] if isinstance(labels, str) else labels
        place = "parameters.candidate_labels"
        if not isinstance(labels, (list, tuple)):
            raise RequestError(400, place, "candidate_labels must be a list of texts to choose from.")
        _check_count(labels, self.limits.max_texts, place)
        places = [f"{place}[{i}]" for i in range(len(labels))]
        labels = [self._text(label, name) for label, name in zip(labels, places)]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                raise RequestError(422, places[i], f"the label {_short(label)} is there twice; give each once.")
        template = self._text(settings.get("hypothesis_template", "{}"), "parameters.hypothesis_template")
        if template.count("{}") != 1:
            message = f"hypothesis_template is {_short(template)}; it must hold {{}} once, for the label."
            raise RequestError(400, "parameters.hypothesis_template", message)
        return labels, self._encode([template.replace("{}", label) for label in labels], places)

    def _text(self, value: Any, place: str) -> str:
        """The text, refused where it is none, says nothing, is too long, or no Unicode."""
        if not isinstance(value, str) or not value.strip():
            raise RequestError(400, place, f"this is {_short(value)}; it must be a text that says something.")
        if len(value) > self.limits.max_text_chars:
            message = f"this text has {len(value):,} characters; at most {self.limits.max_text_chars:,} are read."
            raise RequestError(413, place, message)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise RequestError(422, place, "this text holds half of a surrogate pair, which is no character.")
        return value

    def _encode(self, texts: list[str], places: list[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (T, L) int64, nothing cut off."""
        with self.text_lock:
            encoded = dict(self.processor(text=texts, truncation=False))
        for place, num_tokens in zip(places, encoded["attention_mask"].sum(dim=1).tolist()):
            if num_tokens > self.max_tokens:
                message = f"this text has {num_tokens} tokens; the model reads {self.max_tokens}. Shorten it."
                raise RequestError(422, place, message)
        return encoded

    def _see(
        self, items: list[dict], places: list[str], settings: dict, needs_boxes: bool = False
    ) -> tuple[dict[str, torch.Tensor], list[Any]]:
        """`pixel_values` (B, 3, H, W), with boxes the region tensors too, and how each image lies in the frame."""
        checked = [_boxes(item, place, self.limits, needs_boxes) for item, place in zip(items, places)]
        seen, geometries = [], []
        for item, place, boxes in zip(items, places, checked):
            picture = self._picture(item, place, settings)
            geometries.extend(self.processor.geometries([picture.size[::-1]]))
            regions = {"boxes": [boxes], "box_format": settings.get("box_format", "xyxy")} if any(checked) else {}
            _refuse_fractions(boxes, picture.size, regions.get("box_format"), place)
            plain = {"window": None, "frame_index": None, "slice_index": None}  # the picture has been chosen
            seen.append(_or_refuse(place, self.processor, images=[picture], **regions, **plain))
        return _stacked(seen), geometries

    def _picture(self, item: dict, place: str, settings: dict) -> Image.Image:
        """The picture of an item, 8-bit and upright, decoded only after all that its header says has been checked."""
        chosen = [key for key in ("image", "file") if item.get(key) is not None]
        if len(chosen) != 1:
            raise RequestError(400, place, 'an input needs "image" or "file", one of them.')
        place = f"{place}.{chosen[0]}" if len(item) > 1 or chosen == ["file"] else place
        source = _readable(item[chosen[0]], place, self.limits, self.check_encoded)
        changes = {"window": settings["window"]} if "window" in settings else {}
        changes |= {"frame_index": item["frame_index"]} if item.get("frame_index") is not None else {}
        worker = _or_refuse("parameters.window", self.processor.image_processor.with_overrides, **changes)
        return _or_refuse(place, worker.picture, source, place)


@dataclass(frozen=True)
class Task:
    """How a task is done, the settings it knows, and the keys of its inputs; the first is meant by a bare input."""

    method: Callable[[EndpointHandler, list[dict], list[str], dict], list[Any]]
    settings: tuple[str, ...]
    keys: tuple[str, ...]


_LABELS, _IMAGE, _BOXED = ("candidate_labels", "hypothesis_template"), ("image", "file", "frame_index"), ("boxes",)
TASKS = {
    "zero_shot": Task(EndpointHandler._zero_shot, (*_LABELS, "top_k", "window"), _IMAGE),
    "embed_image": Task(EndpointHandler._embed_image, ("box_format", "window"), _IMAGE + _BOXED),
    "embed_text": Task(EndpointHandler._embed_text, (), ("text",)),
    "embed_regions": Task(EndpointHandler._embed_regions, ("box_format", "window"), _IMAGE + _BOXED),
    "classify_regions": Task(
        EndpointHandler._classify_regions, (*_LABELS, "top_k", "box_format", "window"), _IMAGE + _BOXED
    ),
    "ground": Task(
        EndpointHandler._ground,
        (*_LABELS, "source", "threshold", "box_threshold", "heat_share", "top_k", "window"),
        _IMAGE,
    ),
    "propose": Task(EndpointHandler._propose, ("top_k", "threshold", "window"), _IMAGE),
    "answer": Task(
        EndpointHandler._answer_questions, ("top_k", "regions", "box_format", "window"), (*_IMAGE, *_BOXED, "question")
    ),
}


def _checked_settings(given: dict, task: Task, name: str) -> dict:
    """The settings of a task; refused where one is unknown, or a number is none."""
    for setting, value in given.items():
        place = f"parameters.{setting}"
        if setting not in task.settings:
            known = ", ".join(("task", *task.settings))
            raise RequestError(
                400, f"parameters.{_short(setting)}", f"{name} knows no such parameter; known are {known}."
            )
        if setting == "top_k" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000):
            raise RequestError(400, place, f"top_k is {_short(value)}; it must be a whole number from 1 to 1000.")
        if setting in ("threshold", "box_threshold", "heat_share") and not _is_number(value):
            raise RequestError(400, place, f"{setting} is {_short(value)}; it must be a number.")
        if setting == "window" and not _is_like_window(value):
            message = (
                f"window is {_short(value)}; it must be null, [center, width], a name, or a list of three of these."
            )
            raise RequestError(400, place, message)
        if setting in ("source", "box_format") and not _is_name(value):
            raise RequestError(400, place, f"{setting} is {_short(value)}; it must be a text that names one.")
    return given


def _is_number(value: Any) -> bool:
    """Whether this is a number that an image may have to do with; NaN is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _is_name(value: Any) -> bool:
    """Whether this is a text no longer than any name that a setting knows."""
    return isinstance(value, str) and len(value) <= MAX_NAME_CHARS


def _is_like_window(value: Any) -> bool:
    """Whether this looks like a window, so that the image processor can say what is wrong with it, if anything."""
    is_listed = isinstance(value, (list, tuple)) and len(value) <= 3
    parts = [value] if not is_listed or all(map(_is_number, value)) else value
    return value is None or all(
        _is_name(part) or (isinstance(part, (list, tuple)) and len(part) <= 3 and all(map(_is_number, part)))
        for part in parts
    )


def _item(value: Any, place: str, task: Task) -> dict:
    """The input as a dict of keys that the task knows."""
    item = value if isinstance(value, dict) else {task.keys[0]: value}
    unknown = sorted(_short(key) for key in item if key not in task.keys)
    if unknown:
        raise RequestError(
            400, place, f"the keys {', '.join(unknown)[:200]} are not known; {', '.join(task.keys)} are."
        )
    frame = item.get("frame_index")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < LARGEST_NUMBER):
        raise RequestError(400, f"{place}.frame_index", f"frame_index is {_short(frame)}; it must be 0 or more.")
    return item


def _readable(value: Any, place: str, limits: Limits, check_encoded: Callable[..., None]) -> Any:
    """A picture that is safe to decode: a PIL image not decoded yet, or the bytes of a DICOM file."""
    content = _from_base64(value, place, limits) if isinstance(value, str) else value
    if not isinstance(content, (bytes, bytearray, Image.Image)):
        raise RequestError(400, place, f"an image is {_short(value)}. {ONLY_BYTES}")
    if not isinstance(content, Image.Image):
        _check_size(len(content), place, limits)
        if content[128:132] == b"DICM":
            if any(syntax in content for syntax in DEFLATED_DICOM):
                message = "this DICOM file is deflated as a whole, which is not read. Store it plainly."
                raise RequestError(422, place, message)
            return bytes(content)
        _or_refuse(place, check_encoded, BytesIO(content), place)
    kinds = f"it must be a complete {', '.join(FORMATS)} or DICOM file. {ONLY_BYTES}"
    try:
        if isinstance(content, Image.Image):
            return _checked_picture(content, place, limits)
        return _checked_picture(Image.open(BytesIO(content), formats=FORMATS), place, limits)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise RequestError(422, place, f"these {len(content):,} bytes are no picture that is read; {kinds}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        stated = re.search(r"\d+", str(error))  # Pillow says how many
        what = f"{int(stated[0]):,}" if stated else f"more than {limits.max_pixels:,}"
        raise _too_many_pixels(what, place, limits) from error
    except UNREADABLE as error:
        raise RequestError(422, place, f"this picture is broken ({_short(str(error), 120)}); {kinds}") from error


def _checked_picture(image: Image.Image, place: str, limits: Limits) -> Image.Image:
    """The picture, opened and not decoded, whose header says nothing that is too large or of several frames."""
    if image.format not in (*READ_AS, None):
        raise RequestError(422, place, f"this is a {image.format} picture; it must be one of {', '.join(FORMATS)}.")
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", place, limits)
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise RequestError(422, place, "this picture has several frames; send the one that is meant, as a PNG.")
    return image


def _too_many_pixels(what: str, place: str, limits: Limits) -> RequestError:
    message = f"this picture has {what} pixels; at most {limits.max_pixels:,} are read. Send a smaller one."
    return RequestError(413, place, message)


def _from_base64(text: str, place: str, limits: Limits) -> bytes:
    """The bytes that a text holds in base64, perhaps after "data:image/png;base64,"; its line breaks are left out."""
    _check_size(len(text) * 3 // 5, place, limits)  # 4 letters for 3 bytes, and room for line breaks
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        if comma and not head.endswith(";base64"):
            raise ValueError("a data: address without ;base64")
        content = base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise RequestError(400, place, f"{_short(text)} is not the base64 of an image. {ONLY_BYTES}") from error
    if not content:
        raise RequestError(400, place, f"the image is empty. {ONLY_BYTES}")
    return content


def _check_size(num_bytes: int, place: str, limits: Limits) -> None:
    if num_bytes > limits.max_image_bytes:
        message = f"this image has more than {limits.max_image_bytes:,} bytes, the most that are read. Compress it."
        raise RequestError(413, place, message)


def _check_count(values: Any, limit: int, place: str) -> None:
    if not values:
        raise RequestError(400, place, "this list is empty; it must hold at least one.")
    if len(values) > limit:
        raise RequestError(413, place, f"this list has {len(values):,} entries; at most {limit} are taken at a time.")


def _boxes(item: dict, place: str, limits: Limits, is_needed: bool) -> list[list[float]]:
    """The boxes of an item as lists of four plain numbers; none where none are given, unless they are needed."""
    boxes, place = item.get("boxes"), f"{place}.boxes"
    if boxes is None and not is_needed:
        return []
    if not isinstance(boxes, (list, tuple)):
        raise RequestError(400, place, f"boxes is {_short(boxes)}; it must be a list of boxes [x0, y0, x1, y1].")
    if is_needed or boxes:
        _check_count(boxes, limits.max_boxes, place)
    for j, box in enumerate(boxes):
        is_four = isinstance(box, (list, tuple)) and len(box) == 4
        if not is_four or any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in box):
            raise RequestError(400, f"{place}[{j}]", f"this box is {_short(box)}; it must be four numbers.")
        if not all(abs(number) <= LARGEST_NUMBER for number in box):  # neither is NaN
            raise RequestError(422, f"{place}[{j}]", f"this box is {_short(box)}; its numbers must be finite pixels.")
    return [[float(number) for number in box] for box in boxes]


def _refuse_fractions(boxes: list[list[float]], size: tuple[int, int], box_format: str | None, place: str) -> None:
    """None; a refusal where boxes meant as pixels all lie within the first pixel of a picture, as fractions would."""
    if boxes and box_format != "cxcywh_fraction" and min(size) >= 8 and all(max(box) <= 1 for box in boxes):
        message = f"these boxes lie within the first pixel, for instance {boxes[0]}; give them in pixels of this image "
        message += f"of {size[0]} x {size[1]}, or say box_format cxcywh_fraction (centre, width and height)."
        raise RequestError(422, f"{place}.boxes", message)


def _stacked(seen: list[Any]) -> dict[str, torch.Tensor]:
    """The tensors of single images as those of a batch; fewer regions than the most are filled up with padding."""
    tensors = {"pixel_values": torch.cat([one["pixel_values"] for one in seen])}
    if "region_boxes" in seen[0]:
        num_regions = max(one["region_boxes"].shape[1] for one in seen)
        for name, rest in (("region_boxes", (4,)), ("region_mask", ())):
            tensors[name] = seen[0][name].new_zeros((len(seen), num_regions, *rest))
            for row, one in enumerate(seen):
                tensors[name][row, : one[name].shape[1]] = one[name][0]
    return tensors


def _per_region(name: str, found: list[list[Any]], items: list[dict], tensors: dict, geometries: list[Any]) -> list:
    """Of each image its given regions as {"box", name: what was found}; both None where the geometry cut one away."""
    answers = []
    for rows, item, mask, boxes, geometry in zip(
        found, items, tensors["region_mask"].tolist(), tensors["region_boxes"], geometries
    ):
        pixels = geometry.frame_fractions_to_boxes(boxes).astype("float32").tolist()
        shown = [
            {"box": _corners(box), name: row} if is_seen else {"box": None, name: None}
            for box, row, is_seen in zip(pixels, rows, mask)
        ]
        answers.append(shown[: len(item["boxes"])])
    return answers


def _best(scores: list[float], names: list[str], key: str, top_k: int | None) -> list[dict[str, Any]]:
    order = sorted(range(len(names)), key=lambda i: -scores[i])[:top_k]
    return [{"score": scores[i], key: names[i]} for i in order]


def _corners(box: list[float]) -> dict[str, float]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(float(number), 4) for number in box)))


def _or_refuse(place: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function gives; a ValueError of it, which names a user's mistake, is a refusal of status 422 or 413."""
    try:
        return function(*args, **kwargs)
    except (ValueError, ImportError) as error:
        message = re.sub(r"^image 0\b", place, str(error))[:MAX_MESSAGE_CHARS]
        if "MAX_IMAGE_PIXELS" in message:
            raise RequestError(413, place, f"{message.partition(';')[0]}, more than this endpoint reads.") from error
        if "say window=None" in message:
            message = message.partition("Give no window")[0]
            message += 'Such pictures need the parameter "window": null here, for this model was saved with a window.'
        raise RequestError(422, place, message) from error


class _Shown(reprlib.Repr):
    """Short texts of plain values, also of whole numbers that Python refuses to write out."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length():,} bits"


def _short(value: Any, length: int = 60) -> str:
    """The value as a message shows it: never more than `length` characters, and no bytes of a picture."""
    if isinstance(value, (bytes, bytearray, Image.Image)):
        return f"a {type(value).__name__}"
    text = value[: length + 1] if isinstance(value, str) else f"{type(value).__name__} {_Shown().repr(value)}"
    text = text.encode("ascii", "backslashreplace").decode()
    shown = repr(text[:length]) if isinstance(value, str) else text[:length]
    return shown if len(text) <= length else f"{shown}..."
