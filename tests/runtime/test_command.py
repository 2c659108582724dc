"""A command ends with one line and code 2 for what the user caused, and with a traceback only for our own faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
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


SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x"}
RAISE = "raise ConfigError('moe.top_k', 9, 'too many', 'use 4')"


@pytest.mark.parametrize(
    ("before", "number"),
    [
        ("", 1),  # nobody ends it: the error is its own
        ("threading.Timer(0.2, os.kill, (os.getpid(), 15)).start(); ", 0),  # torchrun, after rank 0 has said the same
        ("os.kill(os.getpid(), 15); ", 1),  # asked to stop before
    ],
    ids=["left alone", "ended", "asked before"],
)
def test_before_the_ranks_meet_the_second_of_a_machine_says_what_the_first_did_not(before: str, number: int) -> None:
    imports = "import os, threading; from megatron_most.runtime import command, hear_signals; hear_signals(); "
    imports += "command._ALIKE_S = 1.0; "
    done = run(imports + before + RAISE, **SECOND, MASTER_PORT="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["-c [rank 1]: moe.top_k = 9: too many; use 4"] * number


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


def test_a_file_cut_short_while_it_is_mapped_shows_where_it_was_read() -> None:
    mapped = "f = tempfile.TemporaryFile(); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); f.truncate(0)"
    done = run(f"import mmap, tempfile; {mapped}; return m[5000]")
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr and "in main" in done.stderr


def test_a_signal_is_noted_and_asked_for_later() -> None:
    hear = "from megatron_most.runtime import hear_signals, take_signal; import os; hear_signals(); hear_signals()"
    told_once = "7 * (take_signal() == 'SIGUSR1' and not take_signal())"
    assert run(f"{hear}; os.kill(os.getpid(), 10); hear_signals(); return {told_once}").returncode == 7


def test_training_hears_signals_before_its_long_imports() -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'import' and args[0] in ('torch', 'megatron_most.train'):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os._exit(9)\n"
        "sys.addaudithook(hook)\n"
        "sys.argv = ['tools/train.py']\n"
        "runpy.run_path('tools/train.py', run_name='__main__')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 9


@pytest.mark.parametrize(("body", "code"), [("return 3", 3), ("pass", 0), ("raise KeyboardInterrupt", 130)])
def test_the_code_is_that_of_the_command(body: str, code: int) -> None:
    assert run(body).returncode == code


def test_a_rank_ends_when_torchruns_agent_is_killed() -> None:
    """Torchrun's ranks are sessions of their own: what kills the agent does not reach them."""
    rank = f"{HEAD}import time\ndef main():\n    print('at work', flush=True)\n    time.sleep(60)\nrun_command(main)\n"
    agent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {rank!r}], start_new_session=True)\n"
    env = {**os.environ, **SECOND, "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with subprocess.Popen([sys.executable, "-c", agent], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.kill()
        began = time.monotonic()
        assert process.stdout.read() == "" and time.monotonic() - began < 20  # the rank held the pipe open
