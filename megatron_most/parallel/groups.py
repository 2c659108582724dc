"""Process groups of a layout, made by Megatron-Core, and the ranks each kind of reduction goes over.

replicated weight      sum over data x context ranks
expert weight          sum over expert-data ranks
sequence-parallel      additionally over tensor ranks (each saw its own tokens)
tied embedding         additionally over the first and last pipeline stage
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_most.config import LayoutPlan
from megatron_most.errors import LayoutError


@dataclass(frozen=True)
class Groups:
    """Process groups by what they are for."""

    data: dist.ProcessGroup
    """Same weights, other samples."""
    data_context: dist.ProcessGroup
    """Same weights, other samples or other pieces of a sequence."""
    expert_data: dist.ProcessGroup
    """Same experts, other tokens."""
    tensor: dist.ProcessGroup
    context: dist.ProcessGroup
    stages: dist.ProcessGroup
    """The pipeline."""
    tokens: dist.ProcessGroup
    """All ranks that hold other tokens of the same layers: tensor x data x context."""
    model: dist.ProcessGroup
    """Tensor x pipeline: together they hold each weight that is not an expert's once."""
    expert_cell: dist.ProcessGroup
    """Expert x expert-tensor: together they hold a layer's experts once."""
    experts: dist.ProcessGroup
    """Expert x expert-tensor x pipeline: together they hold each expert weight once."""
    tied: dist.ProcessGroup | None
    """First and last pipeline stage, where this rank is one of two."""
    is_first_stage: bool
    is_last_stage: bool


def start_groups(layout: LayoutPlan, seed: int, timeout_s: float) -> Groups:
    """Make Core's process groups (once a process) and seed its generators; every rank calls it. `timeout_s` bounds
    each of their collectives.
    """
    if dist.get_world_size() != layout.world:
        raise LayoutError(f"the plan is for {layout.world} processes, but {dist.get_world_size()} are running")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        distributed_timeout_minutes=math.ceil(timeout_s / 60),
    )
    seed_generators(seed)
    first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
    return Groups(
        data=parallel_state.get_data_parallel_group(),
        data_context=parallel_state.get_data_parallel_group(with_context_parallel=True),
        expert_data=parallel_state.get_expert_data_parallel_group(),
        tensor=parallel_state.get_tensor_model_parallel_group(),
        context=parallel_state.get_context_parallel_group(),
        stages=parallel_state.get_pipeline_model_parallel_group(),
        tokens=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True),
        model=parallel_state.get_model_parallel_group(),
        expert_cell=parallel_state.get_expert_tensor_and_model_parallel_group(),
        experts=parallel_state.get_expert_tensor_model_pipeline_parallel_group(),
        tied=parallel_state.get_embedding_group() if layout.pipeline > 1 and (first or last) else None,
        is_first_stage=first,
        is_last_stage=last,
    )


def seed_generators(seed: int) -> None:
    """Core's random streams from their beginning, while its groups are open."""
    stage = parallel_state.get_pipeline_model_parallel_rank()
    # Stages hold other layers: other numbers. Core adds up to thousands for tensor and expert ranks; a small stride
    # would start experts of one stage as copies of another's.
    model_parallel_cuda_manual_seed(seed + 1_000_000_007 * stage)


def stop_groups() -> None:
    """Forget Core's process groups, so that another layout can start in this process."""
    parallel_state.destroy_model_parallel()
