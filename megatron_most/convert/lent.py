"""Weights that a module has only while it computes: read from a file before, let go of after.

A model of which no weight was ever allocated then runs in the memory of its largest module. Numbers come as they are
stored and are made float32 here, so that two models of the same files compute with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

Read = Callable[..., torch.Tensor]
"""read(name, first=0, rows=None): rows of a whole tensor, all of them by default."""
ROWS_AT_ONCE = 8192
"""Of the vocabulary."""


def lend(module: torch.nn.Module, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> None:
    """From now on these weights and buffers of the module itself are there only while its forward runs.

    read: by their names in the module.
    """
    absent = {name: torch.empty_like(getattr(module, name), device="meta") for name in names}
    module.register_forward_pre_hook(partial(_bring, absent, read))
    module.register_forward_hook(partial(_take_away, absent), always_call=True)


def _bring(absent: dict[str, torch.Tensor], read: Callable[[str], torch.Tensor], module: Any, inputs: Any) -> None:
    is_idle = bool(inputs) and torch.is_tensor(inputs[0]) and not inputs[0].numel()  # an expert that nobody chose
    for name, shape in absent.items():
        _put(module, name, torch.empty(shape.shape) if is_idle else read(name).float())


def _take_away(absent: dict[str, torch.Tensor], module: Any, *_: Any) -> None:
    for name, nothing in absent.items():
        _put(module, name, nothing)


def _put(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    is_weight = name in dict(module.named_parameters(recurse=False))
    setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False) if is_weight else tensor)


class EmbeddingRows(torch.nn.Module):
    """An embedding that reads the rows it is asked for."""

    def __init__(self, read: Read, name: str) -> None:
        super().__init__()
        self.read, self.name = read, name

    def forward(self, ids_BS: torch.Tensor) -> torch.Tensor:
        used, places_BS = ids_BS.unique(return_inverse=True)
        rows = torch.cat([self.read(self.name, id, 1) for id in used.tolist()]).float()
        return F.embedding(places_BS, rows)
