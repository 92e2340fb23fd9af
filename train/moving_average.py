"""The exponential moving average of the weights that a stage trains.

A stage's average begins as the weights with which the stage begins, and is that stage's alone: adapters, which come and
go between stages, never meet an average of other parameters. Update n (0, 1, ...) does

    average += (1 - d) * (weights - average)    with d = min(decay, (1 + n) / (10 + n)),

so that a short stage is not averaged over its first, untrained steps. Source: `num_updates` of
tf.train.ExponentialMovingAverage (tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .gather import shard_like, whole_tensor


def decay_at(decay: float, num_updates: int) -> float:
    """The weight that the update after `num_updates` others leaves to the average so far."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


class MovingAverage:
    """The average of the tensors of `model` that move, in float32: trained parameters, and buffers of real numbers.

    It holds on to the model's tensors, so that it belongs after whatever replaces them (adapters, sharding).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self._tensors = dict(_moving_tensors(model))
        self._average = {name: tensor.detach().float().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as they are now, once after every optimiser step."""
        share = 1 - decay_at(self.decay, self.num_updates)
        for name, tensor in self._tensors.items():
            self._average[name].lerp_(tensor.float(), share)
        self.num_updates += 1

    def state(self) -> dict[str, Tensor]:
        """The average by the model's names, float32 and whole; of a sharded model every process must ask for it."""
        return {name: whole_tensor(tensor) for name, tensor in self._average.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Goes on from an average of `num_updates` updates.

        Raises:
            ValueError: if it is one of other tensors.
        """
        if set(state) != set(self._average):
            odd = ", ".join(sorted(set(state) ^ set(self._average))[:5])
            raise ValueError(
                f"the checkpoint's moving average is of other tensors than the stage trains, for instance {odd}; "
                "resume with the program and recipe that wrote it."
            )
        for name, tensor in self._average.items():
            tensor.copy_(shard_like(state[name], tensor))
        self.num_updates = num_updates

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives the model the average for its weights."""
        for name, tensor in self._tensors.items():
            tensor.copy_(self._average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average for its weights; after it again its own, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._tensors.items():
                    tensor.copy_(own[name])


@torch.no_grad()
def load_average_into(model: nn.Module, average: Mapping[str, Tensor]) -> None:
    """Gives `model` the tensors of an average, by their names, for its weights; others stay as they are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in average.items():
        tensors[name].copy_(value)


def _moving_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():
            yield name, buffer
