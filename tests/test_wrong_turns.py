"""What a newcomer's machine may lack: each want is one message that says what to do, before anything is made."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

from megatron_most.errors import DataError
from tests.offline import tried, without_network

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

from steps import ROOM_GB, require_room  # noqa: E402  (a folder of scripts, as it is when demo.py is run)

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make env` reads, in a folder of its own."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "requirements", "tools/make_env.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def make_env(clone: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(clone / "tools" / "make_env.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=clone, timeout=120)


def loaded(clone: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", clone / "tools" / "make_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_env", module)  # where NamedTuple looks for it
    spec.loader.exec_module(module)
    return module


def is_a_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_python_that_is_too_old_is_named_with_how_to_get_another(clone: Path) -> None:
    old = program(clone / "bin", "python3", "echo 3.9.2 /usr/bin/python3.9")
    done = make_env(clone, PATH=str(clone / "bin"))
    is_a_message(done, f"{old}: is python 3.9.2, not 3.11 or 3.12", "sudo apt install", "make env PYTHON=")
    assert not (clone / ".venv").exists()


def test_without_any_python_that_runs_make_says_what_to_install(clone: Path) -> None:
    """Pythons before 3.8 cannot even read the program that would say so."""
    text = (clone / "Makefile").read_text()
    assert "/usr/bin/python3;" in text
    (clone / "Makefile").write_text(text.replace("/usr/bin/python3;", f"{clone}/none;"))
    for name in ("python3", "python3.11", "python3.12"):
        program(clone / "bin", name, "exit 1")
    make = shutil.which("make")
    assert make is not None, "make runs the tests"
    env = {"PATH": str(clone / "bin"), "PYTHON": ""}
    done = subprocess.run(
        [make, "env", "SHELL=/bin/sh"], env=env, capture_output=True, text=True, cwd=clone, timeout=60
    )
    is_a_message(done, "env: no python that runs", "sudo apt install python3.11 python3.11-venv")


def test_a_python_that_is_named_and_not_there_is_told(clone: Path) -> None:
    is_a_message(make_env(clone, PYTHON="/nowhere/python3.11", PATH=""), "/nowhere/python3.11", "sudo apt install")


def test_an_environment_that_is_a_link_is_left_alone(clone: Path) -> None:
    (clone / "elsewhere").mkdir()
    (clone / ".venv").symlink_to(clone / "elsewhere")
    done = make_env(clone, **os.environ)
    is_a_message(done, "is a link, so it is not made anew")
    assert (clone / ".venv").is_symlink()


def test_without_a_compiler_nothing_is_made(clone: Path) -> None:
    done = make_env(clone, PYTHON=sys.executable, PATH=str(clone / "bin"))
    is_a_message(done, "no C++ compiler found", "sudo apt install make g++")
    assert not (clone / ".venv").exists()


def test_without_room_nothing_is_installed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(clone, monkeypatch)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(9 * 10**9, 8 * 10**9, 10**9))
    monkeypatch.setattr(module, "need_compiler", lambda: None)
    monkeypatch.setenv("PYTHON", sys.executable)
    with pytest.raises(SystemExit, match=r"1.0 GB free, and .venv takes 4 GB; make room"):
        module.main()
    assert not (clone / ".venv").exists()
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").write_text("an older one")
    with pytest.raises(SystemExit, match="make room"):
        module.main()
    assert (clone / ".venv" / "mine").exists(), "it is not lost for nothing"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "no package index was reached"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", "name it by PIP_CERT"),
        ("error: something that nobody has met", "see above"),
    ],
)
def test_why_pip_failed_is_said_last(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, told: str
) -> None:
    module = loaded(clone, monkeypatch)
    (clone / ".venv").mkdir()
    program(clone / ".venv" / "bin", "python", f"echo '{said}'; exit 1")
    with pytest.raises(SystemExit) as ended:
        module.pip("install", "-r", "requirements/py312.txt")
    text = str(ended.value)
    assert said in text and told in text.splitlines()[-1] and "the same command again" in text.splitlines()[-1]
    assert "pip failed" in capsys.readouterr().out


def test_a_demo_without_room_is_refused_before_it_makes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**8, 10**8))
    with pytest.raises(DataError, match=rf"0.1 GB free, and the demo wants {ROOM_GB:g}; make room, or give another"):
        require_room(tmp_path / "runs" / "quickstart")
    assert not os.listdir(tmp_path)


def test_a_program_that_wants_the_network_is_seen(tmp_path: Path) -> None:
    """Or the demo's want of none (test_quickstart.py) would prove nothing."""
    env = without_network(tmp_path / "guard")
    for code in ("socket.create_connection(('192.0.2.1', 80), 1)", "socket.getaddrinfo('huggingface.co', 443)"):
        done = subprocess.run([sys.executable, "-c", f"import socket; {code}"], env=env, capture_output=True, text=True)
        assert "Network is unreachable" in done.stderr
    assert len(tried(tmp_path / "guard")) == 2
