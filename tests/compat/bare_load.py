"""A flat folder in a process without our packages: does it answer as our own classes do?

    python tests/compat/bare_load.py write FOLDER ANSWERS.json            where our packages are installed
    python -I tests/compat/bare_load.py check FOLDER ANSWERS.json         anywhere; our packages are blocked
    python -I tests/compat/bare_load.py check_bare FOLDER ANSWERS.json    where only torch, transformers, Pillow are

Non-zero exit where the answers differ. `.ci/run` checks with the lowest and the newest transformers of setup.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

OUR_PACKAGES = ("modeling_regionmed_clip", "regionmed_clip", "processing", "train", "eval", "model_cards")
NOT_NEEDED = ("accelerate", "datasets", "peft", "pydicom", "nibabel", "torchvision", "scipy", "matplotlib")
TEXTS = ["chest radiograph with a nodule in the left lung", "a cyst", "normal"]
REGIONS = {"boxes": [[(0.3, 0.4, 0.4, 0.5), (0.6, 0.5, 0.7, 0.9)]], "box_format": "cxcywh_fraction"}
TOLERANCES = {"pixel_values": 2e-2}  # one of 255 levels: another Pillow may round otherwise; float32 embeddings:
DEFAULT_TOLERANCE = 1e-4


class Blocker:
    """An import finder that refuses our packages, installed or in the working directory."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in OUR_PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def picture(width: int, height: int) -> Any:
    """A PIL image that every process makes alike."""
    from PIL import Image

    return Image.frombytes("L", (width, height), bytes((7 * i * i + 3 * i) % 251 for i in range(width * height)))


def answers(model: Any, processor: Any) -> dict[str, Any]:
    """What the model says of one picture of its own size (regions, texts, fusion) and of one of another."""
    import torch

    side = processor.image_processor.frame_size[0]
    inputs = processor(images=picture(side, side), text=TEXTS, region_text=TEXTS, **REGIONS)
    with torch.inference_mode():
        output = model(**inputs)
        found = {
            name: output[name].float().tolist()
            for name in ("logits_per_image", "logits_per_region", "region_embeds", "fused_image_embeds")
        }
        found["dense"] = model.get_dense_features(inputs["pixel_values"])[0, 0].tolist()
        found["proposed"] = model.propose_regions(inputs["pixel_values"], top_k=4, threshold=0.0).scores.tolist()
    other = processor(images=picture(57, 41), **REGIONS)
    found["pixel_values"] = other["pixel_values"][0, 0].tolist()
    found["region_boxes"] = other["region_boxes"].tolist()
    return found


def classify(folder: str, **kwargs: Any) -> list[dict[str, Any]]:
    """The zero-shot pipeline's answer about the picture."""
    from transformers import pipeline

    pipe = pipeline("zero-shot-image-classification", model=folder, **kwargs)
    return pipe(picture(40, 40), candidate_labels=TEXTS, hypothesis_template="{}")


def write(folder: str, path: Path) -> None:
    """None; writes what our own classes answer."""
    from modeling_regionmed_clip import RegionMedClipModel
    from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

    model = RegionMedClipModel.from_pretrained(folder).eval()
    path.write_text(json.dumps(answers(model, RegionMedClipProcessor.from_pretrained(folder))))


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """None.

    Raises:
        ValueError: an answer differs from ours, with its name and the distance.
    """
    import torch

    for name, values in expected.items():
        ours, theirs = torch.tensor(values), torch.tensor(found[name])
        distance = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
        if not distance <= TOLERANCES.get(name, DEFAULT_TOLERANCE):
            raise ValueError(
                f"{name} is {distance} from what our own class answers; the flat folder must answer alike."
            )


def check_bare(folder: str, path: Path) -> None:
    """None; `check` in an environment that has nothing of ours and nothing that only training or reading needs.

    Raises:
        ValueError: the environment is not bare, or something differs from our own classes' answers.
    """
    present = [name for name in (*OUR_PACKAGES, *NOT_NEEDED) if importlib.util.find_spec(name)]
    if present:
        raise ValueError(
            f"this environment has {present}; it must be bare. Make one with transformers and torch alone."
        )
    check(folder, path)


def check(folder: str, path: Path) -> None:
    """None; loads by every Auto class, compares, saves the loaded model and loads that again.

    Raises:
        ValueError: something differs from our own classes' answers.
    """
    sys.meta_path.insert(0, Blocker())
    import torch
    import transformers

    expected = json.loads(path.read_text())
    remote = {"trust_remote_code": True}
    processor = transformers.AutoProcessor.from_pretrained(folder, **remote)
    model = transformers.AutoModel.from_pretrained(folder, **remote).eval()
    compare(answers(model, processor), expected)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **remote)
    pixels = image_processor(images=picture(57, 41), return_tensors="pt")["pixel_values"]
    compare({"pixel_values": pixels[0, 0].tolist()}, {"pixel_values": expected["pixel_values"]})
    transformers.AutoTokenizer.from_pretrained(folder, **remote)
    labels = {answer["label"] for answer in classify(folder, **remote)}
    if labels != set(TEXTS):
        raise ValueError(f"the pipeline answered about {labels}; it was asked about {TEXTS}.")
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        auto_class = transformers.AutoModelForZeroShotImageClassification
        again = auto_class.from_pretrained(saved, **remote, attn_implementation="eager").eval()
        compare(answers(again, transformers.AutoProcessor.from_pretrained(saved, **remote)), expected)
        classify(saved, **remote)
    sys.stdout.write(f"transformers {transformers.__version__}, torch {torch.__version__}: answers alike\n")


if __name__ == "__main__":
    {"write": write, "check": check, "check_bare": check_bare}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
