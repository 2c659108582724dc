"""A command ends with one line and code 2 for what the user caused, and with a traceback only for our own faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAD = "from megatron_most.runtime import run_command\nfrom megatron_most.errors import ConfigError\n"


def run(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"{HEAD}def main():\n    {body}\nrun_command(main)\n"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def test_a_wrong_setting_is_one_line_and_code_2() -> None:
    done = run("raise ConfigError('moe.top_k', 9, 'too many', 'use 4')")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["-c: moe.top_k = 9: too many; use 4"]


def test_half_set_launch_variables_are_one_line_and_code_2_too() -> None:
    done = run("pass", RANK="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("PermissionError(13, 'Permission denied', '/a/b')", "/a/b: Permission denied; check the mode of / "),
        ("OSError(28, 'No space left on device')", "No space left on device; make room"),
        ("OSError(30, 'Read-only file system', '/a/b')", "/a/b: Read-only file system; its file system is mounted"),
    ],
)
def test_what_the_disk_refused_is_one_line_and_code_2(error: str, told: str) -> None:
    done = run(f"raise {error}")
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"-c: {told}")


def test_a_file_that_we_looked_for_in_vain_keeps_its_traceback() -> None:
    done = run("open('/none/there')")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_our_own_fault_keeps_its_traceback() -> None:
    done = run("raise KeyError('x')")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(("body", "code"), [("return 3", 3), ("pass", 0), ("raise KeyboardInterrupt", 130)])
def test_the_code_is_that_of_the_command(body: str, code: int) -> None:
    assert run(body).returncode == code
