"""A checkpoint that a model starts from, as the parts of a RegionMedClipModel, and the model made of them.

Letters: C width of the vision tower, D width of the shared space.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

REGION_PARTS = ("roi_processor.", "region_fusion.", "proposal_head.", "temperatures.")  # no source has them
PROJECTIONS = ("visual_projection.", "text_projection.")
POOLING_LAYERS = ("vision_model.pooler.", "vision_model.head.", "text_model.pooler.", "text_model.head.")
GLOBAL_SCALES = ("image_text", "image_region_text", "fused_image_text")  # they compare the source's own embeddings
SCALE_STEP = 100.0
SCALE_ROUNDING = 1e-6  # the float32 nearest to log(100) lies above it
QUIET_CONTEXT = 0.1
SAMPLES_PER_CHANNEL = 4  # of the affine fit

logger = logging.get_logger(__name__)


@dataclass
class SourceCheckpoint:
    """What a checkpoint gives to a RegionMedClipModel.

    Args:
        name: what messages call it.
        vision_config, text_config: of its towers.
        fields: of RegionMedClipConfig, as the checkpoint decides them.
        weights: tensor by the name that it has in RegionMedClipModel.
        ignored: name in the checkpoint -> why the tensor is not used.
        fresh: beginnings of the names that no tensor is expected for.
    """

    name: str
    vision_config: PreTrainedConfig
    text_config: PreTrainedConfig
    fields: dict[str, Any]
    weights: dict[str, Tensor]
    ignored: dict[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = REGION_PARTS

    def set_temperature(self, log_scale: Tensor, bias: Tensor | None = None) -> None:
        """Takes the checkpoint's logarithm of the inverse temperature, one number, and its bias.

        The terms that compare its global embeddings start with them; regions start with the configured temperature.
        """
        for name in GLOBAL_SCALES:
            self.weights[f"temperatures.{name}"] = log_scale.reshape(1)
        if bias is not None:
            self.weights["temperatures.image_text_bias"] = bias.reshape(1)
            self.fields["logit_bias_init_value"] = bias.item()


def copied_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that remembers neither the number type nor the attention that its model was loaded with."""
    fields = copy.deepcopy(config.to_dict())
    for name in ("dtype", "torch_dtype"):
        fields.pop(name, None)
    return type(config).from_dict(fields)


def build_model(
    model_class: type[PreTrainedModel], source: SourceCheckpoint, overrides: dict[str, Any]
) -> PreTrainedModel:
    """A float32 model in evaluation mode with the weights of `source`; its other parts follow torch's random state.

    Args:
        overrides: fields of RegionMedClipConfig that `source` does not decide, and `attn_implementation`.

    Raises:
        ValueError: for another override, and for a tensor that is missing, left over or of another shape.
    """
    overrides = dict(overrides)
    attention = overrides.pop("attn_implementation", None)
    fields = {**source.fields, **_checked_overrides(model_class, source, overrides)}
    fields["logit_scale_max"] = _largest_scale(source, overrides.get("logit_scale_max"))
    towers = {"vision_config": copied_config(source.vision_config), "text_config": copied_config(source.text_config)}
    model = model_class(model_class.config_class(**towers, **fields))
    load_weights(model, source)
    if attention is not None:
        model.set_attn_implementation(attention)
    for name, reason in source.ignored.items():
        logger.warning(f"{source.name}: the tensor {name!r} is not used: {reason}.")
    return model.eval()


def _checked_overrides(
    model_class: type[PreTrainedModel], source: SourceCheckpoint, overrides: dict[str, Any]
) -> dict[str, Any]:
    decided = {"vision_config", "text_config", *source.fields}
    known = {item.name for item in dataclasses.fields(model_class.config_class)} - decided
    for name, value in overrides.items():
        if name not in known:
            why = "the checkpoint decides it" if name in decided else "the configuration has no such field"
            raise ValueError(
                f"{source.name}: {name}={value!r} cannot be given, {why}; fields that can are "
                f"{', '.join(sorted(known & set(model_class.config_class.__annotations__)))} and attn_implementation."
            )
    return overrides


def _largest_scale(source: SourceCheckpoint, wanted: float | None) -> float:
    """`logit_scale_max` that the checkpoint's temperature fits under: SigLIP's lies above the usual 100."""
    limit = SCALE_STEP if wanted is None else wanted
    log_scale = source.weights.get("temperatures.image_text")
    scale = 0.0 if log_scale is None else math.exp(log_scale.item())
    if scale <= limit * (1 + SCALE_ROUNDING):
        return limit
    if wanted is not None:
        raise ValueError(
            f"{source.name}: its inverse temperature is {scale:.4f} and logit_scale_max {wanted}; training would bring "
            "it down at the first step. Leave logit_scale_max out, or give a larger one."
        )
    return math.ceil(scale / SCALE_STEP) * SCALE_STEP


@torch.no_grad()
def load_weights(model: PreTrainedModel, source: SourceCheckpoint) -> None:
    """Copies all of `source.weights` into `model`.

    Raises:
        ValueError: naming the first tensors that are missing, left over or of another shape.
    """
    state = model.state_dict()
    missing = [name for name in state if name not in source.weights and not name.startswith(source.fresh)]
    for name in [name for name in source.weights if name not in state and name.startswith(POOLING_LAYERS)]:
        del source.weights[name]
        source.ignored[name] = "this model pools otherwise, past that layer"
    unknown = [name for name in source.weights if name not in state]
    for problem, names in (("lacks", missing), ("has, and this model does not,", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{source.name} {problem} the weights of {', '.join(names[:3])}{more}; every tensor must have its "
                "place. Look whether the files are complete and fit their configuration."
            )
    for name, tensor in source.weights.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{source.name} has shape {tuple(tensor.shape)} for {name} and its configuration asks for "
                f"{tuple(state[name].shape)}; take the configuration that belongs to the weights."
            )
    model.load_state_dict(source.weights, strict=False)


@torch.no_grad()
def start_region_path(model: PreTrainedModel) -> None:
    """Makes the untrained region path give nearly the dense features of the source, seen through its own projection.

    What the source does with a pooled state, the region path does with a region's: where that is one matrix it is
    copied; where a pooling layer comes before (SigLIP's attention head, a dense layer with tanh), the best affine map
    for what that layer gives for one patch alone. What the prompter adds to a region's mean feature is turned down to a
    tenth; nothing is zero, so all of it still learns.
    """
    roi_processor = model.roi_processor
    if isinstance(pooling_layer(model), nn.Identity):
        roi_processor.projection.weight.copy_(model.visual_projection.weight)
    else:
        matrix, shift = _affine_fit(model)
        roi_processor.projection.weight.copy_(matrix)
        roi_processor.output_norm.bias.copy_(torch.linalg.lstsq(matrix, shift[:, None]).solution[:, 0])
    if roi_processor.prompter is not None:
        added = [roi_processor.prompter.box_encoding.proj]
        for block in roi_processor.prompter.blocks:
            added += [block.attention.out_proj, block.mlp[-1]]
        for layer in added:
            layer.weight.mul_(QUIET_CONTEXT)


def pooling_layer(model: PreTrainedModel) -> nn.Module:
    """What the tower pools its patches (B, P, C) by to (B, C); the identity for a class token and for their mean."""
    tower = model.vision_model
    if model.config.image_pooling == "mean":
        return nn.Identity()
    if model.config.image_pooling == "pooler":
        return tower.pooler
    return tower.head if tower.config.model_type == "siglip_vision_model" else nn.Identity()


def _affine_fit(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """(D, C) matrix and (D,) shift that take a normalised state nearest to where the source takes that patch alone.

    Nearest in the mean square over states of independent normal channels, scaled and shifted as by the tower's last
    norm; always the same states, whatever torch's random state is.
    """
    tower = model.vision_model
    norm = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.layernorm
    width = tower.config.hidden_size
    drawn = torch.randn(SAMPLES_PER_CHANNEL * width, width, generator=torch.Generator().manual_seed(0))
    states = drawn * norm.weight + norm.bias
    embedded = model.visual_projection(pooling_layer(model)(states[:, None]))  # (samples, D)
    known = nn.functional.pad(nn.functional.layer_norm(states, (width,)), (0, 1), value=1.0)  # (samples, C + 1)
    solution = torch.linalg.solve(known.t() @ known, known.t() @ embedded)
    return solution[:-1].t(), solution[-1]
