"""The tables of docs/scaling.md are what the command computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.config import ExpertLoad
from megatron_most.errors import DataError
from megatron_most.plan import Assumed, run_plan
from megatron_most.plan.scaling import NODES, PLACED, placed, tables, write_page
from tests.doc_words import commands_by

NAMES = ("same batch", "grown batch")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def test_rows_of_the_page_are_computed_again() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines, _ = tables((1, 2), Assumed())
    for name, rows in lines.items():
        part = text.partition(f"<!-- {name}:")[2].partition(f"<!-- end of {name}")[0]
        assert [row for row in rows if row not in part] == []
        assert part.count("\n| ") - 2 == len(NODES) and NODES[0] == 1 and NODES[-1] == 512
    assert "predicted, nothing of it was measured" in text


def test_the_placements_of_the_page_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_most.plan.scaling.PLACED", PLACED[:1])
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition("<!-- placements:")[2].partition("<!-- end of placements")[0]
    assert [
        row for row in placed(ExpertLoad.load(PAGE.with_name("expert_load.json")), Assumed()) if row not in part
    ] == []
    assert part.count("\n| ") - 2 == 3 * len(PLACED) and PLACED[0][0] == 6


def test_the_page_is_written_between_its_marks_and_refused_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "megatron_most.plan.scaling.tables", lambda nodes, assumed: (dict.fromkeys(NAMES, ["| 7 |"]), {})
    )
    monkeypatch.setattr("megatron_most.plan.scaling.placed", lambda load, assumed: ["| 7 |"])
    monkeypatch.setattr("megatron_most.plan.scaling.draw", lambda found: "<svg/>")
    page = tmp_path / "page.md"
    (tmp_path / "expert_load.json").write_bytes(PAGE.with_name("expert_load.json").read_bytes())
    page.write_text("no marks")
    with pytest.raises(DataError, match="has no place for the table"):
        write_page(page, Assumed())
    page.write_text(PAGE.read_text(encoding="utf-8"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "expert_load.json").write_bytes(PAGE.with_name("expert_load.json").read_bytes())
    page = page.rename(tmp_path / "docs" / "scaling.md")
    by = "plan/test_scaling.py::test_the_page_is_written_between_its_marks_and_refused_without"
    [command] = commands_by(by, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_plan(command.words[2:]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("| 7 |") == 3 and "| 1 | 8 |" not in text and "What carries these numbers" in text
    assert page.with_suffix(".svg").read_text() == "<svg/>"
