"""One command runs benches as parts of a table; a ratio worse than its spread allows fails it, a better one not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_most.errors import DataError

BENCH = Path(__file__).resolve().parents[2] / "bench"
MADE_UP = """
import json, sys
row = {{"part": "p", "ours": "1 s", "peer": "2 s", "ratio": {ratio}, "wanted": "≥ 1", "ok": True, "seconds": {{}},
       "spread": 0.1}}
print(json.dumps(row)) if "--json" in sys.argv else print("a table")
sys.exit({code})
"""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """bench/harness.py with one made-up part."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    import harness as module  # type: ignore[import-not-found]

    assert module.__file__ == str(BENCH / "harness.py")
    assert all((BENCH / file).is_file() for file, *_ in module.PARTS.values())
    monkeypatch.setattr(module, "PARTS", {"made-up": (str(tmp_path / "made_up.py"),)})
    return module


def row(part: str, ratio: float | None, wanted: str, spread: float | None = 0.1) -> dict[str, Any]:
    return {"part": part, "ours": "a", "peer": "b", "ratio": ratio, "wanted": wanted, "ok": None, "spread": spread}


def test_worse_is_below_what_should_be_high_and_above_what_should_be_low(harness: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    harness.keep(path, [row("fast", 1.2, "≥ 1"), row("cheap", 1.2, "≤ 1.3"), row("told", 1.2, ""), row("x", None, "")])
    kept = harness.read_kept(path)
    assert set(kept) == {"fast", "cheap"}
    for ratio, named in ((1.05, ["fast"]), (1.11, []), (1.29, []), (1.35, ["cheap"])):
        rows = [row("fast", ratio, "≥ 1"), row("cheap", ratio, "≤ 1.3"), row("told", 0.0, ""), row("new", 0.0, "≥ 1")]
        assert [line.split(":")[0] for line in harness.worse(rows, kept)] == named
    assert harness.worse([row("fast", 1.05, "≥ 1")], kept) == ["fast: 1.05, kept is 1.2 ± 0.1"]


def test_what_is_kept_is_ratios_alone_and_of_other_parts_stays(harness: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    harness.keep(path, [row("a", 2.0, "≥ 1", None)])
    harness.keep(path, [row("b", 0.5, "≤ 1", 0.3)])
    assert json.loads(path.read_text()) == {
        "a": {"ratio": 2.0, "spread": 0.04, "more_is_better": True},  # not less than 2 %: few rounds agree by chance
        "b": {"ratio": 0.5, "spread": 0.3, "more_is_better": False},
    }
    with pytest.raises(DataError, match="tools/bench.py --keep"):
        harness.read_kept(tmp_path / "none.json")
    path.write_text('{"a": 3}')
    with pytest.raises(DataError, match=r"ratios.json: not a file of ratios .* tools/bench.py --keep"):
        harness.read_kept(path)


def test_the_command_keeps_then_passes_then_fails(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(ratio: float, *words: str, code: int = 0) -> int:
        (tmp_path / "made_up.py").write_text(MADE_UP.format(ratio=ratio, code=code))
        monkeypatch.setattr(sys, "argv", ["bench.py", "--ratios", str(tmp_path / "ratios.json"), *words])
        return harness.main()

    assert run(1.5, "--keep", "--json", str(tmp_path / "rows.jsonl")) == 0
    assert [json.loads(line)["bench"] for line in (tmp_path / "rows.jsonl").open()] == ["made-up"]
    assert capfd.readouterr().out.splitlines()[2] == "| p | 1 s | 2 s | 1.5 | ± 0.1 | ≥ 1 | ok |"
    assert run(1.45, "made-up", "--gate") == 0
    assert run(1.3, "--gate", code=1) == 1  # 1: a row missed what is wanted, told nevertheless
    assert "worse: p: 1.3, kept is 1.5 ± 0.1" in capfd.readouterr().err
    assert run(1.3) == 0
    with pytest.raises(DataError, match="ended with code 3"):
        run(1.5, code=3)
    with pytest.raises(SystemExit):
        run(1.5, "nothing")


@pytest.mark.parametrize("part", ["step", "router", "parts", "balance", "data", "telemetry", "generate", "convert"])
def test_every_part_that_there_is_says_its_rows_as_json(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    import harness as module

    assert set(module.PARTS) == {"step", "router", "parts", "balance", "data", "telemetry", "generate", "convert"}
    assert '"--json"' in (BENCH / module.PARTS[part][0]).read_text()
