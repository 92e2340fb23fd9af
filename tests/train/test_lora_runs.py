"""Whole runs with LoRA stages: resumed anywhere with the same bits; from checkpoints of others, down to `adapter`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from tiny_checkpoints import BIOMEDCLIP_CONFIG, biomedclip_tensors, save_open_clip, tiny_siglip, tiny_tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.corpus.image_texts import NegativeText
from regionmed_clip.train import pretraining
from regionmed_clip.train.adapter_files import save_and_merge_adapters
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe, parse_command_line
from regionmed_clip.train.frame_store import StoredSample
from regionmed_clip.train.metrics_log import read_metrics
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.sample_order import SampleOrder
from regionmed_clip.train.starts import Start, open_start
from regionmed_clip.train.trainer import Trainer

SIDE = 32
LORA = {"vision": {"rank": 2, "alpha": 4.0, "dropout": 0.2}, "text": {"rank": 3, "dropout": 0.2}}
BOTH = {"vision": "lora", "text": "lora"}
REGION = {"region_text": 1.0, "image_text": 0.5, "proposals": 0.5}
JOINT = {**REGION, "image_region_text": 0.5, "fused_image_text": 0.3}
STAGES = [
    {"name": "global", "steps": 1, "loss_weights": {"image_text": 1.0}},
    {"name": "region", "steps": 2, "loss_weights": REGION, "modes": BOTH, "lora": LORA},
    {"name": "joint", "steps": 2, "loss_weights": JOINT, "modes": {"vision": "lora", "text": "frozen"}, "lora": LORA},
    {"name": "again", "steps": 2, "loss_weights": JOINT, "modes": BOTH, "lora": LORA, "adapters": "merge"},
    {"name": "text", "steps": 2, "loss_weights": JOINT, "modes": {"text": "lora"}, "adapters": "drop"},
]


class Nodules:
    """Eight images of noise, each with one region, its text and a text that is false of it."""

    decodes_images = False

    def __len__(self) -> int:
        return 8

    def samples(self, indices) -> list[StoredSample]:
        return [self._sample(int(index)) for index in indices]

    def order(self, seed: int) -> SampleOrder:
        return SampleOrder(len(self), seed)

    def _sample(self, index: int) -> StoredSample:
        frame = np.random.default_rng(index).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        words = f"{('small', 'large')[index % 2]} {('opacity', 'nodule')[index // 2 % 2]}"
        side, other = ("left", "right")[:: 1 if index < 4 else -1]
        box = np.array([[0.1, 0.2, 0.6, 0.7]], dtype=np.float32)
        text, false = (f"{words} in the {place} lung" for place in (side, other))
        negatives = ((NegativeText(false, 40 + index, "laterality"),),)
        described = (f"a {text}", index, box, (text,), (20 + index,), ("nodule",), "noise")
        return StoredSample(str(index), frame, *described, drawn_negatives=negatives)


def siglip_folder(folder: Path) -> Path:
    model = tiny_siglip()
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def biomedclip_folder(folder: Path) -> Path:
    save_open_clip(folder, BIOMEDCLIP_CONFIG, biomedclip_tensors())
    tiny_tokenizer(pad_token="<pad>").save_pretrained(folder)
    return folder


def recipe_from(folder: Path, stages: list[dict], *overrides: str) -> Recipe:
    given = [f"model={json.dumps({'start': str(folder)})}", "tokenizer.source=start", f"image_size={SIDE}"]
    given += [f"stages={json.dumps(stages)}", "global_batch_size=4", "checkpoint_every_steps=1", "keep_checkpoints=99"]
    return load_recipe(RECIPES_FOLDER / "smoke.yaml", [*given, "data=phantom", *overrides])


def trainer(recipe: Recipe, output_dir: Path, start: Start) -> Trainer:
    model = build_model(recipe, start.processor, start)
    recipe, nodules = recipe.settled(), Nodules()
    stores = {stage.name: nodules for stage in recipe.stages}
    identity = {"run": "tiny"}
    return Trainer(recipe, model, start.processor, stores, output_dir, Accelerator(cpu=True), identity)


@torch.no_grad()
def dense_embeddings(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) of unit length along D."""
    return torch.nn.functional.normalize(model.get_dense_features(pixels), dim=1)


def test_a_run_with_adapters_resumed_after_any_step_ends_with_the_same_bits(tmp_path):
    recipe = recipe_from(biomedclip_folder(tmp_path / "start"), STAGES, "ema_decay=0.5")
    start = open_start(recipe)
    undisturbed = trainer(recipe, tmp_path / "run", start)
    undisturbed.train(resume=False)
    expected = undisturbed.model.state_dict()
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 9
    for step in (1, 2, 5, 6, 9):  # a stage begins, its middle, the next merges, its middle, the end
        folder = tmp_path / f"killed_after_{step}"
        for done in range(1, step + 1):
            name = f"step_{done:08d}"
            shutil.copytree(tmp_path / "run" / "checkpoints" / name, folder / "checkpoints" / name)
        shutil.copy(tmp_path / "run" / "metrics.jsonl", folder)
        resumed = trainer(recipe, folder, start)
        resumed.train(resume=True)
        found = resumed.model.state_dict()
        assert list(found) == list(expected)
        assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == [], step
        assert [row["loss"] for row in read_metrics(folder / "metrics.jsonl")] == losses


@pytest.mark.parametrize("kind", ["siglip", "biomedclip"])
def test_both_towers_of_a_checkpoint_of_others_train_by_lora_and_leave_an_adapter(tmp_path, kind):
    folder = {"siglip": siglip_folder, "biomedclip": biomedclip_folder}[kind](tmp_path / "start")
    kinds = {"image_text": "sigmoid"} if kind == "siglip" else {}
    weights = {**JOINT, "hard_negatives": 0.5}
    stages = [
        {"name": "region", "steps": 2, "loss_weights": REGION, "modes": BOTH, "loss_kinds": kinds},
        {"name": "joint", "steps": 2, "loss_weights": weights, "modes": BOTH, "loss_kinds": kinds},
    ]
    recipe = recipe_from(folder, stages, "num_negatives=1")
    start = open_start(recipe)
    run = trainer(recipe, tmp_path / "run", start)
    source = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train(resume=False)
    unmerged = run.model.eval()
    for name, tensor in unmerged.state_dict().items():
        original = source.get(name.replace(".base_layer.", "."))
        if name.startswith(("vision_model", "text_model")) and ".lora_" not in name:
            assert torch.equal(tensor, original), name  # base weights do not move by a bit
        elif ".lora_B." in name:
            assert tensor.any(), name
    assert not torch.equal(unmerged.temperatures.image_text, source["temperatures.image_text"])
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = dense_embeddings(unmerged, pixels)
    save_and_merge_adapters(unmerged, start.processor, tmp_path / "run", start.find_base)
    torch.testing.assert_close(dense_embeddings(unmerged, pixels), expected, atol=1e-5, rtol=0)  # float32
    base = RegionMedClipModel.from_clip_pretrained(folder)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    torch.testing.assert_close(dense_embeddings(adapted, pixels), expected, atol=1e-5, rtol=0)


def test_the_shipped_recipe_trains_evaluates_and_leaves_a_merged_model_and_its_adapter(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(pretraining, "use_all_cores", lambda accelerator: None)
    monkeypatch.setattr(pretraining, "RunLock", lambda folder: None)  # only a process that ends gives it back
    folder, output_dir = siglip_folder(tmp_path / "siglip"), tmp_path / "run"
    command = ["--recipe", str(RECIPES_FOLDER / "pretrain_siglip2_lora.yaml"), "--output_dir", str(output_dir)]
    command += ["data=phantom:num_train=8,num_test=8", f"model.start={folder}", f"image_size={SIDE}", "precision=fp32"]
    command += ["global_batch_size=8", "batch_size_per_device=4", "preparation_workers=1", "trackers=[]"]
    for name in ("region", "joint"):
        command += [f"stages.{name}.steps=1", f"stages.{name}.warmup_steps=0"]
    trained = pretraining.pretrain(parse_command_line(command))
    assert list(trained.model.state_dict()) == list(RegionMedClipModel.from_clip_pretrained(folder).state_dict())
    tensors = load_file(output_dir / "adapter" / "adapter_model.safetensors")
    assert sum(".lora_A." in name for name in tensors) == 2 * 2 * 4  # towers, layers, products
    assert "LoRA of rank 16 on vision" in trained.facts()["training"][1]
    base = RegionMedClipModel.from_pretrained(output_dir / "adapter_base")
    adapted = PeftModel.from_pretrained(base, str(output_dir / "adapter")).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.model.get_image_features(pixels).pooler_output
        torch.testing.assert_close(adapted.get_image_features(pixels).pooler_output, expected, atol=1e-5, rtol=1e-5)
