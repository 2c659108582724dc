"""A program that is forked by tests/programs.py is as one that a user starts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import Done, run_program

ASKED = """
import os, sys, threading, time
print(sys.argv[1:], os.getcwd(), os.environ["ASKED"], sys.stdin.read(), __name__, sys.path[0])
print("to stderr", file=sys.stderr)
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread's last word"))).start()
"""
ENDS = {
    "0": ("", 0),
    "a number": ("sys.exit(3)", 3),
    "words": ("sys.exit('no such folder')", 1),
    "nothing": ("sys.exit()", 0),
    "an error of its own": ("raise ValueError('no such unit')", 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_forked_program_says_and_ends_as_a_started_one(tmp_path: Path, name: str) -> None:
    body, code = ENDS[name]
    file = tmp_path / "program.py"
    file.write_text(ASKED + body)
    (tmp_path / "here").mkdir()
    forked = run_program(file, "--a", "b c", cwd=tmp_path / "here", env={"ASKED": "1"})
    command = [sys.executable, str(file), "--a", "b c"]
    started = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path / "here", env={"ASKED": "1"}, stdin=subprocess.DEVNULL
    )
    assert forked.returncode == started.returncode == code
    assert forked.stdout == started.stdout and "['--a', 'b c']" in forked.stdout and "last word" in forked.stdout
    assert forked.stderr.splitlines()[:1] == started.stderr.splitlines()[:1] == ["to stderr"]
    assert forked.stderr.splitlines()[-1] == started.stderr.splitlines()[-1]


def test_ranks_are_told_apart_and_the_first_bad_code_is_that_of_all(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(
        "import os, sys\nprint(os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n"
        "sys.exit(7 * (os.environ['RANK'] == '1'))"
    )
    assert run_program(file, ranks=2) == Done(7, "0 of 2\n1 of 2\n", "")


def test_one_that_does_not_end_is_killed_and_what_it_said_is_told(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("import time\nprint('waiting', flush=True)\ntime.sleep(1000)")
    with pytest.raises(TimeoutError, match="program.py had not ended after 2 s: waiting"):
        run_program(file, timeout=2)


def test_it_takes_its_own_modules_and_not_another_programs_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "corpus_of_the_program.py").write_text(f"HERE = {folder!r}")
        (tmp_path / folder / "program.py").write_text("from corpus_of_the_program import HERE\nprint(HERE)")
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    assert importlib.import_module("corpus_of_the_program").HERE == "one"
    assert [run_program(tmp_path / name / "program.py").stdout for name in ("one", "other")] == ["one\n", "other\n"]
    monkeypatch.delitem(sys.modules, "corpus_of_the_program")
