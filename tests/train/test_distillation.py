"""The label-free stage's parts: boxes drawn anew and the same, exact crops, a teacher that never moves."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_batch, tiny_model

from modeling_regionmed_clip.loss_regionmed_clip import region_distillation_loss
from regionmed_clip.train.arguments import RECIPES_FOLDER, load_recipe
from regionmed_clip.train.distillation import (
    Distiller,
    build_distiller,
    cut_crops,
    draw_boxes,
    freeze_teacher,
)
from regionmed_clip.train.recipe_parts import Distillation, Stage
from regionmed_clip.train.stage_model import StageModel
from regionmed_clip.train.stages import set_trained_parameters

LABEL_FREE = Stage(name="label_free", loss_weights={"region_distillation": 1.0})
RECIPE = load_recipe(
    RECIPES_FOLDER / "smoke.yaml", ["global_batch_size=4", "distillation={regions: 3, min_side: 0.4, max_side: 0.8}"]
)
SIDES = st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted)


def distiller(model, num_processes: int = 1, rank: int = 0) -> Distiller:
    place = SimpleNamespace(process_index=rank, num_processes=num_processes, device="cpu", autocast=nullcontext)
    return Distiller(freeze_teacher(model), LABEL_FREE.settled(RECIPE), RECIPE, place)


@given(SIDES, st.integers(0, 2**31), st.integers(0, 10**6))
def test_drawn_boxes_lie_inside_the_frame_with_sides_in_the_range(sides, seed, step):
    settings = Distillation(regions=5, min_side=sides[0], max_side=sides[1])
    boxes = draw_boxes(settings, seed, step, global_batch_size=3)
    assert boxes.shape == (3, 5, 4)
    assert boxes.dtype == torch.float32
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    drawn = boxes[..., 2:] - boxes[..., :2]
    assert (drawn >= sides[0] - 1e-6).all()  # float32
    assert (drawn <= sides[1] + 1e-6).all()


def test_boxes_are_the_same_for_a_seed_and_step_and_others_for_another():
    boxes = draw_boxes(Distillation(), seed=1, step=7, global_batch_size=4)
    assert torch.equal(boxes, draw_boxes(Distillation(), seed=1, step=7, global_batch_size=4))
    for seed, step in ((1, 8), (2, 7)):
        assert not torch.equal(boxes, draw_boxes(Distillation(), seed=seed, step=step, global_batch_size=4))
    assert len(boxes.flatten(0, 1).unique(dim=0)) == 32  # every image and region its own


def test_the_processes_share_the_boxes_of_one():
    model = tiny_model()
    alone = distiller(model).boxes(step=5)
    shared = [distiller(model, num_processes=2, rank=rank).boxes(step=5) for rank in range(2)]
    assert torch.equal(torch.cat(shared), alone)
    assert alone.shape == (4, 3, 4)


def test_the_crop_of_the_whole_frame_is_the_frame_bit_for_bit():
    pixels = torch.randn(2, 3, 37, 37, generator=torch.Generator().manual_seed(0))
    crops = cut_crops(pixels, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2, 4, 4))
    assert crops.shape == (2, 4, 3, 37, 37)
    for region in range(4):
        assert torch.equal(crops[:, region], pixels)


def test_the_crop_of_a_ramp_is_the_ramp_between_the_boxs_edges():
    ramp = ((torch.arange(8) + 0.5) / 8).expand(1, 3, 8, 8)  # value = x of the pixel's centre
    (crop,) = cut_crops(ramp, torch.tensor([[[0.25, 0.0, 0.75, 0.5]]]))[0]
    expected = 0.25 + 0.5 * (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(crop, expected.expand(3, 8, 8), atol=1e-6, rtol=0)  # float32
    upright = cut_crops(ramp.transpose(2, 3), torch.tensor([[[0.0, 0.25, 0.5, 0.75]]]))[0, 0]
    torch.testing.assert_close(upright, expected[:, None].expand(3, 8, 8), atol=1e-6, rtol=0)


@given(st.integers(0, 1000))
def test_crops_are_pillows(seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(24, 24)).astype(np.float32)
    corner = generator.uniform(0, 0.7, 2)
    box = np.concatenate([corner, corner + generator.uniform(0.1, 0.3, 2)]).astype(np.float32)
    image = Image.fromarray(values)
    expected = image.resize((24, 24), Image.Resampling.BILINEAR, box=tuple((box * 24).tolist()))
    crop = cut_crops(torch.from_numpy(values).expand(1, 3, 24, 24), torch.from_numpy(box)[None, None])[0, 0, 0]
    np.testing.assert_allclose(crop.numpy(), np.asarray(expected), atol=1e-4)  # float32, places rounded


def test_the_target_of_the_whole_frame_is_the_plain_global_embedding():
    model, pixels = tiny_model(), tiny_batch()["pixel_values"]
    targets, _ = distiller(model).targets(pixels, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 2, 4))
    plain = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(targets, plain[:, None].expand(-1, 2, -1), atol=1e-6, rtol=0)  # float32, another batch


def test_a_crop_that_shows_nothing_takes_no_part():
    pixels = torch.full((2, 3, 48, 48), 0.3)
    pixels[0, 1, :, 24:] = -1.0  # the right half of the first image differs
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.9], [0.3, 0.1, 0.8, 0.7]]).expand(2, 2, 4)
    _, shows_something = distiller(tiny_model()).targets(pixels, boxes)
    assert shows_something.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("roi_mode", ["prompter", "roialign", "maskpool"])
def test_the_student_is_what_get_region_features_gives(roi_mode):
    model, batch = tiny_model(roi_mode=roi_mode), tiny_batch()
    boxes = draw_boxes(Distillation(regions=3), 0, 0, 3)
    output = StageModel(model)(distilled_boxes=boxes, pixel_values=batch["pixel_values"])
    expected = model.get_region_features(batch["pixel_values"], boxes).pooler_output
    torch.testing.assert_close(output.distilled_embeds, expected, atol=1e-6, rtol=0)  # float32


def test_drawn_boxes_change_nothing_else_that_the_model_gives():
    model, batch = tiny_model(), tiny_batch()
    names = ("pixel_values", "region_boxes", "region_mask", "input_ids", "attention_mask")
    tensors = {name: batch[name] for name in names}
    with_boxes = StageModel(model)(distilled_boxes=draw_boxes(Distillation(), 0, 0, 3), **tensors)
    without = StageModel(model)(**tensors)
    assert without.distilled_embeds is None
    assert torch.equal(with_boxes.fused_image_embeds, without.fused_image_embeds)
    assert torch.equal(with_boxes.region_embeds, without.region_embeds)


def test_the_teacher_has_no_more_than_an_image_needs_and_never_moves():
    model, pixels = tiny_model(), tiny_batch()["pixel_values"]
    teacher = freeze_teacher(model)
    assert {name.split(".")[0] for name, _ in teacher.named_parameters()} == {"vision_model", "visual_projection"}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = teacher.get_image_features(pixels).pooler_output
    assert torch.equal(before, model.get_image_features(pixels).pooler_output)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher.get_image_features(pixels).pooler_output, before)
    assert model.text_model is not None  # the model itself lost nothing


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model"])
def test_a_label_free_stage_moves_every_parameter_that_it_trains_and_no_other(model_type):
    vision = {**tiny_model().config.vision_config.to_dict(), "model_type": model_type}
    model, pixels = tiny_model(vision_config=vision), tiny_batch()["pixel_values"]
    trained = dict(set_trained_parameters(model, LABEL_FREE))
    assert {name.split(".")[0] for name in trained} == {"vision_model", "roi_processor"}
    boxes = draw_boxes(Distillation(regions=3), 0, 0, 3)
    stage = distiller(model)
    output = StageModel(model)(distilled_boxes=boxes, pixel_values=pixels)
    region_distillation_loss(output.distilled_embeds, *stage.targets(pixels, boxes)).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == set(trained)
    still = {name for name in moved if not trained[name].grad.abs().max() > 0}
    assert {name for name in still if not name.endswith("k_proj.bias")} == set()  # a key bias cancels in the softmax
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())


def test_a_resumed_stage_reads_the_teacher_that_it_began_with(tmp_path):
    path, accelerator = tmp_path / "teacher.safetensors", Accelerator(cpu=True)
    began = build_distiller(tiny_model(seed=1), LABEL_FREE, RECIPE, accelerator, path, identity="run", is_resumed=False)
    moved = tiny_model(seed=2)
    resumed = build_distiller(moved, LABEL_FREE, RECIPE, accelerator, path, identity="run", is_resumed=True)
    for name, tensor in began.teacher.state_dict().items():
        assert torch.equal(resumed.teacher.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"holds the teacher of .*'run'.*this run needs that of .*'other'"):
        build_distiller(moved, LABEL_FREE, RECIPE, accelerator, path, identity="other", is_resumed=True)
    path.unlink()
    with pytest.raises(ValueError, match="is missing; a stage of region_distillation cannot be resumed"):
        build_distiller(moved, LABEL_FREE, RECIPE, accelerator, path, identity="run", is_resumed=True)


def test_a_stage_without_the_term_has_no_teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    assert (
        build_distiller(tiny_model(), Stage(), RECIPE, Accelerator(cpu=True), path, identity="run", is_resumed=False)
        is None
    )
    assert not path.exists()
