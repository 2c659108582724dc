"""ZeRO's masters and moments in and out, as tensors that are whole over the ranks ZeRO has spread them over.

DeepSpeed's own getters are used where they are right. It links moments once, after the first optimizer group's step,
when the others have none; ZeRO-3's setters of whole values fail where a partition is padded; and a fresh optimizer has
no moments to set. Setters never touch the model's own weights: build the model from the checkpoint first.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def make_room_for_moments(optimizer: Any, updates: int) -> None:
    """Zero moments for a fresh optimizer that is to go on after `updates` steps."""
    flats = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
    for flat in flats:
        optimizer.optimizer.state[flat] = {
            "step": torch.tensor(float(updates)),
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
