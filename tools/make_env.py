#!/usr/bin/env python3
"""Set `.venv` up from the lock for the python found here, when it is missing or stale. `make env` runs this.

Stale means: the lock, the python or the place of this folder differs from what `.venv/most-stamp` records (then all is
made anew), or setup.py or pyproject.toml does (then only the project itself is installed again). The stamp is removed
first and written last, so a creation that was interrupted is repeated from nothing. PYTHON=... names the interpreter;
else that of the present `.venv` is kept, else python3.11 is looked for, then python3.12. pip's own PIP_* variables and
configuration apply. Any python from 3.8 on can run this file; it needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "most-stamp"
LOCKS = {"3.11": ROOT / "requirements" / "py311-cpu.txt", "3.12": ROOT / "requirements" / "py312.txt"}
APT = """\
Debian 12:     sudo apt install make g++ python3.11 python3.11-venv python3.11-dev
Ubuntu 24.04:  sudo apt install make g++ python3.12 python3.12-venv python3.12-dev
Elsewhere: install python 3.11 or 3.12 in any way and name it: make env PYTHON=/path/to/python3.11"""

PIP = "26.3"
"""What installs. The pip of a python that is some years old takes thrice the time to find the same packages."""
READY = """
import importlib, pkgutil, sys
import megatron_most
for room in pkgutil.walk_packages(megatron_most.__path__, "megatron_most."):
    importlib.import_module(room.name)
import transformers.generation, transformers.models.deepseek_v2.modeling_deepseek_v2, torch.utils.tensorboard
import torch.distributed.run, torch.optim.adamw, scipy.signal, scipy.spatial
"""
"""Loads what the product loads, so that python keeps its bytecode: the first of everything would else be slow."""
ROOM_GB = 4
"""What a new environment takes, with torch for a CPU and what pip unpacks; torch for CUDA takes more."""
NO_NETWORK = "name resolution|Name or service not known|NewConnectionError|Connection refused|timed out"
REASONS = {  # in pip's words: what it means, and what helps
    "No space left on device": "the disk is full (or that of TMPDIR, where pip unpacks); make room",
    NO_NETWORK: "no package index was reached; connect, or name a mirror (PIP_INDEX_URL) or a folder of wheels "
    "(PIP_FIND_LINKS with PIP_NO_INDEX=1). Once .venv is made, nothing here wants a network",
    "CERTIFICATE_VERIFY_FAILED": "a proxy's certificate is not trusted; name it by PIP_CERT",
}

# Run by a candidate: its version and true path, or what it lacks. torch and DeepSpeed compile against Python.h.
PROBE = """
import os, sys, sysconfig
import venv, ensurepip
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
if not os.path.exists(header):
    sys.exit("ImportError: its C headers are missing")
print("%d.%d.%d" % sys.version_info[:3], sys.executable)
"""


class Python(NamedTuple):
    path: str
    version: str

    @property
    def lock(self) -> Path:
        return LOCKS[self.version.rpartition(".")[0]]


def say(text: str) -> None:
    print(f"env: {text}", flush=True)


def fail(text: str) -> NoReturn:
    sys.exit(f"env: {text}\n{APT}")


def probe(path: str) -> Python | str:
    """The interpreter, or why it will not do. A pyenv shim with nothing behind it fails here like any broken python."""
    try:
        done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exits with {done.returncode}"]
        return next((line for line in reversed(lines) if "Error: " in line), lines[0])
    version, true_path = done.stdout.strip().split(" ", 1)
    python = Python(true_path, version)
    return python if version.rpartition(".")[0] in LOCKS else f"is python {version}, not 3.11 or 3.12"


def candidates() -> list[str]:
    given = os.environ.get("PYTHON")
    if given:
        return [shutil.which(given) or given]
    kept = STAMP.read_text().splitlines()[2:3] if STAMP.exists() else []
    folders = [Path(f) for f in os.environ.get("PATH", "").split(os.pathsep) if f and Path(f) != VENV / "bin"]
    found = [folder / name for name in ("python3.11", "python3.12", "python3") for folder in folders]
    return kept + [str(path) for path in found if path.exists()]


def find_python() -> Python:
    refused = []
    for path in candidates():
        answer = probe(path)
        if isinstance(answer, Python):
            return answer
        refused.append(f"  {path}: {answer}")
    tried = "\n".join(refused) or "  none on the PATH"
    fail(f"no suitable python (3.11 or 3.12, with venv, ensurepip and C headers). Tried:\n{tried}")


def need_compiler() -> None:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(name and shutil.which(name.split()[0]) for name in names):
        fail("no C++ compiler found (tried $CXX, c++, g++, clang++); DeepSpeed compiles its optimizers on first use")


def need_room() -> None:
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    old = 0.0 if VENV.is_symlink() else sum(path.lstat().st_size for path in VENV.rglob("*")) / 1e9
    if free + old < ROOM_GB:
        sys.exit(f"env: {ROOT}: {free:.1f} GB free, and .venv takes {ROOM_GB} GB; make room, or clone to another disk")


def digest(*parts: str | Path) -> str:
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def venv_runs() -> bool:
    try:
        return subprocess.run([str(VENV / "bin" / "python"), "-c", ""], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def renew_pip() -> None:
    """Where no newer one is found, the python's own does as well, in more time."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--retries", "0", "--timeout", "15", f"pip=={PIP}"]
    if subprocess.run(command, capture_output=True).returncode:
        say(f"pip {PIP} was not found; the one that python brings goes on, more slowly")


def load_once() -> None:
    """Every module that a tool loads, before the first tool is run."""
    say("loading everything once")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([str(VENV / "bin" / "python"), "-c", READY], capture_output=True, text=True, env=variables)
    if done.returncode:
        sys.exit(done.stderr[-3000:] + "env: what was installed does not load, see above; make clean, then again")


def pip(*arguments: str, expected: int = 0) -> None:
    """Run pip with its output in `.venv/pip.log`, a progress line here, and the log's end here when it fails."""
    log_path, seen, since = VENV / "pip.log", 0, time.monotonic()
    command = [str(VENV / "bin" / "python"), "-m", "pip", *arguments, "--disable-pip-version-check"]
    with open(log_path, "a") as log:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(ROOT))
        for line in run.stdout or []:
            log.write(line)
            log.flush()
            if line.startswith(("Collecting ", "Processing ")):
                seen += 1
                if expected and seen % 10 == 0:
                    name = "-".join(line.split()[1].rpartition("/")[2].split("-")[:2])
                    say(f"{time.monotonic() - since:4.0f} s, package {seen} of about {expected}: {name}")
            elif expected and line.startswith("Installing collected packages"):
                say(f"{time.monotonic() - since:4.0f} s, all fetched; unpacking (a minute or more)")
    if run.wait():
        lines = log_path.read_text().splitlines(keepends=True)
        why = next((why for words, why in REASONS.items() if re.search(words, "".join(lines[-60:]))), "see above")
        say("pip failed; its last lines:")
        sys.exit("".join(lines[-25:]) + f"(the whole log: {log_path})\nenv: {why}. Then the same command again")


def main() -> None:
    python = find_python()
    base = digest(python.lock, python.version, str(VENV))
    whole = digest(base, ROOT / "setup.py", ROOT / "pyproject.toml")
    stamp = "\n".join([base, whole, python.path, ""])
    made = STAMP.read_text().splitlines() if STAMP.exists() and venv_runs() else ["", ""]
    if made[:2] == [base, whole]:
        return
    need_compiler()
    since = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if made[0] != base:
        if VENV.is_symlink():
            sys.exit(f"env: {VENV} is a link, so it is not made anew; remove it, or make what it leads to")
        need_room()  # before the old one goes, whose place the new one takes
        shutil.rmtree(VENV, ignore_errors=True)
        say(f"making {VENV} from {python.lock.relative_to(ROOT)} with {python.path} (python {python.version})")
        if subprocess.run([python.path, "-m", "venv", str(VENV)]).returncode:
            sys.exit(f"env: {python.path} makes no environment, see above; or name another: make env PYTHON=...")
        renew_pip()
        pins = sum("==" in line for line in python.lock.read_text().splitlines())
        # Not compiled here: that costs over a minute for modules most of which are never imported.
        pip("install", "--no-compile", "-r", str(python.lock), expected=pins)
    say("installing the project itself (editable)")
    pip("install", "--no-deps", "--no-build-isolation", "-e", ".")
    pip("check")
    load_once()
    STAMP.write_text(stamp)
    say(f"ready after {time.monotonic() - since:.0f} s: .venv/bin/python")


if __name__ == "__main__":
    # It takes no options: --help says the above, and anything else is refused before minutes of work.
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # Two makes at once (demo beside test) must not build one environment twice: the second waits, then finds it made.
    folder = os.open(str(ROOT), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        say("this file system has no locks: run one make at a time")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("env: interrupted; the next make starts it over")
