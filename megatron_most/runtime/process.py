"""Which process this is, told so that another one on the same machine can find out whether it still runs."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

Facts = dict[str, str | int]
_PR_SET_PDEATHSIG = 1


def this_process() -> Facts:
    """Host, number, time of start, and what tells machines apart; plain values, to be written down."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # Containers of one machine share its boot but number processes each for themselves.
    space = os.readlink("/proc/self/ns/pid")
    process = os.getpid()
    return {"host": socket.gethostname(), "process": process, "started": _started(process), "boot": f"{boot} {space}"}


def is_running(found: Mapping[str, str | int]) -> bool:
    """Whether the process that was written down still is; for processes of this machine only. Zombies are not.

    One that cannot be looked at (no file can be opened any more) counts as running.
    """
    try:
        return _started(found["process"]) == found["started"] != 0
    except OSError:
        return True


def kill_if_here(found: Mapping[str, str | int]) -> bool:
    """End a process that cannot end itself, if it is of this machine and still the same."""
    if found["boot"] != this_process()["boot"] or not is_running(found):
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(int(found["process"]), signal.SIGKILL)
        return True
    return False


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _started(process: str | int) -> int:
    """When a process started, in the kernel's ticks; 0 for one that is not there. Numbers of processes are reused."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state == "Z" else int(fields[18])
