"""Core's linear layers, without what there is to do for other ranks where there are none.

Core takes each product through four functions of autograd, two of them its own, for tensor parallelism. On one
tensor-parallel rank that is F.linear, to the bit, and a fifth of the time of a cached token of a small model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_most.upstream.specs import submodules_of


class Column(ColumnParallelLinear):
    """Equal to ColumnParallelLinear."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_alone = _is_alone(self)

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if weight is not None or not self._is_alone:
            return super().forward(input_, weight, runtime_gather_output)
        return _product(self, input_)


class Row(RowParallelLinear):
    """Equal to RowParallelLinear."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_alone = _is_alone(self)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _product(self, input_) if self._is_alone else super().forward(input_)


def with_linears(spec: Any) -> Any:
    """The spec edited: these stand wherever it names Core's, at any depth."""
    submodules = submodules_of(spec)
    for field in dataclasses.fields(submodules) if dataclasses.is_dataclass(submodules) else ():
        part = getattr(submodules, field.name)
        if isinstance(part, type) and part in _OURS:
            if not field.name.endswith("_down_proj"):  # of MLA, which takes Core's alone; see mla.py
                setattr(submodules, field.name, _OURS[part])
        else:
            with_linears(part)
    return spec


_OURS: dict[Any, type] = {ColumnParallelLinear: Column, RowParallelLinear: Row}


def _is_alone(linear: Any) -> bool:
    """No other rank has a part of it, and nothing is to be done but the product."""
    config = linear.config
    return (
        linear.weight is not None and linear.tp_group.size() == 1
        and not (linear.sequence_parallel or linear.explicit_expert_comm or linear.gradient_accumulation_fusion)
        and not (config.defer_embedding_wgrad_compute or config.cpu_offloading)
    )  # fmt: skip


def _product(linear: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    if linear.skip_bias_add:
        return F.linear(x, linear.weight), linear.bias
    return F.linear(x, linear.weight, linear.bias), None
