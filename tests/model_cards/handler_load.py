"""Many good and bad requests to a served handler: is each answered rightly, how fast, and does the memory stay flat?

    python tests/model_cards/handler_load.py FOLDER [--requests 1000] [--clients 1 4] [--output FIGURES.json]

The server runs in a process of its own (tests/handler_http.py). Every good answer is compared with what the model
itself gives here, every refusal with the status it must have; for each number of clients a server of its own. Exit
status 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds the tests' helpers too
from hostile_pictures import animated_gif, png_of_zeros, png_that_claims, postscript, saved, tiff_with_a_large_tile

from regionmed_clip.eval.benchmarks.measure import write_report
from regionmed_clip.eval.benchmarks.origin import SEED, describe_origin
from regionmed_clip.eval.saved_models import load_model

LABELS = ["pulmonary nodule", "pleural effusion", "cyst", "normal"]
TOLERANCE = 1e-4  # float32, batches of other shapes
SLOW_MS = 50.0  # a refusal should take less
WARM_UP = 100  # requests after which the memory is first read


@dataclass(frozen=True)
class Case:
    """A request, and the status or the answer that it must get."""

    name: str
    body: bytes
    status: int
    expected: Any = None


def noise(seed: int) -> Image.Image:
    """A grey picture of noise, 60 to 400 pixels a side."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(60, 400, 2)
    return Image.fromarray(generator.integers(0, 255, (height, width), dtype=np.uint8))


def request(inputs: Any, **parameters: Any) -> bytes:
    """The body of a request."""
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def text_of(content: bytes) -> str:
    """The bytes in base64."""
    return base64.b64encode(content).decode()


def good_cases(model: Any, processor: Any, num_pictures: int = 8) -> list[Case]:
    """Requests of every task about some pictures, with the answers of the model itself."""
    cases = []
    for seed in range(num_pictures):
        picture, kind = noise(seed), ("PNG", "JPEG", "TIFF")[seed % 3]
        content = saved(picture, kind)
        width, height = picture.size
        boxes = [[1, 2, width / 2, height / 2], [width / 3, 0, width, height - 0.5]][: 1 + seed % 2]
        with torch.inference_mode():
            opened = Image.open(io.BytesIO(content))
            inputs = processor(images=opened, text=LABELS, boxes=[boxes], region_text=LABELS)
            output = model(**inputs)
            phrases = model.ground_phrases(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])
        found = {
            "zero_shot": output.logits_per_image[0].softmax(-1).sort(descending=True).values,
            "embed_image": output.image_embeds[0],
            "embed_regions": output.region_embeds[0],
            "classify_regions": output.logits_per_region[0].softmax(-1).sort(descending=True).values,
            "ground": processor.post_process_grounding(phrases, [(height, width)], source="heat", threshold=-1)[0][
                "scores"
            ],
        }
        settings = {"zero_shot": {"candidate_labels": LABELS}, "classify_regions": {"candidate_labels": LABELS}}
        settings["ground"] = {"candidate_labels": LABELS, "source": "heat", "threshold": -1}
        for task, expected in found.items():
            item = {"image": text_of(content)} | ({"boxes": boxes} if "regions" in task else {})
            body = request(item, task=task, **settings.get(task, {}))
            cases.append(Case(task, body, 200, expected.numpy()))
    with torch.inference_mode():
        texts = model(**processor(text=LABELS)).text_embeds
    return [*cases, Case("embed_text", request(LABELS, task="embed_text"), 200, texts.numpy())]


def bad_cases() -> list[Case]:
    """Requests that must be refused, with the status of the refusal."""
    png = text_of(saved(noise(0), "PNG"))
    labels, jpeg = {"candidate_labels": LABELS}, saved(noise(1), "JPEG")
    pictures = {
        "a path": ("/etc/passwd", 400),
        "an address": ("https://example.org/a.png", 400),
        "a truncated JPEG": (text_of(jpeg[: len(jpeg) // 2]), 422),
        "a pixel bomb": (text_of(png_of_zeros(6000, 6000)), 413),
        "a claim of pixels": (text_of(png_that_claims(160_000, 160_000)), 413),
        "a tile bomb": (text_of(tiff_with_a_large_tile()), 422),
        "an animated GIF": (text_of(animated_gif()), 422),
        "PostScript": (text_of(postscript()), 422),
    }
    cases = [Case(name, request(value, **labels), status) for name, (value, status) in pictures.items()]
    many = [f"label {i}" for i in range(10_000)]
    boxed = {"task": "classify_regions", **labels}
    return [
        *cases,
        Case("no JSON", b"{", 400),
        Case("10,000 labels", request(png, candidate_labels=many), 413),
        Case("no labels", request(png), 400),
        Case("a long label", request(png, candidate_labels=["nodule " * 140]), 422),
        Case("a NaN box", request({"image": png, "boxes": [[0, 0, float("nan"), 9]]}, **boxed), 422),
        Case("a huge box", request({"image": png, "boxes": [[0, 0, 1e6, 9]]}, **boxed), 422),
        Case("100 boxes", request({"image": png, "boxes": [[0, 0, 9, 9]] * 100}, **boxed), 413),
        Case("17 images", request([png] * 17, **labels), 413),
    ]


def numbers_of(answer: Any) -> np.ndarray:
    """The scores or embeddings of an answer, in order."""
    if isinstance(answer, list) and answer and "labels" in answer[0]:
        return np.array([[label["score"] for label in region["labels"]] for region in answer])
    if isinstance(answer, list):
        return np.array([one.get("embedding", one.get("score")) for one in answer])
    return np.array(answer["embedding"])


def ask(address: str, case: Case) -> tuple[bool, float]:
    """Whether the answer is right, and the milliseconds that it took."""
    started_at = time.perf_counter()
    try:
        call = urllib.request.Request(address, case.body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=120) as response:
            status, answer = response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            status, answer = error.code, json.loads(error.read())
    took_ms = (time.perf_counter() - started_at) * 1000
    if status != case.status:
        return False, took_ms
    if status != 200:
        return answer["error"]["status"] == status and bool(answer["error"]["message"]), took_ms
    found = numbers_of(answer)
    return found.shape == case.expected.shape and np.abs(found - case.expected).max() <= TOLERANCE, took_ms


def measure(address: str, process: psutil.Process, cases: list[Case], num_clients: int) -> dict[str, Any]:
    """The figures of one run over the cases in their order."""
    answers, memory_mb = [], []
    with ThreadPoolExecutor(num_clients) as pool:
        for start in range(0, len(cases), WARM_UP):
            answers += pool.map(lambda case: ask(address, case), cases[start : start + WARM_UP])
            memory_mb.append(round(process.memory_info().rss / 2**20, 1))
    figures: dict[str, Any] = {"requests": len(cases), "clients": num_clients, "memory_mb": memory_mb}
    figures["wrong"] = [case.name for case, (is_right, _) in zip(cases, answers, strict=True) if not is_right]
    for kind in ("good", "bad"):
        times = [ms for case, (_, ms) in zip(cases, answers, strict=True) if (case.status == 200) == (kind == "good")]
        p50, p95 = np.percentile(times, [50, 95])
        taken = {"p50_ms": p50, "p95_ms": p95, "max_ms": max(times)}
        figures[kind] = {"n": len(times), **{name: round(float(value), 1) for name, value in taken.items()}}
    refusals = [(ms, case.name) for case, (_, ms) in zip(cases, answers, strict=True) if case.status != 200]
    figures["bad"]["within_50_ms"] = sum(ms < SLOW_MS for ms, _ in refusals)
    return {**figures, "slowest_refusal": max(refusals)[1]}


def serve_and_measure(folder: str, cases: list[Case], num_clients: int) -> dict[str, Any]:
    """The figures of one run against a new server."""
    script = Path(__file__).resolve().parents[1] / "handler_http.py"
    command = [sys.executable, str(script), folder, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            return measure(server.stdout.readline().strip(), psutil.Process(server.pid), cases, num_clients)
        finally:
            server.terminate()


def main() -> int:
    """1 if an answer was wrong, else 0; prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a flat folder with handler.py")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.folder)
    figures = describe_origin("OMP_NUM_THREADS=1 python tests/model_cards/handler_load.py", sys.argv[1:], model)
    figures |= {"data_revision": "noise and broken files of its own", "transformers": transformers.__version__}
    good, bad = good_cases(model, processor), bad_cases()
    draw = random.Random(SEED)
    cases = [draw.choice(good if draw.random() < 0.5 else bad) for _ in range(arguments.requests)]
    figures["runs"] = [serve_and_measure(arguments.folder, cases, number) for number in arguments.clients]
    write_report(arguments.output, figures)
    return 1 if any(run["wrong"] for run in figures["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
