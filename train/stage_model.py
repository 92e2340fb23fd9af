"""The model as one stage trains it: one forward pass that gives all that a step's loss needs, temperatures included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_regionmed_clip import RegionMedClipModel, RegionMedClipOutput
from modeling_regionmed_clip.region_pooling import box_coverage
from modeling_regionmed_clip.towers import grid_of, read_patches

from .recipe_parts import TEXT_TERMS


@contextmanager
def eager_attention_on_cpu(model: PreTrainedModel, *, beside_towers: bool = False) -> Iterator[None]:
    """Plain attention in the towers inside the block, on a CPU: the fused one is slow backwards (docs/decisions.md).

    Args:
        beside_towers: in the rest of the model too; an answer head has far more queries than a ROI processor.
    """
    if model.device.type != "cpu":
        yield
        return
    parts = {"": model.config._attn_implementation} if beside_towers else {}  # by the library, "" is the model itself
    parts |= {name: getattr(model.config, name)._attn_implementation for name in model.config.sub_configs}
    model.set_attn_implementation(dict.fromkeys(parts, "eager"))
    try:
        yield
    finally:
        model.set_attn_implementation(parts)


@dataclass
class StageOutput(RegionMedClipOutput):
    """What the model gives, and what else a step's loss is made of.

    `distilled_embeds` (B, R, D) float: embeddings of a label-free stage's boxes, fused nowhere.
    `logit_scales`, `logit_biases`: the inverse temperature of every term, and the bias of those that have one, (1,).
    """

    distilled_embeds: Tensor | None = None
    logit_scales: dict[str, Tensor] | None = None
    logit_biases: dict[str, Tensor] | None = None


class StageModel(nn.Module):
    """The model as one stage trains it: Accelerate patches this shell's forward and leaves the model's own alone.

    (Preparing the model itself stage after stage, with an unwrap between, silently lost the autocast.) Nothing outside
    its forward may read a parameter: under FSDP2 the parameters are whole in there alone.
    """

    def __init__(self, model: RegionMedClipModel):
        super().__init__()
        self.model = model
        kinds = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(kinds.intersection(model._no_split_modules))  # what FSDP2 shards as one unit
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]  # DDP's: they never change

    def forward(self, distilled_boxes: Tensor | None = None, **tensors: Tensor) -> StageOutput:
        """What the model gives, in float32; and embeddings of `distilled_boxes` (B, R, 4), fused nowhere."""
        output = StageOutput(**self.model(**tensors))
        temperatures = self.model.temperatures
        output.logit_scales = {name: temperatures(name) for name in TEXT_TERMS}
        biases = {name: temperatures.bias(name) for name in TEXT_TERMS}
        output.logit_biases = {name: bias.clone() for name, bias in biases.items() if bias is not None}
        if distilled_boxes is None:
            return output
        config, tower = self.model.config, self.model.vision_model
        grid = grid_of(config.vision_config, tensors["pixel_values"])
        patches, _ = read_patches(tower, output.vision_model_output, grid, config.image_pooling)
        coverage = box_coverage(distilled_boxes, grid).flatten(2)
        output.distilled_embeds = self.model.roi_processor(patches, distilled_boxes, coverage, grid)
        return output
