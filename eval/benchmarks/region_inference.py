"""What regions cost at inference, as multiples of the plain image embedding of the same tower in the same run.

`python -m regionmed_clip.eval.benchmarks.region_inference [--rounds 7] [--output FILE]`

A ViT-B/16 with random weights at 224 pixels, one image at a time, one thread; processor time, median ratio of
interleaved rounds. Says what a choice costs, nothing of its quality.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from modeling_regionmed_clip import RegionMedClipConfig, RegionMedClipModel
from regionmed_clip.eval.benchmarks.measure import median_ratio, write_report

TINY_TEXT = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
PLAIN = "plain image embedding"


def main() -> None:
    """Runs the benchmark and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    write_report(options.output, run(options.rounds))


def run(rounds: int, vision_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The report: cost of every call relative to the plain image embedding.

    Args:
        vision_config: of the tower; None takes the default ViT-B/16.
    """
    calls = _calls(vision_config)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in tqdm(range(rounds + 1), desc="region inference", unit="round"):
            for name, call in calls.items():
                started_at = time.process_time()
                call()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - started_at)
    ratios = {name: round(median_ratio(taken, seconds[PLAIN]), 3) for name, taken in seconds.items() if name != PLAIN}
    return {"rounds": rounds, "plain_s": round(min(seconds[PLAIN]), 4), "relative_cost": ratios}


def _calls(vision_config: dict[str, Any] | None) -> dict[str, Callable[[], Any]]:
    """Name -> call, the plain one first; all models share one vision tower."""
    models = {"prompter": _build(vision_config), "prompter, 3 blocks": _build(vision_config, roi_num_layers=3)}
    models |= {mode: _build(vision_config, roi_mode=mode) for mode in ("roialign", "maskpool")}
    model = models["prompter"]
    for other in models.values():
        other.vision_model = model.vision_model
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size)
    calls: dict[str, Callable[[], Any]] = {PLAIN: partial(model.get_image_features, pixels)}
    for name, one in models.items():
        for num_regions in (1, 16, 64):
            corners = torch.rand(1, num_regions, 2) * 0.6
            boxes = torch.cat([corners, corners + 0.3], dim=-1)
            calls[f"{name}, {num_regions} regions"] = partial(one.get_region_features, pixels, boxes)
    calls["dense features"] = partial(model.get_dense_features, pixels)
    calls["proposals"] = partial(model.propose_regions, pixels)
    calls["fused with proposals"] = partial(model.get_image_features, pixels, regions="proposed")
    calls["crop-and-encode, 16 regions"] = partial(model.get_image_features, pixels.repeat(16, 1, 1, 1))
    return calls


def _build(vision_config: dict[str, Any] | None, **changes: Any) -> RegionMedClipModel:
    """A model with random weights and a text tower that is only there because one must be."""
    return RegionMedClipModel(RegionMedClipConfig(vision_config=vision_config, text_config=TINY_TEXT, **changes)).eval()


if __name__ == "__main__":
    main()
