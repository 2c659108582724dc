"""Plan + groups -> this rank's stage of the model, on its device, with reproducible first weights."""

from __future__ import annotations

import torch

from megatron_most.config import Plan
from megatron_most.model.core_config import DTYPES
from megatron_most.model.gpt import MostModel
from megatron_most.parallel import Groups
from megatron_most.upstream import Experts, SdpaAttention, has_grouped, has_varlen


def build_model(plan: Plan, groups: Groups, device: torch.device | str = "cpu") -> MostModel:
    """Call after start_groups. First weights depend on the seed and the layout; loaded ones on neither."""
    model = MostModel(plan, groups).to(device)
    if plan.config.engine.kernels == "auto":
        choose_kernels(model, plan, torch.device(device))
    return model


def choose_kernels(model: MostModel, plan: Plan, device: torch.device) -> None:
    """What this device does faster than by the plain path, layer by layer the same."""
    dtype = DTYPES[plan.config.engine.precision]
    for module in model.modules():
        if isinstance(module, Experts) and has_grouped(device, dtype):
            module.lay_together()
        if isinstance(module, SdpaAttention):
            module.lays_end_to_end = has_varlen(device, dtype)
