"""What nvidia-smi says of a node's GPUs, and what is wrong with them.

Field names are those of its --query-gpu; a driver that does not know one says so, and that is an error: a check that
silently left something out would pass what it was made for. [N/A] and [Not Supported] are answers.
"""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = (
    "index", "name", "driver_version", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown", "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown", "clocks_throttle_reasons.sw_thermal_slowdown",
)  # fmt: skip
_THROTTLES = tuple(field for field in FIELDS if "throttle" in field)
_ECC, _USED, _MEMORY = "ecc.errors.uncorrected.volatile.total", "memory.used", "memory.total"
_NO_ANSWER = ("[N/A]", "N/A", "[Not Supported]")  # what this GPU does not count; anything else is a number, or a fault
_MOST_USED_MIB = 2048.0  # the driver's own, and what is left of a process that is just going
_TIMEOUT_S = 60.0

Gpus = list[dict[str, str]]


def ask_gpus(program: str) -> dict[str, Any]:
    """{"gpus": a table a GPU} or {"error": why not}. A GPU that fell off its bus can make the program hang."""
    command = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"{program} gives no answer within {_TIMEOUT_S:g} s"}
    except OSError as error:
        return {"error": f"{program} does not run: {error.strerror}"}
    said = (done.stdout + done.stderr).strip()
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
    if done.returncode or any(len(row) != len(FIELDS) for row in rows):
        return {"error": f"{program} ended with {done.returncode}: {said[:300]}"}
    return {"gpus": [dict(zip(FIELDS, row, strict=True)) for row in rows]}


def of_this_job(gpus: Gpus, visible: str) -> Gpus:
    """Those of CUDA_VISIBLE_DEVICES, as Slurm sets it: on a shared node the others are somebody's, and may be in use.

    All, where it names them otherwise than by numbers. Where jobs see no GPUs but their own, both count from 0.
    """
    numbers = [word.strip() for word in visible.split(",")]
    if not all(word.isdecimal() for word in numbers):
        return gpus
    return [gpu for gpu in gpus if gpu["index"] in numbers]


def find_faults(gpus: Sequence[Mapping[str, str]], wanted: int) -> list[str]:
    """What is wrong with one node's GPUs, in words; `wanted`: how many Slurm has granted there."""
    faults = []
    if len(gpus) < wanted:
        faults.append(f"{len(gpus)} GPUs are seen, {wanted} were granted")
    if len({gpu["index"] for gpu in gpus}) < len(gpus):
        faults.append(f"two GPUs of one number: {', '.join(gpu['index'] for gpu in gpus)}")
    if len({gpu["memory.total"] for gpu in gpus}) > 1:
        faults.append(f"its GPUs are not alike: {kinds_of(gpus)}")
    for gpu in gpus:
        name = f"GPU {gpu['index']}"
        unclear = [
            field for field in (_ECC, _USED, _MEMORY) if gpu[field] not in _NO_ANSWER and _number(gpu[field]) is None
        ]
        unclear += [field for field in ("name", "driver_version") if not gpu[field] or gpu[field].startswith("[")]
        unclear += [] if gpu["index"].isdecimal() else ["index"]
        unclear += [field for field in _THROTTLES if gpu[field] not in (*_NO_ANSWER, "Active", "Not Active")]
        faults += [f"{name}: nvidia-smi answers {gpu[field]!r} to {field}" for field in unclear]
        if errors := _number(gpu[_ECC]):
            faults.append(f"{name} has {errors:g} uncorrected memory errors (ECC)")
        if (used := _number(gpu[_USED]) or 0.0) > _MOST_USED_MIB:
            faults.append(f"{name} has {used:g} MiB in use before we start: another process is on it")
        if _number(gpu[_MEMORY]) == 0.0:
            faults.append(f"{name} has no memory")
        if slowed := [field.split(".")[1] for field in _THROTTLES if gpu[field] == "Active"]:
            faults.append(f"{name} is slowed down ({', '.join(slowed)})")
    return faults


def kinds_of(gpus: Sequence[Mapping[str, str]]) -> str:
    """Name, memory and driver, to be compared between nodes."""
    kinds = sorted({f"{gpu['name']}, {gpu['memory.total']} MiB, driver {gpu['driver_version']}" for gpu in gpus})
    return " + ".join(kinds)


def _number(text: str) -> float | None:
    """As nvidia-smi counts: 12, 1024.5; None for whatever else."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
