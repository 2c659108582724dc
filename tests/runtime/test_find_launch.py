"""Who started this process: a table of environments, and the ones that are refused by the variable's name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from megatron_most.errors import ConfigError
from megatron_most.runtime import Launch, expand_nodelist, find_launch

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n1",
    "MASTER_PORT": "29400",
}  # fmt: skip
AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2", "GROUP_RANK": "1"}
BATCH = {
    "SLURM_JOB_ID": "4001", "SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n[3-4]",
}  # fmt: skip
STEP = BATCH | {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip
RANK_5 = Launch(
    rank=5, world_size=8, local_rank=1, local_world_size=4, node=1, num_nodes=2, address="n1", port=29400,
    how="torchrun",
)  # fmt: skip
TASK_4 = Launch(
    rank=4, world_size=6, local_rank=0, local_world_size=2, node=1, num_nodes=2, address="n3", port=29501,
    job_id="4001", how="slurm",
)  # fmt: skip


def but(launch: Launch, **changed: Any) -> Launch:
    return Launch(**(vars(launch) | changed))


FOUND = {
    "nothing": ({}, Launch()),
    "torchrun": (TORCHRUN, RANK_5),
    "torchrun whose agent keeps the store": (TORCHRUN | AGENT, but(RANK_5, agent_restarts=2)),
    "torchrun inside a Slurm step": (STEP | TORCHRUN, but(RANK_5, job_id="4001")),
    "srun": (STEP, TASK_4),
    "srun with a master of the user's": (
        STEP | {"MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "7000"},
        but(TASK_4, address="10.1.1.1", port=7000),
    ),
    "srun of fewer tasks than were allocated": (
        STEP | {"SLURM_NTASKS": "64", "SLURM_STEP_NUM_TASKS": "6", "SLURM_NNODES": "9", "SLURM_STEP_NUM_NODES": "2"},
        TASK_4,
    ),
    "srun of one task": (
        STEP | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
        | {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "n3"},
        Launch(job_id="4001", how="slurm"),
    ),
    "batch script": (BATCH, Launch(job_id="4001")),
    "salloc shell": ({"SLURM_JOB_ID": "4001", "SLURM_NNODES": "2"}, Launch(job_id="4001")),
    "salloc shell as an interactive step": (STEP | {"SLURM_STEP_ID": str(0xFFFFFFFA)}, Launch(job_id="4001")),
    "batch script that exports a master": (BATCH | {"MASTER_ADDR": "n3", "MASTER_PORT": "1"}, Launch(job_id="4001")),
}  # fmt: skip


@pytest.mark.parametrize(("env", "launch"), FOUND.values(), ids=FOUND)
def test_the_environment_says_which_rank_this_is(env: dict[str, str], launch: Launch) -> None:
    assert find_launch(env) == launch


NO_AGREEMENT = "SLURM_STEP_TASKS_PER_NODE = '3,4': this is not 6 tasks on 2 nodes"
REFUSED = [
    ({"RANK": "0"}, "WORLD_SIZE = None: missing"),
    ({"WORLD_SIZE": "4"} | STEP, "RANK = None: missing"),
    ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT = None: missing"),
    (TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR = '': missing"),
    (TORCHRUN | {"RANK": "8"}, "RANK = 8: must be below WORLD_SIZE = 8"),
    (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK = 4: must be below LOCAL_WORLD_SIZE = 4"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE - 1 = 8: must be below WORLD_SIZE = 8"),
    (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE = '0': not an integer of at least 1"),
    (TORCHRUN | {"RANK": "-1"}, "RANK = '-1': not an integer of at least 0"),
    (TORCHRUN | {"RANK": "²"}, "RANK = '²': not an integer of at least 0"),
    (STEP | {"SLURM_PROCID": "6"}, "SLURM_PROCID = 6: must be below SLURM_NTASKS = 6"),
    (STEP | {"SLURM_LOCALID": "2"}, "SLURM_LOCALID = 2: must be below tasks on this node = 2"),
    (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,4"}, NO_AGREEMENT),
    (STEP | {"SLURM_STEP_NODELIST": "n[3-4"}, "SLURM_STEP_NODELIST = 'n[3-4': not a Slurm node list; set MASTER_ADDR"),
    ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "SLURM_PROCID = None: missing"),
]


@pytest.mark.parametrize(("env", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_half_set_or_contradictory_variables_are_refused_by_name(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_launch(env)
    assert str(refused.value).startswith(message)


def test_only_the_rank_that_keeps_the_store_is_its_host() -> None:
    assert find_launch(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}).hosts_store
    assert not find_launch(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"} | AGENT).hosts_store
    assert not RANK_5.hosts_store


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("head", ["head"]),
        ("node[003-005,12],other", ["node003", "node004", "node005", "node12", "other"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
        ("a-[1,3]-ib.site,b-2", ["a-1-ib.site", "a-3-ib.site", "b-2"]),
    ],
)
def test_a_node_list_is_spelled_out_in_slurms_order(text: str, hosts: list[str]) -> None:
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize("text", ["", "n[1-2", "n1]", "a,,b", "n[]", "n[1-]", "n[a-b]", "n[[1]]", ",n1", "n[3-1]"])
def test_a_malformed_node_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        expand_nodelist(text)


def test_importing_the_room_does_not_import_torch() -> None:
    code = "import sys, megatron_most.runtime; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
