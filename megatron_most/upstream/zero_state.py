"""ZeRO's masters and moments in and out, as tensors that are whole over the ranks ZeRO has spread them over; and the
gradients between the last backward pass and the step, as each rank holds them.

DeepSpeed's own getters are used where they are right. It links moments once, after the first optimizer group's step,
when the others have none; ZeRO-3's setters of whole values fail where a partition is padded; and a fresh optimizer has
no moments to set. Setters never touch the model's own weights: build the model from the checkpoint first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import pad

Weight = torch.nn.Parameter


def full_weight(weight: Weight) -> torch.Tensor:
    """This rank's float32 master of a weight, whole over the ranks that ZeRO has spread it over. Those all call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    value = safe_get_full_fp32_param(weight)
    return weight.detach().float() if value is None else value.view(tuple(whole_shape(weight)))


def full_moment(weight: Weight, kind: str) -> torch.Tensor:
    """exp_avg or exp_avg_sq of a weight, whole likewise. Call link_moments before."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(weight, kind).view(tuple(whole_shape(weight)))


def whole_shape(weight: Weight) -> Sequence[int]:
    """ZeRO-3 empties weights and remembers their shapes."""
    return getattr(weight, "ds_shape", weight.shape)


def link_moments(optimizer: Any) -> None:
    """ZeRO-1 and 2: let every weight find its moments, those of the second and later optimizer groups too."""
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_state(optimizer: Any) -> dict[str, float]:
    """What fp16's moving loss scale depends on; nothing where losses are not scaled, or always alike."""
    scaler = getattr(optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in _SCALER} if getattr(scaler, "dynamic", False) else {}


def set_scaler_state(optimizer: Any, values: Mapping[str, float]) -> None:
    """The same back, where there is such a scale."""
    if getattr(getattr(optimizer, "loss_scaler", None), "dynamic", False):
        for name in values.keys() & set(_SCALER):
            setattr(optimizer.loss_scaler, name, values[name])


def make_room_for_moments(optimizer: Any, updates: int) -> None:
    """Zero moments for a fresh optimizer that is to go on after `updates` steps."""
    flats = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
    for flat in flats:
        optimizer.optimizer.state[flat] = {
            "step": torch.tensor(float(updates), device=flat.device),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    link_moments(optimizer)


def set_full(weight: Weight, value: torch.Tensor, moment: str | None) -> None:
    """Set the master, or the moment named, from a whole tensor; every rank passes the same."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    extra = () if moment is None else (moment,)
    if not hasattr(weight, "ds_id"):
        weight.set_full_hp_param(value.to(weight.device), *extra)  # type: ignore[attr-defined]
        return
    size, group = weight.ds_tensor.numel(), weight.ds_process_group  # type: ignore[attr-defined]
    flat = pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    part = flat.narrow(0, size * dist.get_rank(group), size).to(weight.ds_tensor.device)  # type: ignore[attr-defined]
    setter = safe_set_local_fp32_param if moment is None else safe_set_local_optimizer_state
    setter(weight, part, *extra)


def gradient_fragments(optimizer: Any, weights: Iterable[Weight]) -> Iterator[tuple[Weight, torch.Tensor]]:
    """(weight, what this rank holds of its reduced gradient), times the loss scale: all ranks that ZeRO has spread a
    weight over hold the whole of it once. Call between the last backward pass of a step and the step.

    ZeRO-1 and 2 with offload keep the norms alone where they can be read without waiting: those are given, as tensors
    of one number.
    """
    from deepspeed.utils import safe_get_local_grad

    for weight in weights:
        if not weight.requires_grad:
            continue
        if hasattr(weight, "ds_id"):
            yield weight, safe_get_local_grad(weight)
        elif (mapping := weight._hp_mapping) is None:  # type: ignore[attr-defined]
            continue
        elif getattr(optimizer, "cpu_offload", False):
            yield weight, optimizer.norm_for_param_grads[optimizer.get_param_id(weight)]
        else:
            fragment = mapping.get_lp_grad_fragment(weight._index_in_param_group).flatten()  # type: ignore[attr-defined]
            address = mapping.lp_fragment_address
            if fragment.numel() != address.numel:  # bf16 under ZeRO-1: every rank holds the whole reduced gradient
                fragment = fragment.narrow(0, address.start, address.numel)
            yield weight, fragment
