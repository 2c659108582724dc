"""The routing of one exchange as a table: a token a line, in the colour of the group that its experts belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_most.errors import DataError
from megatron_most.report import run_report
from megatron_most.report.beside import read_routing
from tests.pages import HOSTILE, Seen, require_nothing_loaded

TOKENS = [{"says": "two", "tag": "text"}, {"says": "[Hu7]", "tag": "audio"}, {"says": HOSTILE, "tag": "wave"}]
ROUTING: dict[str, Any] = {
    "format": "most-routing-1", "tokens": TOKENS, "layers": [1, 2], "groups": {"text": [0, 1], "audio": [2, 3]},
    "experts": [[[1, 0], [3, 2], []], [[1], [2], []]],
}  # fmt: skip


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**ROUTING, **changes}))
    return path


def test_a_token_has_its_experts_of_each_layer_and_its_groups_colour(tmp_path: Path) -> None:
    routing = read_routing(written(tmp_path / "routing.json"))
    assert routing.layers == ["1", "2"]
    assert [(one.says, one.experts, one.colour) for one in routing.tokens] == [
        ("two", ["0 1", "1"], "s1"), ("[Hu7]", ["2 3", "2"], "s2"), (HOSTILE, ["", ""], "muted"),
    ]  # fmt: skip


def test_the_page_has_the_table(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    line = {"step": 0, "loss": 1.0, "seconds": 0.5, "tokens": 5, "skipped": False}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    routing, out = written(tmp_path / "routing.json"), tmp_path / "page.html"
    run_report([str(tmp_path / "run"), "--routing", str(routing), "--out", str(out)])
    page = out.read_text(encoding="utf-8")
    require_nothing_loaded(page)
    texts = Seen(page).texts
    at = texts.index("[Hu7]")
    assert texts[at : at + 4] == ["[Hu7]", "audio", "2 3", "2"] and texts.count("shared") == 2
    assert "color: var(--s2)" in page


@pytest.mark.parametrize(
    "changes", [{"format": "x"}, {"experts": [[]]}, {"groups": 3}, {"tokens": [{}]}, {"experts": [[[9], [9], [9]]]}]
)
def test_what_is_no_routing_is_said_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="cannot be read as routing"):
        read_routing(written(tmp_path / "routing.json", **changes))
