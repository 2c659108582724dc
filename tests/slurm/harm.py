"""What is done to jobs and hosts of the sandbox, from outside; each act proves that it was done."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.slurm.sandbox import Sandbox


def processes_of(job: str, script: str) -> dict[int, tuple[int, str]]:
    """rank -> (process as seen from outside, node) of a job's processes that run a script of ours."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            env = dict(pair.split(b"=", 1) for pair in (folder / "environ").read_bytes().split(b"\0") if b"=" in pair)
        except OSError:
            continue
        if env.get(b"SLURM_JOB_ID") != job.encode() or b"SLURM_PROCID" not in env or len(words) < 2:
            continue
        if words[1].endswith(script.encode()) and b"python" in words[0]:
            found[int(env[b"SLURM_PROCID"])] = int(folder.name), env[b"SLURMD_NODENAME"].decode()
    return found


def batch_script_of(job: str) -> tuple[int, str]:
    """(process, node) of the script that Slurm has started, not of the shells that it has forked."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            env = dict(pair.split(b"=", 1) for pair in (folder / "environ").read_bytes().split(b"\0") if b"=" in pair)
        except OSError:
            continue
        if env.get(b"SLURM_JOB_ID") == job.encode() and any(word.endswith(b"/slurm_script") for word in words):
            found[int(folder.name)] = parent, env[b"SLURMD_NODENAME"].decode()
    [first] = [process for process, (parent, _) in found.items() if parent not in found]
    return first, found[first][1]


def kill_rank(job: str, rank: int, number: int = signal.SIGKILL) -> str:
    """Of tools/train.py; the node that it was on."""
    ranks = processes_of(job, "tools/train.py")
    assert rank in ranks, f"job {job} has no rank {rank}, but {ranks}"
    process, node = ranks[rank]
    kill(process, number)
    return node


def kill(process: int, number: int = signal.SIGKILL) -> None:
    os.kill(process, number)


def power_off(box: Sandbox, node: str) -> None:
    """The cable first: peers of a machine that loses power see silence, and no closed socket."""
    cut(box, node)
    first = Path("/proc") / (box.folder / "run" / node).read_text().strip()
    assert first.exists()
    box.stop(node)
    assert not first.exists()


def power_on(box: Sandbox, node: str) -> None:
    box.start_node(node)
    box.wait(lambda: node not in box.not_ready(), 60, f"{node} taking work")


def cut(box: Sandbox, node: str) -> None:
    box.on("head", "ip", "link", "set", f"v{node}", "down")


def cut_between(box: Sandbox, one: str, other: str) -> None:
    """A neighbour with nobody's address: packets leave and vanish, and both still reach the controller."""
    for here, there in ((one, other), (other, one)):
        box.on(here, "ip", "neigh", "replace", box.address(there), "lladdr", "02:00:00:00:00:fe", "dev", "eth0", "nud",
               "permanent")  # fmt: skip


def heal(box: Sandbox) -> None:
    for node in box.names:
        if box.is_up(node):
            box.on("head", "ip", "link", "set", f"v{node}", "up", check=False)
            box.on(node, "ip", "neigh", "flush", "dev", "eth0", "nud", "permanent", check=False)


def signal_before_time_limit(box: Sandbox, job: str) -> None:
    """What --signal=B:USR1@N does later."""
    box.on("head", "scancel", "--batch", "--signal=USR1", job)
