"""Peak memory of one optimiser step on 512 images: `memory_worker.py MICRO_BATCH_SIZE NUM_LAYERS`.

It prints by how many MiB the peak grew in the step, and the step's loss and gradient norm. The model is a ViT of width
192 on 64 patches of 8 pixels, with a text of 8 tokens for every image; float32 on a CPU. Measured with 4 layers:
2742 MiB in one pass, 513 MiB by 64 and 158 MiB by 16 images.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_models import tiny_config

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.train.prepared import PreparedStage
from regionmed_clip.train.recipe_parts import Optimizer, Stage, TowerModes
from regionmed_clip.train.stage_model import eager_attention_on_cpu
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.stages import build_optimizer, set_trained_parameters
from regionmed_clip.train.training_step import TrainingStep

GLOBAL_BATCH_SIZE = 512
VISION = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}


def micro_batch(pixel_values: torch.Tensor, start: int, stop: int) -> dict:
    size = stop - start
    keys = torch.arange(start, stop)
    return {
        "sample_id": [str(number) for number in range(start, stop)],
        "pixel_values": pixel_values[start:stop],
        "input_ids": torch.stack([torch.full((size,), 2), *(keys // 7**i % 7 + 5 for i in range(7))], dim=1),
        "attention_mask": torch.ones(size, 8, dtype=torch.int64),
        "text_index": torch.arange(size),
        "text_keys": keys,
        "region_boxes": torch.zeros(size, 1, 4),
        "region_mask": torch.zeros(size, 1, dtype=torch.bool),
        "region_is_complete": torch.ones(size, dtype=torch.bool),
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


def main(micro_batch_size: int, num_layers: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": num_layers, **VISION}
    config = tiny_config(vision_config=vision)
    model, accelerator = RegionMedClipModel(config), Accelerator(cpu=True)
    stage = Stage("global", steps=1, max_grad_norm=1.0, weight_decay=0.0, modes=TowerModes(roi="frozen"))
    set_trained_parameters(model, stage)
    prepared = PreparedStage(model, accelerator)
    optimizer = build_optimizer(prepared.trained_parameters(), stage, Optimizer())
    runner = TrainingStep(prepared, StagePlan(0, stage, 0, 0), optimizer, accelerator, 0, None)
    edges = range(0, GLOBAL_BATCH_SIZE, micro_batch_size)
    pixel_values = torch.randn(GLOBAL_BATCH_SIZE, 3, 64, 64)
    batches = [micro_batch(pixel_values, start, start + micro_batch_size) for start in edges]
    before = peak_mib()
    with eager_attention_on_cpu(model):
        outcome = runner.run(batches, step=0)
    sys.stdout.write(f"{peak_mib() - before:.0f} {outcome.loss.item():.6f} {outcome.gradient_norm.item():.6f}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
