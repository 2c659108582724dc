"""What runs have reached on more nodes, beside what was predicted: the numbers, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import dump, load_recipe, replace
from megatron_most.errors import ConfigError, DataError
from megatron_most.plan import Cluster, run_plan
from megatron_most.plan.machine import MACHINES, Assumed
from megatron_most.plan.measured import compare, draw, efficiencies, read_measured
from megatron_most.plan.ranking import facts_for, for_planning, predict_recipe
from megatron_most.runtime import Launch
from megatron_most.train import run_training
from megatron_most.upstream import core_version
from tests.doc_words import commands_by
from tests.harness import launch_ranks
from tests.phases import make_blend, recipe

SPEEDS = {1: 800.0, 2: 1440.0, 4: 2400.0}  # tokens a second of all: 100 %, 90 %, 75 % of one node's
A100 = MACHINES["a100-80"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A run with made-up metrics; its first three steps take ten times as long."""

    def written(nodes: int, steps: int = 20, changes: dict[str, Any] | None = None, **start: Any) -> Path:
        folder = tmp_path / f"nodes-{nodes}"
        folder.mkdir(exist_ok=True)
        config = replace(load_recipe("most-tiny"), {"checkpoint.folder": str(folder), **(changes or {})})
        (folder / "resolved.toml").write_text(dump(config))
        began = {
            "attempt": 1,
            "ranks": 8 * nodes,
            "nodes": nodes,
            "device": "A100",
            "versions": {"torch": "2"},
            **start,
        }
        lines: list[dict[str, Any]] = [began]
        for step in range(steps):
            speed = SPEEDS[nodes] * (0.1 if step < 3 else 1.0 + 0.01 * (step % 3 - 1))
            lines += [{"step": step, "tokens": 4000, "tokens_per_second": speed, "seconds": 99.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return written


def test_efficiency_is_by_medians_after_the_first_steps_and_stands_beside_the_prediction(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folders = [write(nodes) for nodes in (4, 1, 2)]
    pairs = compare(folders, A100, Assumed(), leave_out=3)
    assert [pair.measured.nodes for pair in pairs] == [1, 2, 4], "in order, however they were given"
    assert [found for found, _ in efficiencies(pairs)] == pytest.approx([1.0, 0.9, 0.75])
    assert pairs[1].measured.seconds == pytest.approx(4000 / 1440) and pairs[1].measured.steps == 17
    cluster = Cluster(nodes=2, gpus=8, machine=A100)
    config = replace(for_planning(load_recipe("most-tiny")), {"device": "gpu"})
    alone = predict_recipe(config, facts_for(cluster, core_version()), cluster, Assumed())
    assert pairs[1].predicted.tokens_per_second == pytest.approx(alone.tokens_per_second)
    page = tmp_path / "a page" / "report.md"
    words = ["--measured", *map(str, folders), "--report", str(page), "--leave-out", "3"]
    assert run_plan(words) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("| 2 | 16 |"))
    assert [cell.strip() for cell in row.split("|")][9] == "90%" and row in page.read_text()
    assert (
        page.with_suffix(".svg").read_text() == draw(pairs)
        and "![efficiency over nodes](report.svg)" in said + page.read_text()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"changes": {"train.global_batch_size": 64}}, "train.global_batch_size is 64, not "),
        ({"changes": {"model.num_layers": 2}}, "model.num_layers is 2, not "),
        ({"device": "H100"}, "it ran on H100, not A100"),
        ({"ranks": 8}, "it has 4 ranks a node, not 8"),
        ({"versions": {"torch": "3"}}, "it ran with {'torch': '3'}, not {'torch': '2'}"),
        ({"steps": 12}, "2 steps after the first 10 of a start, 5 are wanted; train for more"),
        ({"nodes": None}, "do not say on how many nodes they were"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    write: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    one = write(1)
    other = write(2)
    assert compare([one, other], A100, Assumed(), leave_out=10)
    if changes.get("nodes", 2) is None:
        lines = (other / "metrics.jsonl").read_text().replace('"nodes": 2, ', "")
        (other / "metrics.jsonl").write_text(lines)
    else:
        write(2, **changes)
    with pytest.raises(DataError) as caught:
        compare([one, other], A100, Assumed(), leave_out=10)
    assert words in str(caught.value) and str(other) in str(caught.value)


def test_a_folder_without_a_run_and_fields_of_a_recipe_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/metrics.jsonl: cannot be read: No such file"):
        read_measured(tmp_path / "nowhere", leave_out=3)
    with pytest.raises(DataError, match="are both of 1 nodes"):
        compare([write(1), write(1)], A100, Assumed(), leave_out=3)
    with pytest.raises(ConfigError, match="the recipe is that of the runs"):
        run_plan(["--measured", str(write(1)), "--train.steps", "7"])


def each_on_a_node_of_its_own(launch: Launch, config: Any) -> int:
    facts = {"node": launch.rank, "num_nodes": launch.world_size, "local_rank": 0, "local_world_size": 1}
    return run_training(config, dataclasses.replace(launch, **facts))


def test_two_real_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command of docs/scaling.md."""
    data = make_blend(tmp_path / "data")
    changes = {"train.steps": 9, "train.validate_every": 0, "checkpoint.every": 0, "telemetry.every": 0}
    for nodes in (1, 2):
        config = recipe(data, tmp_path / "runs" / "scaling" / f"nodes-{nodes}", **changes)
        assert launch_ranks(each_on_a_node_of_its_own, nodes, config) == [0] * nodes
    [command] = commands_by("plan/test_measured.py::test_two_real_runs_are_compared", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_plan(command.smaller[2:]) == 0 and (tmp_path / "report.md").exists()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[:2] for row in cells] == [["1", "1"], ["2", "2"]] and [row[3] for row in cells] == ["6", "6"]
    assert cells[0][8:] == ["100%", "100%"] and 0 < int(cells[1][8][:-1]) < 200
    assert all(float(row[4]) > 0 and float(row[6].replace(",", "")) > 0 for row in cells)
