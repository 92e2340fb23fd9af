"""Golden outputs: what a published model answers about one drawn picture, kept beside its weights.

check_installation.py beside it in a downloaded folder says whether this installation reads the picture and answers as
it did where the model was published. The file ships flat and needs torch, transformers and Pillow alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

GOLDEN_FILE = "golden.safetensors"
FORMAT = "regionmed_clip golden 1"
SIZE = (97, 123)  # width, height of the picture: neither square nor a multiple of a patch
BOXES_PIXEL_XYXY = ((12.0, 20.0, 52.0, 61.0), (40.0, 70.0, 97.0, 118.0))
TEXTS = ("Chest radiograph with a nodule in the left lung.", "Normal chest radiograph.")
REGION_TEXTS = ("a nodule in the left lung", "a cyst", "no finding")
QUESTION = "What is the finding in the marked region?"
OUTPUTS = (
    "logits_per_image",
    "logits_per_region",
    "logits_per_fused_image",
    "image_embeds",
    "fused_image_embeds",
    "text_embeds",
    "region_embeds",
    "region_text_embeds",
    "proposal_logits",
    "proposal_boxes",
)
METADATA = frozenset({"format", "texts", "region_texts", "question", "settings"})
CLASS_NAMES = frozenset({"auto_map", "processor_class", "image_processor_type"})
PIXEL_ATOL = 2e-2  # one of 255 levels at a usual standard deviation: another Pillow may round otherwise
TOLERANCES = {
    torch.float32: (1e-3, 1e-4),
    torch.float64: (1e-3, 1e-4),
}  # rtol, atol of outputs, by dtype of the weights
LOW_PRECISION_TOLERANCE = (3e-2, 3e-2)


@dataclass(frozen=True)
class Golden:
    """The content of a golden file.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (R, 4) float32; (x0, y0, x1, y1) in pixels of the image.
        texts, region_texts, question: what is asked; the question of a model that answers, else None.
        settings: name -> what no output shows: the window that the processor was saved with, the names of the answers;
            empty in files of earlier versions.
        inputs: name -> tensor; what the processor made of them.
        outputs: name -> tensor; what the model answered to `inputs`.
    """

    image: Tensor
    boxes: Tensor
    texts: tuple[str, ...]
    region_texts: tuple[str, ...]
    question: str | None
    settings: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def draw_picture(seed: int = 0) -> Image.Image:
    """An RGB picture of SIZE, the same in every run: ellipses on a ramp."""
    width, height = SIZE
    drawn = random.Random(seed)
    picture = Image.new("L", SIZE)
    picture.putdata([(2 * x + y) % 120 for y in range(height) for x in range(width)])
    brush = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, half_width, half_height = (drawn.randrange(limit) for limit in (width, height, 24, 30))
        corners = (x - half_width, y - half_height, x + half_width + 1, y + half_height + 1)
        brush.ellipse(corners, fill=drawn.randrange(256))
    return picture.convert("RGB")


def write_golden(path: str | Path, encoder: Any, processor: Any, answering: Any = None) -> None:
    """None; writes the golden file of a loaded model; ValueError where an answer is not finite.

    Args:
        encoder: a RegionMedClipModel in evaluation mode, on the CPU.
        processor: its processor.
        answering: the same encoder with its answer head; None for a model without one.
    """
    image = torch.from_numpy(np.array(draw_picture()))
    golden = Golden(
        image=image,
        boxes=torch.tensor(BOXES_PIXEL_XYXY),
        texts=TEXTS,
        region_texts=REGION_TEXTS,
        question=None if answering is None else QUESTION,
        settings=settings_of(processor, answering),
        inputs={},
        outputs={},
    )
    inputs = process(processor, golden)
    outputs = answer(encoder, inputs)
    if answering is not None:
        outputs |= answer_question(answering, inputs)
    for name, tensor in outputs.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} of the golden picture holds values that are not finite; the weights are broken. Publish an "
                "earlier checkpoint of the run."
            )
    told = {"format": FORMAT, "texts": json.dumps(TEXTS), "region_texts": json.dumps(REGION_TEXTS)}
    told |= {"settings": json.dumps(golden.settings, sort_keys=True)}
    told |= {} if golden.question is None else {"question": golden.question}
    tensors = {"image": golden.image, "boxes": golden.boxes}
    tensors |= {f"inputs.{name}": tensor.contiguous() for name, tensor in inputs.items()}
    tensors |= {f"outputs.{name}": tensor.contiguous() for name, tensor in outputs.items()}
    save_file(tensors, path, metadata=told)


def read_golden(path: str | Path) -> Golden:
    """The content of a golden file; ValueError for a file of another kind, one not whole, or one that holds more."""
    way_out = "take it from the run again, or delete it and stage the model again."
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); {way_out}") from error
    if told.get("format") != FORMAT:
        raise ValueError(f"{path} is of the format {told.get('format')!r}, not {FORMAT!r}; {way_out}")
    parts: dict[str, dict[str, Tensor]] = {"inputs": {}, "outputs": {}}
    num_unknown = len(set(told) - METADATA)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
        elif name not in ("image", "boxes"):
            num_unknown += 1
    if num_unknown:
        raise ValueError(f"{path} holds {num_unknown} tensors or texts that no golden file has; {way_out}")
    try:
        return Golden(
            image=tensors["image"],
            boxes=tensors["boxes"],
            texts=tuple(json.loads(told["texts"])),
            region_texts=tuple(json.loads(told["region_texts"])),
            question=told.get("question"),
            settings=dict(json.loads(told.get("settings", "{}"))),
            **parts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} lacks what every golden file has ({error!r}); {way_out}") from error


def settings_of(processor: Any, answering: Any = None) -> dict[str, Any]:
    """What no output shows, as JSON has it: the processor's window, the names of the answers in order."""
    names = answering.config.id2label if answering is not None else {}
    found = {"window": processor.image_processor.window, "answers": [names[i] for i in sorted(names)]}
    return json.loads(json.dumps(found))


def compare_settings(found: Mapping[str, Any], golden: Golden) -> None:
    """None; ValueError where the window or the names of the answers are not those of the golden file."""
    for name, expected in golden.settings.items():
        if found.get(name) != expected:
            shown = [f"{value!r:.80}" for value in (found.get(name), expected)]
            raise ValueError(
                f"the {name} of this model: {shown[0]}; where the golden outputs were made: {shown[1]}. Put back the "
                "configuration of the run."
            )


def check_image_processors(folder: Path) -> None:
    """None; ValueError where the image processor alone would read a picture otherwise than within the processor.

    Which of the two files is read depends on the client and its version.
    """
    alone, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not (alone.is_file() and whole.is_file()):
        return
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (alone, whole))
    second = second.get("image_processor", first)
    for name in sorted((set(first) | set(second)) - CLASS_NAMES):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{name} is {first.get(name)!r} in {alone.name} and {second.get(name)!r} in {whole.name}; both must "
                "read a picture alike. Stage the model again."
            )


def process(processor: Any, golden: Golden) -> dict[str, Tensor]:
    """What the processor makes of the picture, its boxes, texts and question."""
    picture = Image.fromarray(golden.image.numpy())
    boxes = [[tuple(box) for box in golden.boxes.tolist()]]
    asked_of_regions = {"boxes": boxes, "region_text": list(golden.region_texts)}
    found = dict(
        processor(images=picture, text=list(golden.texts), **asked_of_regions, window=None)
    )  # 8-bit: no window
    if golden.question is not None:
        asked = processor(text=[golden.question])
        found |= {f"question_{name}": asked[name] for name in ("input_ids", "attention_mask")}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def answer(encoder: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one forward pass and the dense features."""
    own = {name: value for name, value in inputs.items() if not name.startswith("question_")}
    with torch.inference_mode():
        output = encoder(**own)
        dense = encoder.get_dense_features(own["pixel_values"])
    return {**{name: output[name] for name in OUTPUTS if output.get(name) is not None}, "dense_features": dense}


def answer_question(answering: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of the answers to the question about the boxes."""
    names = ("pixel_values", "region_boxes", "region_mask", "region_coverage")
    asked = {name: inputs[name] for name in names if name in inputs}
    asked |= {name.removeprefix("question_"): inputs[name] for name in inputs if name.startswith("question_")}
    with torch.inference_mode():
        return {"answer_logits": answering(**asked).logits}


def compare_inputs(found: Mapping[str, Tensor], golden: Golden) -> float:
    """The greatest difference of the pixels; ValueError where the processor reads the picture otherwise."""
    for name, expected in golden.inputs.items():
        tolerance = PIXEL_ATOL if name == "pixel_values" else 1e-4 if expected.is_floating_point() else 0.0
        _compare(f"the processor's {name}", found.get(name), expected, 0.0, tolerance)
    return _distance(found["pixel_values"], golden.inputs["pixel_values"])


def compare_outputs(found: Mapping[str, Tensor], golden: Golden, dtype: torch.dtype) -> float:
    """The greatest difference of the outputs; ValueError naming the first that differs, and by how much.

    Args:
        dtype: of the weights; it sets the tolerance.
    """
    rtol, atol = TOLERANCES.get(dtype, LOW_PRECISION_TOLERANCE)
    for name, expected in golden.outputs.items():
        _compare(f"the model's {name}", found.get(name), expected, rtol, atol)
    return max(_distance(found[name], expected) for name, expected in golden.outputs.items())


def _compare(name: str, found: Tensor | None, expected: Tensor, rtol: float, atol: float) -> None:
    if found is None or found.shape != expected.shape:
        shape = None if found is None else tuple(found.shape)
        raise ValueError(f"{name} has the shape {shape}; where it was published it had {tuple(expected.shape)}.")
    if not torch.allclose(found.double(), expected.double(), rtol=rtol, atol=atol):
        raise ValueError(
            f"{name} is up to {_distance(found, expected):.3g} from what it was where it was published; at most "
            f"{atol:g} + {rtol:g} of the value is rounding. Are weights, code and processor of one folder and whole?"
        )


def _distance(found: Tensor, expected: Tensor) -> float:
    return (found.double() - expected.double()).abs().max().item() if expected.numel() else 0.0


def check_golden(folder: str | Path) -> str:
    """One line on what was compared, after loading the folder by its Auto classes; ValueError where answers differ."""
    import transformers

    folder = Path(folder)
    golden = read_golden(folder / GOLDEN_FILE)
    check_image_processors(folder)
    remote = {"trust_remote_code": True, "local_files_only": True}
    processor = transformers.AutoProcessor.from_pretrained(folder, **remote)
    encoder = transformers.AutoModel.from_pretrained(folder, **remote).eval()
    answering = None
    pixels = compare_inputs(process(processor, golden), golden)
    found = answer(encoder, golden.inputs)
    if golden.question is not None:
        auto_class = transformers.AutoModelForVisualQuestionAnswering
        answering = auto_class.from_pretrained(folder, **remote).eval()
        found |= answer_question(answering, golden.inputs)
    compare_settings(settings_of(processor, answering), golden)
    outputs = compare_outputs(found, golden, encoder.dtype)
    return (
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(golden.outputs)} outputs alike; "
        f"greatest difference {outputs:.2g}, of pixel values {pixels:.2g}"
    )
