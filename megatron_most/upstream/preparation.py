"""What a process does once before it builds anything of Megatron-Core's."""

from __future__ import annotations

import warnings

from megatron_most.upstream.versions import core_version


def prepare(device: str) -> None:
    """Check the versions, mend the dispatcher; on a CPU, put the stand-ins in. A second call does nothing."""
    core_version()
    from megatron_most.upstream import dispatchers

    dispatchers.install()
    warnings.filterwarnings("ignore", module=r"(megatron\.core|torch)(\..*)?")  # theirs to mend; ours stay
    if device == "cpu":
        from megatron_most.upstream import megatron_cpu

        megatron_cpu.install()
