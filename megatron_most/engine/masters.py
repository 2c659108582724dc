"""AdamW over whole float32 masters, one a weight: the optimizer of every rank that spreads no state over others.

In float32 a weight is its own master; below, the optimizer moves the master and the weight gets a rounded copy. Weights
whose moments no checkpoint holds (they were frozen then) get zero moments and the same number of steps as all others:
a checkpoint keeps one number, and ZeRO's flat groups have but one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_most.config import TrainConfig
from megatron_most.engine.interface import ReadLocal
from megatron_most.model import MostModel

MOMENTS = ("exp_avg", "exp_avg_sq")


class Masters:
    """The weights of a model that learn, their masters in the same order, and the optimizer that moves these."""

    def __init__(self, model: MostModel, train: TrainConfig) -> None:
        self.model = model
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = [weight if weight.dtype == torch.float32 else _master(weight) for weight in self.weights]
        decayed = [weight for weight in self.masters if weight.ndim > 1]
        others = [weight for weight in self.masters if weight.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=train.learning_rate,
            betas=train.betas,
            eps=train.epsilon,
            fused=True,
        )

    def take_gradients(self) -> None:
        """Before the optimizer's step: the masters get the weights' gradients."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                assert weight.grad is not None, "every gradient is filled by now"
                master.grad = weight.grad.float()

    def give_back(self) -> None:
        """After it: the weights get the masters' values, rounded."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.data.copy_(master.data)

    def state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """See interface.Engine."""
        masters = dict(zip(self.weights, self.masters, strict=True))
        for name, weight in self.model.named_parameters():
            master = masters.get(weight, weight)
            yield "weight", name, master.detach().float()
            for kind in MOMENTS:
                if kind in self.optimizer.state.get(master, {}):
                    yield kind, name, self.optimizer.state[master][kind]
        for name, buffer in self.model.named_buffers():
            yield "weight", name, buffer

    @torch.no_grad()
    def load_state(self, read: ReadLocal, updates: int) -> None:
        """See interface.Engine."""
        names = {weight: name for name, weight in self.model.named_parameters()}
        for weight, master in zip(self.weights, self.masters, strict=True):
            name, shape = names[weight], weight.shape
            value = read("weight", name, shape)
            assert value is not None, "weights are there or an error"
            master.copy_(value)
            if not updates:
                continue
            here = {"step": torch.tensor(float(updates), device=master.device)}
            for kind in MOMENTS:
                moment = read(kind, name, shape)
                here[kind] = torch.zeros_like(master) if moment is None else moment.to(master.device)
            self.optimizer.state[master] = here


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach().float().clone())
