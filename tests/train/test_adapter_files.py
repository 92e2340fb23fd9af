"""Adapters on disk: what peft makes of them, what `final` has instead, and a run that starts from their folder."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_checkpoints import tiny_tokenizer
from tiny_models import tiny_batch, tiny_model

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.image_processing_regionmed_clip import RegionMedClipImageProcessor
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train.adapter_files import load_with_adapter, save_and_merge_adapters
from regionmed_clip.train.adapters import adapted_layers, begin_stage_adapters
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe
from regionmed_clip.train.recipe_parts import Lora, LoraOfTowers, Stage, TowerModes
from regionmed_clip.train.stage_plan import StagePlan
from regionmed_clip.train.starts import open_start

BOTH = TowerModes(vision="lora", text="lora")
FOUR_AND_TWO = LoraOfTowers(vision=Lora(rank=4, alpha=8.0), text=Lora(rank=2, alpha=1.0))


def processor() -> RegionMedClipProcessor:
    images = RegionMedClipImageProcessor(size={"height": 48, "width": 48}, patch_size=12)
    return RegionMedClipProcessor(images, tiny_tokenizer(pad_token="<pad>"))


def with_adapters(model: RegionMedClipModel, modes: TowerModes = BOTH) -> RegionMedClipModel:
    """The model after a LoRA stage: matrices, region path and projections have moved, base weights have not."""
    stage = Stage(steps=1, modes=modes, lora=FOUR_AND_TWO)
    begin_stage_adapters(model, StagePlan(0, stage, 0, 0), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name or not name.startswith(("vision_model", "text_model")):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@torch.no_grad()
def all_paths(model: RegionMedClipModel) -> dict[str, torch.Tensor]:
    """What every public way through the model gives for the tiny batch."""
    batch = tiny_batch()
    images, boxes, mask = batch["pixel_values"], batch["region_boxes"], batch["region_mask"]
    texts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    output = model.eval()(**batch, return_loss=True)
    names = ("logits_per_image", "logits_per_region", "logits_per_fused_image", "image_embeds", "fused_image_embeds")
    names += ("text_embeds", "region_embeds", "region_text_embeds", "proposal_logits", "proposal_boxes", "loss")
    return {name: output[name] for name in names} | {
        "text features": model.get_text_features(**texts).pooler_output,
        "image features": model.get_image_features(images).pooler_output,
        "fused features": model.get_image_features(images, boxes, mask).pooler_output,
        "features with proposals": model.get_image_features(images, regions="proposed").pooler_output,
        "region features": model.get_region_features(images, boxes, mask).pooler_output,
        "dense features": model.get_dense_features(images),
        "proposals": model.propose_regions(images, threshold=0.0).scores,
        "heat": model.ground_phrases(images, **texts).heat,
    }


def assert_equal_paths(found: RegionMedClipModel, expected: RegionMedClipModel) -> None:
    wanted = all_paths(expected)
    for name, value in all_paths(found).items():
        assert torch.allclose(value, wanted[name], atol=1e-5, rtol=1e-5), name  # float32


@pytest.mark.parametrize("modes", [BOTH, TowerModes(vision="frozen", text="lora")], ids=["both towers", "text alone"])
def test_merged_and_through_peft_the_model_computes_what_it_did(tmp_path, modes):
    trained = with_adapters(tiny_model(), modes)
    merged = copy.deepcopy(trained)
    save_and_merge_adapters(merged, processor(), tmp_path, find_base=lambda model: tmp_path)
    assert not adapted_layers(merged)
    assert_equal_paths(merged, trained)
    base = tiny_model(seed=0)  # the towers are what counts; whatever the rest is, the adapter brings its own
    with torch.no_grad():
        for part in ("roi_processor", "region_fusion", "proposal_head", "temperatures", "visual_projection"):
            for parameter in base.get_submodule(part).parameters():
                parameter.fill_(0.5)
    assert_equal_paths(PeftModel.from_pretrained(base, str(tmp_path / "adapter")), trained)


def test_the_merged_model_is_a_plain_one_on_disk(tmp_path):
    merged = with_adapters(tiny_model())
    save_and_merge_adapters(merged, processor(), tmp_path, find_base=None)
    merged.save_pretrained(tmp_path / "final")
    assert list(merged.state_dict()) == list(tiny_model().state_dict())
    again = RegionMedClipModel.from_pretrained(tmp_path / "final")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in merged.state_dict().items())


def test_the_folders_hold_safetensors_and_json_and_the_base_is_written_where_no_other_folder_holds_it(tmp_path):
    model = with_adapters(tiny_model())
    save_and_merge_adapters(model, processor(), tmp_path, find_base=None)
    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert {path.suffix for path in (tmp_path / "adapter_base").iterdir()} == {".json", ".safetensors"}
    base = RegionMedClipModel.from_pretrained(tmp_path / "adapter_base").state_dict()
    for name, value in tiny_model().state_dict().items():
        assert torch.equal(base[name], value) or not name.startswith(("vision_model", "text_model")), name
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "adapter_base").resolve())
    assert (config["r"], config["rank_pattern"]) == (4, {r"text_model\..*": 2})


def test_a_model_without_adapters_leaves_no_folder(tmp_path):
    model = tiny_model()
    save_and_merge_adapters(model, processor(), tmp_path, find_base=None)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tiny_model().state_dict().items())


def recipe_from(folder: Path) -> Recipe:
    overrides = [f"model={json.dumps({'start': str(folder)})}", "tokenizer.source=start", "image_size=48"]
    return load_recipe(RECIPES_FOLDER / "smoke.yaml", overrides)


def saved_run(folder: Path) -> RegionMedClipModel:
    """`final` and the processor of an earlier run, in `folder`."""
    model = tiny_model(seed=5)
    for part in (model, processor()):
        part.save_pretrained(folder)
    return model


def test_the_base_of_a_run_from_a_saved_model_is_that_models_folder_while_its_towers_are_the_same(tmp_path):
    saved_run(tmp_path / "final")
    start = open_start(recipe_from(tmp_path / "final"))
    trained = with_adapters(start.build_model())
    merged = copy.deepcopy(trained)
    save_and_merge_adapters(merged, processor(), tmp_path / "run", start.find_base)
    assert not (tmp_path / "run" / "adapter_base").exists()
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "final")
    base = RegionMedClipModel.from_pretrained(tmp_path / "final")
    assert_equal_paths(PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")), trained)
    other = with_adapters(start.build_model())
    with torch.no_grad():
        other.vision_model.post_layernorm.weight.mul_(1.5)  # an earlier stage has moved the towers in full
    save_and_merge_adapters(other, processor(), tmp_path / "moved", start.find_base)
    assert (tmp_path / "moved" / "adapter_base" / "model.safetensors").is_file()


def test_a_run_starts_from_an_adapter_folder_and_finds_its_base_after_a_move(tmp_path):
    model = with_adapters(tiny_model())
    save_and_merge_adapters(model, processor(), tmp_path / "run", find_base=None)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    start = open_start(recipe_from(tmp_path / "elsewhere" / "adapter"))
    assert start.processor.image_processor.frame_size == (48, 48)
    started = start.build_model()
    assert list(started.state_dict()) == list(model.state_dict())
    assert_equal_paths(started, model)
    begin_stage_adapters(started, StagePlan(0, Stage(steps=1, modes=BOTH), 0, 0), seed=0)  # a new one, on the merged
    assert_equal_paths(started, model)
    assert start.find_base(model) is None  # no folder holds the merged towers


def test_an_adapter_without_its_base_is_refused(tmp_path):
    save_and_merge_adapters(with_adapters(tiny_model()), processor(), tmp_path, find_base=None)
    shutil.rmtree(tmp_path / "adapter_base")
    with pytest.raises(ValueError, match=r"is no folder with a model.*correct base_model_name_or_path"):
        load_with_adapter(tmp_path / "adapter")
