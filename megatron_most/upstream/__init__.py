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

__all__ = [
    "MendedMLA",
    "RMSNorm",
    "SdpaAttention",
    "core_version",
    "find_facts",
    "piece",
    "prepare",
    "submodules_of",
    "zigzag",
]
