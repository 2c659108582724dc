"""Every fault drill is passed, and fails when the protection it is about is switched off.

The table and what it prints are those of `tools/drills.py`. Not among the controls here: those that are over only when
a run has hung for its whole time (`tools/drills.py --controls` runs all of them).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doc_words import commands_by
from tests.drills.bench import Bench, Drill, Failed, NotInjected, Outcome
from tests.drills.command import main
from tests.drills.table import DRILLS, run_control, run_drill
from tests.harness import warm

SLOW_CONTROLS = {"hung-rank", "stopped-rank", "slow-rank"}
SLOW = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    warm()
    bench = Bench(tmp_path_factory.mktemp("drills"))
    yield bench
    bench.clean_up()


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if name == "kill-saving" else ()) for name in DRILLS])
def test_the_drill_is_passed(bench: Bench, name: str) -> None:
    row = run_drill(DRILLS[name], bench)
    assert row.is_good and row.injected, str(row)


@pytest.mark.parametrize("name", [name for name in DRILLS if name not in SLOW_CONTROLS])
def test_without_its_protection_the_drill_fails(bench: Bench, name: str) -> None:
    row = run_control(DRILLS[name], bench)
    assert row.is_good, str(row)


def made_up(outcome: Outcome | Exception) -> Drill:
    def body(bench: Bench) -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Drill(name="x", about="a", protection="p", off=lambda child: None, body=body)


@pytest.mark.parametrize(
    ("outcome", "is_good", "is_good_control"),
    [
        (Outcome("harm", "well"), True, False),
        (Failed("lost"), False, True),
        (NotInjected("no harm"), False, False),
        (KeyError("a mistake of ours"), False, False),
    ],
)
def test_harm_that_was_not_done_and_mistakes_of_ours_count_for_neither(
    tmp_path: Path, outcome: Outcome | Exception, is_good: bool, is_good_control: bool
) -> None:
    drill, bench = made_up(outcome), Bench(tmp_path)
    assert run_drill(drill, bench).is_good is is_good
    assert run_control(drill, bench).is_good is is_good_control


def test_the_command_lists_the_drills_and_refuses_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    [command] = commands_by("train/test_drills.py::test_the_command_lists_the_drills_and_refuses_an_unknown_one", ROOT)
    assert main(command.words[2:]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(DRILLS)
    assert main(["--only", "no-such"]) == 2
    assert "no drill no-such; there are: kill-rank" in capsys.readouterr().err


def test_the_command_runs_a_drill_and_its_exit_code_says_whether_it_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRILLS, "good", made_up(Outcome("harm", "well")))
    monkeypatch.setitem(DRILLS, "bad", made_up(Failed("a step is lost")))
    assert main(["--only", "good", "--folder", str(tmp_path)]) == 0
    assert main(["--only", "bad", "good", "--folder", str(tmp_path)]) == 1
    assert "a step is lost" in capsys.readouterr().out
    assert main(["--without-protection", "bad", "--folder", str(tmp_path)]) == 0
    assert main(["--without-protection", "good", "--folder", str(tmp_path)]) == 1


def test_the_commands_of_the_page_name_drills_and_end_as_they_must(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All and some of them, and the controls. In the place of each drill stands one that ends at once."""
    drills = {name: made_up(Outcome("harm", "well")) for name in DRILLS}
    controls = {name: made_up(Failed("lost")) for name in DRILLS}
    ran = []
    for command in commands_by(
        "train/test_drills.py::test_the_commands_of_the_page_name_drills_and_end_as_they_must", tmp_path
    ):
        program, tool, *words = command.words
        assert (program, tool) == (".venv/bin/python", "tools/drills.py")
        if "--folder" in words:
            words[words.index("--folder") + 1] = str(tmp_path / "drills")
        for name, drill in (controls if "--controls" in words else drills).items():
            monkeypatch.setitem(DRILLS, name, drill)
        assert main(words) == 0
        ran.append(capsys.readouterr().out.count("\n|") - 1)  # less the line below the head
    assert ran == [len(DRILLS), 2, len(DRILLS)] and (tmp_path / "drills").is_dir()


def test_the_tool_teaches() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "drills.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Harm small training runs" in done.stdout, done.stderr
