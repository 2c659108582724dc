"""From a config to a running set of ranks, in the order that lets mistakes show before anything waits for anything.

Find the launch, the device and the library versions; build the plan (ConfigError here, on every rank alike); only
then start torch.distributed and Core's groups. Leaving by an exception never waits for other ranks (see
runtime/ranks.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_most.config import Plan, RunConfig, build
from megatron_most.errors import LayoutError
from megatron_most.model import core_config
from megatron_most.parallel import Groups, start_groups, stop_groups
from megatron_most.runtime import (
    Device,
    Launch,
    Ranks,
    find_device,
    find_launch,
    num_cores,
    process_group,
    quiet_upstream,
    seed_everything,
    set_threads,
)
from megatron_most.upstream import find_facts, prepare

_GAINS_FROM_THREADS = 512  # hidden size; most-tiny takes 2.3 times as long on two threads of a busy machine as on one


@dataclass(frozen=True)
class Session:
    """A rank that has met the others."""

    plan: Plan
    groups: Groups
    ranks: Ranks

    @property
    def device(self) -> Device:
        return self.ranks.device


def make_plan(config: RunConfig, world_size: int, device: Device) -> Plan:
    """Every check there is, without a process group."""
    plan = build(config, find_facts(world_size, device.kind))
    core_config(plan)  # Core has opinions of its own
    return plan


@contextmanager
def open_groups(plan: Plan, ranks: Ranks) -> Iterator[Session]:
    """Core's groups over ranks that have met; one layout at a time in a process."""
    quiet_upstream()
    prepare(ranks.device.kind)
    seed_everything(plan.config.train.seed)
    try:
        groups = start_groups(plan.layout, plan.config.train.seed, ranks.timeout_s)
        _require_same_placement(plan, ranks)
        yield Session(plan, groups, ranks)
    finally:
        stop_groups()


def _require_same_placement(plan: Plan, ranks: Ranks) -> None:
    """Each rank has read moe.load_file for itself; ranks that dealt by other loads would send tokens astray."""
    if plan.config.moe.load_file is None or ranks.world_size == 1:
        return
    dealt = sorted(plan.moe.dealt.items()) if plan.moe is not None else []
    digest = int.from_bytes(hashlib.blake2b(repr(dealt).encode(), digest_size=7).digest())
    seen = torch.tensor([digest, -digest])
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    if seen[0] != -seen[1]:  # the same numbers everywhere, so all ranks raise
        raise LayoutError(
            f"moe.load_file = {plan.config.moe.load_file!r} is not the same file for all ranks; put one copy where "
            "every node sees it"
        )


def spare_threads(plan: Plan, device: Device) -> None:
    """One thread for a model so small that more would wait for each other."""
    if device.kind == "cpu" and plan.config.model.hidden_size < _GAINS_FROM_THREADS:
        set_threads(1)


@contextmanager
def open_session(config: RunConfig, launch: Launch | None = None) -> Iterator[Session]:
    """The whole way, for one process as for many."""
    launch = launch or find_launch()
    device = find_device(config.device, launch.local_rank)
    plan = make_plan(config, launch.world_size, device)
    # More threads than cores would only wait. Slurm's number is of one task, which is this rank or torchrun's agent.
    own = launch.agent_restarts is None and "SLURM_CPUS_PER_TASK" in os.environ
    set_threads(max(1, num_cores() // (1 if own else launch.local_world_size)))
    group = process_group(launch, device, hang_after_s=config.train.hang_after_s)
    with group as ranks, open_groups(plan, ranks) as session:
        yield session
