"""Megatron-Core, DeepSpeed and transformers as they are: versions, what a CPU lacks, and the pieces we had to mend.

Private names, patches and version checks stand in this room and nowhere else.
"""

from megatron_most.upstream.attention import SdpaAttention
from megatron_most.upstream.context import piece, zigzag
from megatron_most.upstream.mla import MendedMLA
from megatron_most.upstream.norm import RMSNorm
from megatron_most.upstream.prepare import prepare
from megatron_most.upstream.specs import submodules_of
from megatron_most.upstream.versions import core_version, find_facts
from megatron_most.upstream.zero import (
    Mpu,
    expert_group_name,
    full_weight,
    make_zero_engine,
    mark_for_zero,
    prepare_deepspeed,
)

__all__ = [
    "MendedMLA",
    "Mpu",
    "RMSNorm",
    "SdpaAttention",
    "core_version",
    "expert_group_name",
    "find_facts",
    "full_weight",
    "make_zero_engine",
    "mark_for_zero",
    "piece",
    "prepare",
    "prepare_deepspeed",
    "submodules_of",
    "zigzag",
]
