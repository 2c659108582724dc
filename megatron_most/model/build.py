"""Plan + groups -> this rank's stage of the model, on its device, with reproducible first weights."""

from __future__ import annotations

import torch

from megatron_most.config import Plan
from megatron_most.errors import ConfigError
from megatron_most.model.core_config import DTYPES
from megatron_most.model.gpt import MostModel
from megatron_most.moe import ModalityRouter
from megatron_most.parallel import Groups
from megatron_most.runtime import has_triton
from megatron_most.upstream import Experts, SdpaAttention, TrueCountAlltoAll, has_fused_turn, has_grouped, has_varlen


def build_model(plan: Plan, groups: Groups, device: torch.device | str = "cpu") -> MostModel:
    """Call after start_groups. First weights depend on the seed and the layout; loaded ones on neither."""
    model = MostModel(plan, groups).to(device)
    if plan.config.engine.kernels != "plain":
        choose_kernels(model, plan, torch.device(device))
    return model


def choose_kernels(model: MostModel, plan: Plan, device: torch.device) -> None:
    """What this device does faster than by the plain path, layer by layer the same."""
    dtype, is_fp8 = DTYPES[plan.config.engine.precision], plan.config.engine.kernels == "fp8"
    if is_fp8 and not (has_grouped(device, dtype) and has_triton(device)):
        wrong = "products of experts in fp8 want a Hopper GPU or later, engine.precision bf16, and Triton"
        raise ConfigError("engine.kernels", "fp8", wrong, 'use "auto"')
    for module in model.modules():
        if isinstance(module, Experts) and has_grouped(device, dtype):
            module.lay_together()
            if is_fp8:
                module.take_fp8()
        if isinstance(module, SdpaAttention):
            module.lays_end_to_end = has_varlen(device, dtype)
        if has_triton(device):
            fuse(module)
    if has_triton(device) and has_fused_turn(model.config):
        model.config.apply_rope_fusion = True


def fuse(module: torch.nn.Module) -> None:
    """Kernels of our own, wherever a layer has something for them."""
    if isinstance(module, Experts | MostModel):
        module.is_fused = True
    if isinstance(module, ModalityRouter):
        module.fuse()
    if isinstance(dispatcher := getattr(module, "token_dispatcher", None), TrueCountAlltoAll):
        dispatcher.is_fused = True
