"""The label-free region stage: regions of the model learn to embed what a frozen copy of it sees in their crops.

The teacher is the model as it was when the stage began. Boxes are drawn at random, so that an image needs neither boxes
nor text. The idea is CLIPSelf's, arXiv:2310.01403.

Letters: B images, R drawn boxes of an image, D width of the shared space, S pixels of a side of the frame.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_regionmed_clip import RegionMedClipModel

from .arguments import Recipe
from .checkpoint import load_teacher, save_teacher
from .recipe_parts import Distillation, Stage
from .sample_order import DISTILLATION_STREAM, rank_positions

TEACHER_PARTS = ("vision_model", "visual_projection")
FLAT_RANGE = 1e-3  # a crop whose normalised values differ by less shows nothing: it lies in the frame's padding


def draw_boxes(settings: Distillation, seed: int, step: int, global_batch_size: int) -> Tensor:
    """(global batch, R, 4) float32 boxes inside the frame, in fractions of it; a pure function of seed and step.

    Width and height are uniform between `min_side` and `max_side`, the place uniform among those inside the frame.
    """
    generator = np.random.default_rng([seed, DISTILLATION_STREAM, step])
    shape = (global_batch_size, settings.regions, 2)
    sides = generator.uniform(settings.min_side, settings.max_side, shape)
    corners = generator.uniform(0.0, 1.0 - sides)
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=-1).clip(0.0, 1.0).astype(np.float32))


def cut_crops(pixel_values: Tensor, boxes: Tensor) -> Tensor:
    """(B, R, 3, H, W) crops of the boxes, each resized to the frame; the crop of the whole frame is the frame itself.

    Bilinear, as two products a crop: a box is separable. A crop is never smaller than its box, so nothing is averaged.

    Args:
        pixel_values: (B, 3, H, W) float.
        boxes: (B, R, 4) float32; fractions of the frame.
    """
    along_x = _bilinear_weights(boxes[..., 0], boxes[..., 2], pixel_values.shape[-1]).to(pixel_values.dtype)
    along_y = _bilinear_weights(boxes[..., 1], boxes[..., 3], pixel_values.shape[-2]).to(pixel_values.dtype)
    rows = torch.einsum("brih,bchw->brciw", along_y, pixel_values)
    return torch.einsum("brciw,brjw->brcij", rows, along_x)


def _bilinear_weights(low: Tensor, high: Tensor, num_pixels: int) -> Tensor:
    """(B, R, S, S) float32: how much each of S source pixels gives to each of S samples between low and high (B, R)."""
    pixels = torch.arange(num_pixels, device=low.device, dtype=torch.float32)
    places = low[..., None] * num_pixels + (pixels + 0.5) * (high - low)[..., None] - 0.5  # (B, R, S)
    places = places.clamp(0.0, num_pixels - 1.0)
    return (1.0 - (places[..., None] - pixels).abs()).clamp_min(0.0)


def freeze_teacher(model: RegionMedClipModel) -> RegionMedClipModel:
    """A frozen copy of the model, in evaluation mode, with no more than `get_image_features` without regions needs."""
    teacher = copy.deepcopy(model)
    for name, _ in list(teacher.named_children()):
        if name not in TEACHER_PARTS:
            setattr(teacher, name, None)
    return teacher.requires_grad_(False).eval()


class Distiller:
    """What one label-free stage needs beside the model: its teacher, its boxes and the targets of their regions."""

    def __init__(self, teacher: RegionMedClipModel, stage: Stage, recipe: Recipe, accelerator: Accelerator):
        self.teacher = teacher
        self._stage = stage
        self._recipe = recipe
        self._accelerator = accelerator

    def boxes(self, step: int) -> Tensor:
        """(B, R, 4) float32 boxes of this process's images in `step`, on its device."""
        recipe, accelerator, batch_size = self._recipe, self._accelerator, self._stage.global_batch_size
        drawn = draw_boxes(recipe.distillation, recipe.seed, step, batch_size)
        mine = rank_positions(0, batch_size, accelerator.process_index, accelerator.num_processes)
        return drawn[mine.start : mine.stop].to(accelerator.device)

    @torch.no_grad()
    def targets(self, pixel_values: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher's embeddings (B, R, D) of the crops of boxes (B, R, 4), and (B, R) bool, False for a flat crop."""
        crops = cut_crops(pixel_values, boxes).flatten(0, 1)  # (B * R, 3, S, S)
        extent = crops.amax(dim=(-2, -1)) - crops.amin(dim=(-2, -1))  # (B * R, 3)
        shows_something = (extent > FLAT_RANGE).any(dim=-1)
        with self._accelerator.autocast():
            embeddings = self.teacher.get_image_features(crops).pooler_output
        return embeddings.float().unflatten(0, boxes.shape[:2]), shows_something.view(boxes.shape[:2])


def build_distiller(
    model: RegionMedClipModel,
    stage: Stage,
    recipe: Recipe,
    accelerator: Accelerator,
    teacher_path: Path,
    *,
    identity: str,
    is_resumed: bool,
) -> Distiller | None:
    """The distiller of a stage that has the term, else None.

    A stage that begins takes the model as it is for its teacher and keeps that in `teacher_path`; one that is resumed
    in its middle reads it there, and so goes on with the same bits.

    Args:
        identity: of the run; see `Trainer`.

    Raises:
        ValueError: for a resumed stage without its teacher, or with that of another run.
    """
    if "region_distillation" not in stage.loss_weights:
        return None
    teacher = freeze_teacher(model)
    facts = {"run": identity, "stage": stage.name}
    if is_resumed:
        load_teacher(teacher_path, teacher, facts)
    elif accelerator.is_main_process:
        save_teacher(teacher_path, teacher, facts)
    return Distiller(teacher, stage, recipe, accelerator)
