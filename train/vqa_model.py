"""The model of a fine-tuning run: the start's encoder under a new answer head, and which of its parameters move."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from modeling_regionmed_clip import RegionMedClipForVisualQuestionAnswering
from modeling_regionmed_clip.outputs_regionmed_clip import RegionMedClipQuestionAnsweringOutput
from modeling_regionmed_clip.towers import grid_of
from regionmed_clip.processing.corpus.answer_vocabulary import AnswerVocabulary
from regionmed_clip.processing.processing_regionmed_clip import RegionMedClipProcessor

from .arguments import Recipe
from .question_set import QuestionBatch
from .recipe_parts import TowerModes
from .stages import LORA_MARK
from .starts import START, digest, load_processor, load_start, start_folder
from .vqa_recipe import VqaRecipe

ENCODER = "regionmed_clip."  # what the encoder's parameters are called within the model
GROUP_OF_PART = {
    "vision_model": "vision",
    "visual_projection": "vision",
    "text_model": "text",
    "text_projection": "text",
    "roi_processor": "roi",
    "answer_head": "head",
}
VISUAL_GROUPS = ("vision", "roi")
VISUAL_PARTS_OF_HEAD = (
    *("image_projection", "patch_projection", "region_projection", "box_encoding", "image_match", "region_reading"),
)
MODEL_TENSORS = ("pixel_values", "input_ids", "attention_mask", "image_index", "region_boxes", "region_mask")
QUESTION_TENSORS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class VqaStart:
    """What a run takes from its start; `revision` hashes the files of the folder."""

    processor: RegionMedClipProcessor
    revision: str


def open_vqa_start(recipe: VqaRecipe) -> VqaStart:
    """The processor of the start, a folder that pretraining could start from too.

    Raises:
        ValueError: if it is none, or shows images otherwise than whole.
    """
    folder = start_folder(_as_pretraining(recipe))
    try:
        processor = load_processor(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"recipe {recipe.name!r}: start={recipe.start} cannot be used: {error}") from error
    if processor.image_processor.geometry != "pad":
        raise ValueError(
            f"recipe {recipe.name!r}: {folder} shows images by geometry {processor.image_processor.geometry!r}, which "
            "may crop away what is asked for; save its processor anew with geometry='pad'."
        )
    return VqaStart(processor, digest(folder))


def _as_pretraining(recipe: VqaRecipe) -> Recipe:
    return Recipe(name=recipe.name, seed=recipe.seed, model={START: recipe.start})


def build_vqa_model(recipe: VqaRecipe, vocabulary: AnswerVocabulary) -> RegionMedClipForVisualQuestionAnswering:
    """The model before its first step, the same on every process: what the start does not give, the seed decides."""
    encoder = load_start(_as_pretraining(recipe))
    config = copy.deepcopy(encoder.config)
    fields = {key: value for key, value in config.to_dict().items() if key not in ("id2label", "label2id")}
    answers = {"id2label": vocabulary.id2label, "label2id": vocabulary.label2id}
    config = type(config).from_dict({**fields, **recipe.model, **answers})
    set_seed(recipe.seed)
    model = RegionMedClipForVisualQuestionAnswering(config)
    if recipe.encoder == "pretrained":
        model.regionmed_clip.load_state_dict(encoder.state_dict())
    return model


def is_trained(name: str, modes: TowerModes, *, has_images: bool) -> bool:
    """Whether the parameter `name` of the model moves: its part's mode says so, and the answers depend on it."""
    part, _, rest = name.removeprefix(ENCODER).partition(".")
    if part not in GROUP_OF_PART:  # temperatures, fusion, proposals
        return False
    group = GROUP_OF_PART[part]
    if group == "head":
        return has_images or not rest.startswith(VISUAL_PARTS_OF_HEAD)
    if group in VISUAL_GROUPS and not has_images:
        return False
    mode = getattr(modes, group)
    if part in ("vision_model", "text_model") and mode == "lora":
        return LORA_MARK in rest
    return mode != "frozen"


def set_trained_parameters(
    model: RegionMedClipForVisualQuestionAnswering, modes: TowerModes, *, has_images: bool
) -> list[tuple[str, nn.Parameter]]:
    """Sets `requires_grad`, and gives the (name, parameter) pairs that move; the encoder's without their prefix."""
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, modes, has_images=has_images))
        if parameter.requires_grad:
            trained.append((name.removeprefix(ENCODER), parameter))
    return trained


class AnsweringModel(nn.Module):
    """The model as training and validation ask it: questions of one batch may have given, proposed or no regions."""

    def __init__(self, model: RegionMedClipForVisualQuestionAnswering, *, has_images: bool):
        super().__init__()
        self.model = model
        self.has_images = has_images
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]  # they never change

    def forward(
        self, tensors: dict[str, Tensor], labels: Tensor | None = None, *, has_proposed: bool = False
    ) -> RegionMedClipQuestionAnsweringOutput:
        """What the model gives for the tensors of a batch (`QuestionSet.assemble`), its loss where `labels` are given.

        Args:
            has_proposed: whether `is_proposed` is True of any question.
        """
        if not self.has_images:
            return self.model(**{name: tensors[name] for name in QUESTION_TENSORS}, labels=labels)
        given = {name: tensors[name] for name in MODEL_TENSORS}
        if not has_proposed:
            return self.model(**given, labels=labels)
        encoded = self.model.regionmed_clip.encode_patches(tensors["pixel_values"])
        given |= self._with_proposed(tensors, encoded[0])
        return self.model(**given, labels=labels, encoded_images=encoded)

    @torch.no_grad()
    def _with_proposed(self, tensors: dict[str, Tensor], patches: Tensor) -> dict[str, Tensor]:
        """`region_boxes`, `region_mask`; those proposed from the patches (B, P, C) where `is_proposed`."""
        grid = grid_of(self.model.config.vision_config, tensors["pixel_values"])
        found = self.model.regionmed_clip.propose_from_patches(patches, grid)
        index, is_proposed = tensors["image_index"], tensors["is_proposed"]
        boxes, mask = _to_width(tensors, found.region_boxes.shape[1])
        proposed_boxes = found.region_boxes[index].to(boxes.dtype)  # (Q, K, 4)
        missing = boxes.shape[1] - proposed_boxes.shape[1]
        proposed_boxes = nn.functional.pad(proposed_boxes, (0, 0, 0, missing))
        proposed_mask = nn.functional.pad(found.region_mask[index], (0, missing))
        boxes = torch.where(is_proposed[:, None, None], proposed_boxes, boxes)
        mask = torch.where(is_proposed[:, None], proposed_mask, mask)
        real = mask.any(dim=0).nonzero()  # of 16 proposals few are; the rest would only cost time
        width = int(real.amax()) + 1 if len(real) else 1
        return {"region_boxes": boxes[:, :width], "region_mask": mask[:, :width]}


def _to_width(tensors: dict[str, Tensor], least: int) -> tuple[Tensor, Tensor]:
    """`region_boxes` and `region_mask`, padded to at least so many regions."""
    boxes, mask = tensors["region_boxes"], tensors["region_mask"]
    missing = max(0, least - boxes.shape[1])
    return nn.functional.pad(boxes, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))


def to_device(batch: QuestionBatch, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch on the device."""
    return {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}


def soft_labels(answers: Tensor, num_answers: int) -> Tensor:
    """(Q, A) float32: 1 for the class of each question's answer, a row of zeros for an answer that is none of them."""
    is_known = answers >= 0
    labels = nn.functional.one_hot(answers.clamp(min=0), num_answers)
    return (labels * is_known[:, None]).float()
