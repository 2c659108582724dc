"""Who started this process, and which rank of how many it is: the environment in, one frozen `Launch` out.

torchrun's variables win, then those of a Slurm step, else the process is alone. A batch script or an `salloc` shell has
`SLURM_JOB_ID` and even `SLURM_PROCID` without being a step, so only `SLURM_STEP_ID` counts, and not the ids that Slurm
keeps for such shells. Variables that are half set or contradict each other are refused by name: a job that guesses its
rank hangs or, worse, trains alone N times.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_most.errors import ConfigError

# Slurm numbers the shells it starts itself (interactive, batch, extern, pending) from the top of 32 bits.
_FIRST_RESERVED_STEP = 0xFFFF_FFF0
# Ports from the job number: 29500..31499, below the 32768 where Linux starts to hand out ephemeral ports.
_FIRST_PORT, _NUM_PORTS = 29500, 2000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process of a job. The defaults describe a process that is alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: int = 0
    num_nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0  # 0: any free one, which only a process that is alone can use
    store_file: Path | None = None  # ranks meet through this file instead of address and port (one machine only)
    agent_restarts: int | None = None  # torchrun's agent keeps the store at address:port and has restarted us so often
    job_id: str | None = None
    how: Literal["torchrun", "slurm", "alone"] = "alone"

    @property
    def hosts_store(self) -> bool:
        """Whether this process keeps the store that all ranks meet at, so that it must not end before the others."""
        return self.rank == 0 and self.store_file is None and self.agent_restarts is None


def find_launch(env: Mapping[str, str] = os.environ) -> Launch:
    """Read the environment. Raises ConfigError with the variable's name, its value and what to do."""
    if any(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return _from_torchrun(env)
    if "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_ID") < _FIRST_RESERVED_STEP:
        return _from_slurm(env)
    return Launch(job_id=env.get("SLURM_JOB_ID"))


def expand_nodelist(text: str) -> list[str]:
    """Slurm's short form of host names: `n[08-10],other` gives n08, n09, n10, other. ValueError if malformed."""
    parts = re.findall(r"(?:[^,\[\]]|\[[\d,-]+\])+", text)
    if ",".join(parts) != text or not text:
        raise ValueError(f"not a Slurm node list: {text!r}")
    return [host for part in parts for host in _expand_brackets(part)]


def _expand_brackets(part: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, tail = rest.partition("]")
    tails = _expand_brackets(tail) if tail else [""]
    hosts = []
    for span in inside.split(","):
        low, dash, high = span.partition("-")
        last = int(high if dash else low)
        if last < int(low):
            raise ValueError(f"not a range of a Slurm node list: {span!r}")
        hosts += [f"{head}{n:0{len(low)}d}{end}" for n in range(int(low), last + 1) for end in tails]
    return hosts


def _from_torchrun(env: Mapping[str, str]) -> Launch:
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE", least=1)
    local_rank, local_world_size = _number(env, "LOCAL_RANK"), _number(env, "LOCAL_WORLD_SIZE", least=1)
    _below(rank, "RANK", world_size, "WORLD_SIZE")
    _below(local_rank, "LOCAL_RANK", local_world_size, "LOCAL_WORLD_SIZE")
    _below(local_world_size - 1, "LOCAL_WORLD_SIZE - 1", world_size, "WORLD_SIZE")
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node=_number(env, "GROUP_RANK", default=rank // local_world_size),
        num_nodes=_number(env, "GROUP_WORLD_SIZE", default=-(-world_size // local_world_size)),
        address=_text(env, "MASTER_ADDR"),
        port=_number(env, "MASTER_PORT", least=1),
        agent_restarts=_number(env, "TORCHELASTIC_RESTART_COUNT", default=0) if agent else None,
        job_id=env.get("SLURM_JOB_ID"),
        how="torchrun",
    )


def _from_slurm(env: Mapping[str, str]) -> Launch:
    # srun inside an allocation may start fewer tasks than were allocated: the step's own counts go first.
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    nodes = "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in env else "SLURM_NNODES"
    rank, world_size = _number(env, "SLURM_PROCID"), _number(env, tasks, least=1)
    node, num_nodes = _number(env, "SLURM_NODEID"), _number(env, nodes, least=1)
    local_rank, local_world_size = _number(env, "SLURM_LOCALID"), _tasks_on_node(env, node, world_size, num_nodes)
    _below(rank, "SLURM_PROCID", world_size, tasks)
    _below(node, "SLURM_NODEID", num_nodes, nodes)
    _below(local_rank, "SLURM_LOCALID", local_world_size, "tasks on this node")
    if world_size == 1:  # nobody to meet: several such processes may share a node, and must not share a port
        return Launch(job_id=env.get("SLURM_JOB_ID"), how="slurm")
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node=node,
        num_nodes=num_nodes,
        address=env.get("MASTER_ADDR") or _first_host(env),
        port=_number(env, "MASTER_PORT", default=_FIRST_PORT + _number(env, "SLURM_JOB_ID") % _NUM_PORTS, least=1),
        job_id=env.get("SLURM_JOB_ID"),
        how="slurm",
    )


def _tasks_on_node(env: Mapping[str, str], node: int, world_size: int, num_nodes: int) -> int:
    """`SLURM_STEP_TASKS_PER_NODE` is `4(x2),1` for two nodes of four tasks and one of one."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    if name not in env:
        if world_size % num_nodes:
            raise ConfigError(name, None, f"{world_size} tasks do not divide over {num_nodes} nodes", "start with srun")
        return world_size // num_nodes
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", env[name])
    counts = [int(count) for count, times in found for _ in range(int(times or 1))]
    if len(counts) != num_nodes or sum(counts) != world_size or node >= num_nodes:
        wrong = f"this is not {world_size} tasks on {num_nodes} nodes with this one as node {node}"
        raise ConfigError(name, env[name], wrong, "start with srun and leave its SLURM_ variables alone")
    return counts[node]


def _first_host(env: Mapping[str, str]) -> str:
    name = "SLURM_STEP_NODELIST"
    if name not in env:  # the node srun was called on: right in a batch job, not where srun ran on a login node
        return _text(env, "SLURM_LAUNCH_NODE_IPADDR")
    try:
        return expand_nodelist(env[name])[0]
    except ValueError as error:
        raise ConfigError(name, env[name], "not a Slurm node list", "set MASTER_ADDR to the first host") from error


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        remedy = "start with torchrun or srun, set all of its variables, or unset RANK, WORLD_SIZE and LOCAL_RANK"
        raise ConfigError(name, env.get(name), "missing, though other variables of the launcher are set", remedy)
    return env[name]


def _number(env: Mapping[str, str], name: str, *, default: int | None = None, least: int = 0) -> int:
    if default is not None and name not in env:
        return default
    text = _text(env, name)
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ConfigError(name, text, f"not an integer of at least {least}", "start with torchrun or srun")
    return int(text)


def _below(value: int, name: str, size: int, size_name: str) -> None:
    if value >= size:
        raise ConfigError(name, value, f"must be below {size_name} = {size}", "start all ranks by one torchrun or srun")
