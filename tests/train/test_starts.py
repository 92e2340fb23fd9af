"""A recipe that starts from a checkpoint: whose model, tokenizer and frames it takes, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import (
    BIOMEDCLIP_CONFIG,
    biomedclip_tensors,
    save_open_clip,
    tiny_clip,
    tiny_tokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from modeling_regionmed_clip import RegionMedClipModel
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor
from regionmed_clip.train import pretraining
from regionmed_clip.train.arguments import RECIPES_FOLDER, Recipe, load_recipe, parse_command_line
from regionmed_clip.train.pretraining import build_model
from regionmed_clip.train.starts import digest, open_start

SMOKE = RECIPES_FOLDER / "smoke.yaml"


def clip_folder(folder: Path) -> Path:
    tiny_clip(eos_token_id=1, pad_token_id=1).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def recipe_from(folder: Path, *overrides: str) -> Recipe:
    model = json.dumps({"start": str(folder)})
    return load_recipe(SMOKE, [f"model={model}", "tokenizer.source=start", "image_size=32", *overrides])


def test_a_start_gives_the_checkpoints_model_tokenizer_and_frames(tmp_path):
    recipe = recipe_from(clip_folder(tmp_path), "model.roi_num_layers=2", "tokenizer.max_length=9", "seed=4")
    start = open_start(recipe)
    assert start.processor.image_processor.frame_size == (32, 32)
    assert start.processor.tokenizer.model_max_length == 9
    assert start.config.roi_num_layers == 2
    model = build_model(recipe, start.processor, start)
    torch.manual_seed(4)
    expected = RegionMedClipModel.from_clip_pretrained(tmp_path, roi_num_layers=2)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_start_may_be_in_open_clips_format_or_this_models_own(tmp_path):
    foreign = save_open_clip(tmp_path / "foreign", BIOMEDCLIP_CONFIG, biomedclip_tensors())
    tiny_tokenizer(pad_token="<pad>").save_pretrained(foreign)
    start = open_start(recipe_from(foreign))
    model = build_model(recipe_from(foreign), start.processor, start)
    for part in (model, start.processor):
        part.save_pretrained(tmp_path / "own")
    own = recipe_from(tmp_path / "own")
    start = open_start(own)
    again = build_model(own, start.processor, start)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"is taken as it is; leave \['roi_num_layers'\]"):
        open_start(recipe_from(tmp_path / "own", "model.roi_num_layers=2"))


def test_a_start_is_read_from_disk_once_for_the_first_model_and_anew_for_the_next(tmp_path, monkeypatch):
    recipe = recipe_from(clip_folder(tmp_path))
    reads, read = [], RegionMedClipModel.from_clip_pretrained
    counted = lambda path, **fields: reads.append(path) or read(path, **fields)  # noqa: E731
    monkeypatch.setattr(RegionMedClipModel, "from_clip_pretrained", counted)
    start = open_start(recipe)
    first = build_model(recipe, start.processor, start)
    assert len(reads) == 1
    expected = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.no_grad():
        first.text_projection.weight.zero_()  # it trains in place
    second = build_model(recipe, start.processor, start)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state_dict().items())


def test_the_command_line_names_the_start_of_a_recipe_that_has_none(tmp_path):
    folder = clip_folder(tmp_path)
    command = [f"model.start={folder}", "tokenizer.source=start", "image_size=32", "data=phantom"]
    start = open_start(load_recipe(RECIPES_FOLDER / "real_small.yaml", ["model={}", *command]))
    assert start.config.vision_config.hidden_size == 32


def test_a_sigmoid_loss_is_refused_on_a_start_without_a_bias(tmp_path):
    folder = clip_folder(tmp_path)
    kinds = "loss_kinds={image_text: sigmoid}"
    recipe = recipe_from(folder, f"stages.global.{kinds}", f"stages.joint.{kinds}")
    way_out = r"by stages.global.loss_kinds=\{\} stages.joint.loss_kinds=\{\}\."
    with pytest.raises(ValueError, match=rf"the stages global, joint have a sigmoid loss, .* {way_out}"):
        open_start(recipe)


def test_a_recipe_without_a_start_has_none():
    assert open_start(load_recipe(SMOKE)) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.source=train"], r"tokenizer.source 'train'; .* set both"),
        (["image_size=48"], r"image_size is 48 and .* frames of \(32, 32\).*image_size=32"),
        (["model.projection_dim=8"], "model.start cannot be used: .*projection_dim=8 cannot be given"),
        (["model.roi_layers=8"], "the configuration has no such field"),
        (["model.start=ORG/NAME"], "'ORG/NAME' is not a folder; download"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        open_start(recipe_from(clip_folder(tmp_path), *overrides))


def test_a_saved_processor_that_crops_is_refused_for_training(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    RegionMedClipModel.from_clip_pretrained(folder).save_pretrained(tmp_path / "own")
    RegionMedClipProcessor.from_clip_pretrained(folder, geometry="source").save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="geometry 'source'; training needs"):
        open_start(recipe_from(tmp_path / "own"))


def test_the_revision_follows_the_files_and_not_their_place(tmp_path):
    folder = clip_folder(tmp_path / "first")
    shutil.copytree(folder, tmp_path / "second")
    assert digest(tmp_path / "second") == digest(folder)
    path = tmp_path / "second" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert digest(tmp_path / "second") != digest(folder)


def test_a_whole_run_starts_from_a_checkpoint_and_refuses_to_resume_with_another(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(pretraining, "use_all_cores", lambda accelerator: None)
    monkeypatch.setattr(pretraining, "RunLock", lambda folder: None)  # only a process that ends gives it back
    folder = clip_folder(tmp_path / "clip")
    stages = [{"name": "joint", "steps": 2, "loss_weights": {"image_text": 1.0, "region_text": 1.0}}]
    command = ["--recipe", str(SMOKE), "--output_dir", str(tmp_path / "run"), f"stages={json.dumps(stages)}"]
    command += [f"model={json.dumps({'start': str(folder)})}", "tokenizer.source=start", "image_size=32"]
    command += ["data=phantom:num_train=16,num_test=16", "global_batch_size=8"]
    trained = pretraining.pretrain(parse_command_line(command))
    source = RegionMedClipModel.from_clip_pretrained(folder)
    moved = (trained.model.visual_projection.weight - source.visual_projection.weight).abs()
    assert 0 < moved.max() < 0.01  # two steps of AdamW from the checkpoint's weights
    assert trained.facts()["training"][0] == "started from the checkpoint clip"
    tiny_clip(eos_token_id=1, pad_token_id=1, hidden_act="gelu").save_pretrained(folder)
    with pytest.raises(ValueError, match=r"start_revision: .* in the checkpoint, .* now"):
        pretraining.pretrain(parse_command_line([*command, "--resume"]))
