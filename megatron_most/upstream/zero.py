"""DeepSpeed's ZeRO under Megatron-Core's groups: what has to be told to it, and where it would be silently wrong.

Unmodified DeepSpeed 0.19. It asks an "mpu" for groups, reads marks on parameters, and finds expert groups in a registry
of its own; Core's groups go into all three. Each rule below was found by breaking it: figures are loss / gradient norm
errors.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from megatron_most.config import LayoutPlan
from megatron_most.upstream.versions import deepspeed_version

Weight = torch.nn.Parameter


class Mpu:
    """The six methods DeepSpeed calls. "Data parallel" is data x context, "model parallel" is tensor x pipeline.

    It must not have initialize_sequence_parallel or get_sequence_*: DeepSpeed looks for them and turns Ulysses rules
    on. Without an mpu tensor parallelism is silently wrong (1e-1 / 1e-1).
    """

    def __init__(self, data_context: dist.ProcessGroup, model: dist.ProcessGroup, tensor: dist.ProcessGroup) -> None:
        self._data_context, self._model, self._tensor = data_context, model, tensor

    def get_data_parallel_world_size(self) -> int:
        return self._data_context.size()

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._data_context

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._model

    def get_model_parallel_world_size(self) -> int:
        return self._model.size()

    def get_model_parallel_rank(self) -> int:
        return self._model.rank()

    def get_tensor_model_parallel_rank(self) -> int:
        return self._tensor.rank()


def prepare_deepspeed(device: torch.device) -> None:
    """Once a process, after torch's process group: no C++ is compiled for CPU collectives (a minute), and few words.

    DeepSpeed must hear of the device before its first import, or it guesses; and it reads the local rank from its
    launcher's variable alone.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    deepspeed_version()
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def mark_for_zero(
    weights: list[tuple[str, Weight]], layout: LayoutPlan, stage: int, expert_group: dist.ProcessGroup,
    expert_data: dist.ProcessGroup, tensor: dist.ProcessGroup,
) -> None:  # fmt: skip
    """Register the expert groups and mark every weight. `expert_group` is expert x expert-tensor ranks: with the plain
    expert group ZeRO-3 loses the other tensor half from the norm (3e-4 / 3e-2).
    """
    from deepspeed.utils import groups

    name = expert_group_name(layout)
    groups._EXPERT_PARALLEL_GROUP[name] = expert_group
    groups._EXPERT_PARALLEL_GROUP_RANKS[name] = dist.get_process_group_ranks(expert_group)
    groups._EXPERT_DATA_PARALLEL_GROUP[name] = expert_data
    groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = dist.get_process_group_ranks(expert_data)
    groups.expert_tensor_parallel_world_size = layout.expert_tensor
    for _, weight in weights:
        if getattr(weight, "shared", False):  # the last stage's copy of a tied embedding (norm 0.18 off without)
            weight.ds_pipe_replicated = True  # type: ignore[attr-defined]
        if not getattr(weight, "allreduce", True):
            weight.group_name = name  # type: ignore[attr-defined]
            # "Another tensor rank holds other numbers": true of uncut expert weights too (norm 2e-2 off without).
            weight.tensor_model_parallel = layout.tensor > 1  # type: ignore[attr-defined]
            if stage == 3:  # without the placement family the norm is 9e-2 off
                weight.ds_zero_partition_process_group = expert_data  # type: ignore[attr-defined]
                weight.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
                weight.ds_zero_partition_group_name = name  # type: ignore[attr-defined]
        elif getattr(weight, "sequence_parallel", False) and tensor.size() > 1 and weight.requires_grad:
            weight.register_hook(lambda gradient: _summed(gradient, tensor))  # (5e-3 / 7e-2) without


def expert_group_name(layout: LayoutPlan) -> str:
    return f"ep_size_{layout.expert}"


def _summed(gradient: torch.Tensor, ranks: dist.ProcessGroup) -> torch.Tensor:
    gradient = gradient.clone()
    dist.all_reduce(gradient, group=ranks)
    return gradient


def make_zero_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, mpu: Mpu, settings: dict[str, Any]
) -> Any:
    """A DeepSpeedEngine that knows of experts. deepspeed.initialize builds only its own class, hence by hand."""
    from deepspeed import DeepSpeedConfig, DeepSpeedEngine
    from deepspeed.runtime.constants import BFLOAT16
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    class ExpertEngine(DeepSpeedEngine):
        def _configure_distributed_model(self, model: torch.nn.Module) -> None:
            has_experts = any(not getattr(weight, "allreduce", True) for weight in model.parameters())
            self.has_moe_layers = has_experts and self.zero_optimization_stage() < 3
            super()._configure_distributed_model(model)

        def _do_optimizer_sanity_check(self, basic_optimizer: torch.optim.Optimizer) -> Any:
            """For bf16 with float32 gradients DeepSpeed takes another optimizer class under ZeRO-1 alone, whose state
            is laid out otherwise; that of ZeRO-2 does both stages in any precision. Without ZeRO the optimizer given
            stays as it is: DeepSpeed's wrapper starts Adam with a step of zeros, which counts, and decays the weights.
            """
            if not self.zero_optimization():
                return None
            wrapper = super()._do_optimizer_sanity_check(basic_optimizer)
            return ZERO_OPTIMIZATION if wrapper == BFLOAT16 else wrapper

    # DeepSpeedConfig swallows errors of the mpu (the world size silently becomes 1): ask it first.
    assert mpu.get_data_parallel_world_size() >= 1, "an empty data-parallel group"
    config = DeepSpeedConfig(settings, mpu)
    return ExpertEngine(
        args=None,
        model=model,
        optimizer=optimizer,
        mpu=mpu,
        config=settings,
        config_class=config,
        dont_change_device=True,
    )
