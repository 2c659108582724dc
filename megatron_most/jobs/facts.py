"""What one node sees of itself before training, as plain values: code, packages, data, checkpoint, disk, GPUs, clock.

One process a node, without torch: seconds, not minutes. Nothing is judged here, for most of it can only be judged
beside what other nodes see; see judge.py.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import megatron_most
from megatron_most.config import RunConfig, TaskConfig
from megatron_most.jobs.gpus import ask_gpus, of_this_job

_WAIT_S = 30.0  # for a file that another node has just made
_INFO = "dataset.json"
_MARK, _PART = "most-facts", 800


def node_facts(config: RunConfig, run: Path, attempt: Path, *, step: int, port: int, nvidia_smi: str) -> dict[str, Any]:
    """`step`: the newest checkpoint as the batch script saw it. `port`: where rank 0 would like to listen.

    `nvidia_smi`: the program to ask for GPUs; "" = there are none to ask for.
    """
    return {
        "node": node_name(os.environ),
        "host": socket.gethostname(),
        "at": time.time(),
        "code": code_hash(Path(megatron_most.__file__).parent),
        "python": platform.python_version(),
        "packages": packages(sys.path),
        "data": {path: _look_at(Path(path)) for path in data_paths(config)},
        "checkpoint": _look_at_step(run, step),
        "writes": _write(attempt),
        "free": {"run": _free(run), "temporary": _free(Path(tempfile.gettempdir())), "shm": _free(Path("/dev/shm"))},
        "port": free_port(port),
        "granted": int(os.environ.get("SLURM_GPUS_ON_NODE") or 0),  # to this step: --exclusive grants the job all
        "gpus": _gpus(nvidia_smi, os.environ.get("CUDA_VISIBLE_DEVICES", "")) if nvidia_smi else {},
    }


def _gpus(program: str, visible: str) -> dict[str, Any]:
    answer = ask_gpus(program)
    return {"gpus": of_this_job(answer["gpus"], visible)} if "gpus" in answer else answer


def as_lines(facts: Mapping[str, Any]) -> list[str]:
    """For srun's output, where the lines of nodes come in turns, but those over 4 kB may be cut and mixed."""
    packed = base64.b64encode(zlib.compress(json.dumps(facts).encode())).decode()
    parts = [packed[at : at + _PART] for at in range(0, len(packed), _PART)]
    return [f"{_MARK} {facts['node']} {number} {len(parts)} {part}" for number, part in enumerate(parts)]


def from_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What nodes have said, of those whose parts are all there and whole; other lines are passed over."""
    parts: dict[str, dict[int, str]] = {}
    wanted: dict[str, int] = {}
    for line in lines:
        if len(words := line.split(" ")) == 5 and words[0] == _MARK and words[2].isdecimal() and words[3].isdecimal():
            parts.setdefault(words[1], {})[int(words[2])] = words[4].strip()
            wanted[words[1]] = int(words[3])
    found = []
    for node, said in parts.items():
        if sorted(said) == list(range(wanted[node])):
            packed = "".join(said[i] for i in sorted(said))
            with contextlib.suppress(ValueError, zlib.error):  # mixed with another node's: it has said nothing
                found.append(json.loads(zlib.decompress(base64.b64decode(packed, validate=True))))
    return found


def code_hash(package: Path) -> str:
    """Of every python file and recipe of the package, by name and content."""
    total = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".toml")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def packages(places: Iterable[str]) -> dict[str, str]:
    """name -> version of what is installed, by the names of its folders: the first on the path counts."""
    found: dict[str, str] = {}
    for place in places:
        for info in sorted(Path(place or ".").glob("*.dist-info")):
            name, _, number = info.stem.partition("-")
            found.setdefault(name.lower().replace("-", "_"), number)
    return found


def data_paths(config: RunConfig) -> list[str]:
    """Every folder and file that training reads, checkpoints of its own apart."""
    tasks = [getattr(config.data, field.name) for field in fields(config.data)]
    found = [path for task in tasks if isinstance(task, TaskConfig) for path in (*task.train, *task.real, *task.valid)]
    found += config.forgetting.valid
    single = config.tokens.file, config.samples.tokenizer, config.checkpoint.start_from, config.moe.load_file
    found += [path for path in single if path]
    return list(dict.fromkeys(found))


def free_port(first: int, tries: int = 50) -> int:
    """The first port from here on that nobody listens at; 0 where there is none."""
    for port in range(first, first + tries):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store does: a closing one is no matter
            try:
                probe.bind(("", port))
                probe.listen()
                return port
            except OSError:
                continue
    return 0


def _look_at(path: Path) -> str:
    """What a node sees at a path, short enough to compare: a dataset by its description and its files' sizes."""
    try:
        if not path.is_dir():
            return _digest(path.read_bytes())
        if not (path / _INFO).exists():
            return "a folder" if any(path.iterdir()) else "an empty folder"
        sizes = [f"{p.name} {p.stat().st_size}" for p in sorted(path.iterdir()) if p.is_file()]
        return _digest((path / _INFO).read_bytes() + "\n".join(sizes).encode())
    except OSError as error:
        return f"not seen: {error.strerror}"


def _look_at_step(run: Path, step: int) -> str:
    """The newest checkpoint, which a node may see a little later than another."""
    if not step:
        return "none"
    path, until = run / "checkpoints" / f"step-{step:08d}" / "manifest.json", time.monotonic() + _WAIT_S
    while True:
        try:
            return _digest(path.read_bytes())
        except OSError as error:
            if time.monotonic() > until:
                return f"not seen: {path}: {error.strerror}"
        time.sleep(1.0)


def _write(folder: Path) -> str:
    """Whether a node can write where the run is kept; "" if it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def _free(folder: Path) -> int:
    """Bytes, of the nearest folder that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def node_name(env: Mapping[str, str]) -> str:
    """As Slurm calls this node."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()
