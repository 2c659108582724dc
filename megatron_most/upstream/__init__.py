"""Megatron-Core, DeepSpeed and transformers as they are: versions, what a CPU lacks, and the pieces we had to mend.

Private names, patches and version checks stand in this room and nowhere else.
Names are loaded when they are first asked for: to know versions takes no import of Core.
"""

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.upstream.attention import SdpaAttention, has_varlen
    from megatron_most.upstream.context import piece, zigzag
    from megatron_most.upstream.dispatchers import TrueCountAlltoAll
    from megatron_most.upstream.experts import Experts, is_elsewhere
    from megatron_most.upstream.linears import with_linears
    from megatron_most.upstream.lookback import KVCache, Lookback
    from megatron_most.upstream.mla import MendedMLA, has_fused_turn
    from megatron_most.upstream.norm import RMSNorm
    from megatron_most.upstream.preparation import prepare
    from megatron_most.upstream.products import has_grouped
    from megatron_most.upstream.specs import submodules_of, with_module
    from megatron_most.upstream.unallocated import Unallocated
    from megatron_most.upstream.versions import core_version, find_facts, find_versions, versions_of
    from megatron_most.upstream.zero import (
        Mpu,
        expert_group_name,
        make_zero_engine,
        mark_for_zero,
        prepare_deepspeed,
    )
    from megatron_most.upstream.zero_state import (
        full_moment,
        full_weight,
        gradient_fragments,
        link_moments,
        make_room_for_moments,
        scaler_state,
        set_full,
        set_scaler_state,
        whole_shape,
    )

_HOMES = {
    "attention": ("SdpaAttention", "has_varlen"),
    "context": ("piece", "zigzag"),
    "dispatchers": ("TrueCountAlltoAll",),
    "experts": ("Experts", "is_elsewhere"),
    "linears": ("with_linears",),
    "lookback": ("KVCache", "Lookback"),
    "mla": ("MendedMLA", "has_fused_turn"),
    "norm": ("RMSNorm",),
    "preparation": ("prepare",),
    "products": ("has_grouped",),
    "specs": ("submodules_of", "with_module"),
    "unallocated": ("Unallocated",),
    "versions": ("core_version", "find_facts", "find_versions", "versions_of"),
    "zero": ("Mpu", "expert_group_name", "make_zero_engine", "mark_for_zero", "prepare_deepspeed"),
    "zero_state": (
        "full_moment",
        "full_weight",
        "gradient_fragments",
        "link_moments",
        "make_room_for_moments",
        "scaler_state",
        "set_full",
        "set_scaler_state",
        "whole_shape",
    ),
}

__all__ = [
    "Experts",
    "KVCache",
    "Lookback",
    "MendedMLA",
    "Mpu",
    "RMSNorm",
    "SdpaAttention",
    "TrueCountAlltoAll",
    "Unallocated",
    "core_version",
    "expert_group_name",
    "find_facts",
    "find_versions",
    "full_moment",
    "full_weight",
    "gradient_fragments",
    "has_fused_turn",
    "has_grouped",
    "has_varlen",
    "is_elsewhere",
    "link_moments",
    "make_room_for_moments",
    "make_zero_engine",
    "mark_for_zero",
    "piece",
    "prepare",
    "prepare_deepspeed",
    "scaler_state",
    "set_full",
    "set_scaler_state",
    "submodules_of",
    "versions_of",
    "whole_shape",
    "with_linears",
    "with_module",
    "zigzag",
]

__getattr__ = lazy_names(__name__, _HOMES)
