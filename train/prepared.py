"""A stage's model as the processes share it: alone, replicated (DDP) or sharded (FSDP2), as Accelerate was configured.

Under FSDP2 a copy of the model is sharded and trained, stage by stage, and its weights given back: the model itself
stays a plain one that adapters, teachers, evaluation and saving can use. Sharded parameters are kept and reduced in
float32, and mixed precision is autocast's, as it is without: FSDP2's own casts would round boxes and temperatures too.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn

from modeling_regionmed_clip import RegionMedClipModel

from .gather import shard_like, whole_tensor
from .stage_model import StageModel, StageOutput


class PreparedStage:
    """`model` holds the parameters that train, under their own names; calling the stage runs a `StageModel` on it."""

    def __init__(self, model: RegionMedClipModel, accelerator: Accelerator):
        self._plain = model
        self._accelerator = accelerator
        self.is_sharded = accelerator.is_fsdp2
        self.model = copy.deepcopy(model) if self.is_sharded else model
        stage_model = StageModel(self.model)
        if self.is_sharded:
            model.to("cpu")  # only the shards take the devices' memory while the stage runs
            accelerator.state.fsdp_plugin.mixed_precision_policy = None
            self.wrapped = fsdp2_prepare_model(accelerator, stage_model.to(accelerator.device))
        else:
            self.wrapped = accelerator.prepare_model(stage_model)

    def __call__(self, **tensors: Tensor | None) -> StageOutput:
        """See `StageModel.forward`."""
        if not self.is_sharded:
            return self.wrapped(**tensors)  # Accelerate has put autocast around it
        with self._accelerator.autocast():
            return convert_to_fp32(self.wrapped(**tensors))

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) pairs that move, for the optimiser."""
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def without_sync(self) -> AbstractContextManager[None]:
        """A context in which a backward pass leaves every process with gradients of its own."""
        return self._accelerator.no_sync(self.wrapped)

    @torch.no_grad()
    def give_back(self) -> RegionMedClipModel:
        """The plain model on the device with the weights as they now are; every process must call it."""
        if self.is_sharded:
            targets = self._plain.state_dict()
            for name, tensor in self.model.state_dict().items():
                targets[name].copy_(whole_tensor(tensor))
            self._plain.to(self._accelerator.device)
        return self._plain


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict with whole tensors, on every process; all must call it."""
    return {name: whole_tensor(tensor) for name, tensor in module.state_dict().items()}


def load_full_state_dict(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads whole tensors, equal on every process, into a module that may be sharded; every name must match."""
    current = module.state_dict()
    module.load_state_dict({name: _like(tensor, current.get(name)) for name, tensor in tensors.items()})


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state dict with whole tensors, on every process; all must call it."""
    state = optimizer.state_dict()
    whole = {
        index: {key: whole_tensor(value) if isinstance(value, Tensor) else value for key, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return {**state, "state": whole}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `full_optimizer_state` gave, equal on every process; the parameters may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        index: {key: _like(value, parameters[index]) if _is_moment(value) else value for key, value in moments.items()}
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0  # the step count is a scalar and never sharded


def _like(tensor: Tensor, model: Tensor | None) -> Tensor:
    return tensor if model is None else shard_like(tensor, model)
