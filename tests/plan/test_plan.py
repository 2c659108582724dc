"""Layouts, times and cost: what a plan must say, and what it must refuse."""

from __future__ import annotations

import json
from dataclasses import replace as change
from math import prod
from pathlib import Path

import pytest

from megatron_most.config import ExpertLoad, Facts, RunConfig, build, load_recipe, replace
from megatron_most.convert.families import FAMILIES
from megatron_most.convert.shares import held_by_rank
from megatron_most.convert.tables import link
from megatron_most.errors import ConfigError, DataError, LayoutError
from megatron_most.plan import MACHINES, Assumed, Cluster, Prediction, cost_of, for_planning, predict_recipe, run_plan
from megatron_most.plan.command import seconds_of
from megatron_most.plan.loads import imbalance
from megatron_most.plan.ranking import facts_for, search
from megatron_most.plan.traffic import Ring
from megatron_most.plan.weights import held_by_stage, tensors_of

CORE = (0, 16)
LOADS = Path(__file__).parents[1] / "loads" / "four_layers.json"
A100 = MACHINES["a100-80"]
SIX = Cluster(nodes=6, gpus=8, machine=A100)
PHASE = for_planning(load_recipe("stage1-asr-tts"))
ONE_ROW = {"train.batch_counts": "rows", "train.global_batch_size": 48, "engine.offload_optimizer": False}


def told(changes: dict[str, object], cluster: Cluster = SIX, assumed: Assumed | None = None) -> Prediction:
    config: RunConfig = replace(PHASE, {"layout.expert": 8, **changes})
    return predict_recipe(config, facts_for(cluster, CORE), cluster, assumed or Assumed())


@pytest.mark.parametrize(
    ("name", "changes", "world"),
    [
        ("most-16b", {"layout.expert": 8}, 8),
        ("most-tiny", {"layout.tensor": 2, "layout.expert": 2, "layout.pipeline": 2}, 4),
        ("most-tiny", {"layout.tensor": 2, "layout.expert": 2, "layout.expert_tensor": 2}, 4),
        ("most-tiny-upcycled", {"layout.tensor": 2, "layout.pipeline": 2}, 4),
        ("most-3b-dense", {"layout.tensor": 4, "layout.pipeline": 2}, 8),
    ],
)
def test_every_rank_holds_as_many_numbers_as_its_stage_is_said_to(name: str, changes: dict, world: int) -> None:
    config = replace(load_recipe(name), {"engine.zero_stage": 1, **changes})
    plan = build(config, Facts(world_size=world, device="gpu", core_version=CORE))
    links = [one for one in link(FAMILIES["most"].table, plan) if not one.is_buffer]
    said = held_by_stage(plan, tensors_of(plan))
    for rank, boxes in enumerate(held_by_rank(links, plan)):
        stage = rank // (world // plan.layout.pipeline)
        assert sum(prod(shape) for _, _, shape, _ in boxes) == said[stage].others + said[stage].experts


def test_a_ring_over_nodes_uses_their_ports_together_and_an_all_to_all_each_its_own() -> None:
    assumed = Assumed(link_efficiency=1.0, latency_s=0.0)
    alone, four = Ring.of(6, 8, 8), Ring.of(24, 2, 8)
    assert (alone.in_node, alone.link, four.in_node, four.nodes) == (1, "between", 4, 6)
    assert Ring.of(8, 1, 8).link == Ring.of(4, 2, 8).link == "inside"
    second = A100.between
    assert alone.seconds(second, 1, A100, assumed, all_to_all=False) == pytest.approx(1.0)
    assert four.seconds(second, 1, A100, assumed, all_to_all=False) == pytest.approx(0.25)
    assert four.seconds(second, 1, A100, assumed, all_to_all=True) == pytest.approx(20 / 23)


def test_zero_2_sends_gradients_after_each_micro_batch_and_zero_1_once_a_step() -> None:
    batch = {**ONE_ROW, "train.global_batch_size": 48 * 5}
    sent = {}
    for stage in (1, 2):
        flows = told({**batch, "engine.zero_stage": stage}).flows
        sent[stage] = {flow.kind: flow.sent for flow in flows}
    assert sent[2]["data: gradients"] == pytest.approx(5 * sent[1]["data: gradients"])
    assert sent[2]["expert data: weights"] == sent[1]["expert data: weights"] > 0
    held = held_by_stage(told(batch).plan, tensors_of(told(batch).plan))[0]
    assert sent[1]["data: gradients"] == pytest.approx(2 * 47 / 48 * 4 * held.others)


def test_the_batch_stays_and_fillers_take_their_time() -> None:
    even, odd = told({**ONE_ROW, "train.global_batch_size": 96}), told({**ONE_ROW, "train.global_batch_size": 97})
    assert (even.batch.micro_batches, even.batch.fillers) == (2, 0)
    assert (odd.batch.micro_batches, odd.batch.computed_rows) == (3, 144) and odd.batch.fillers == pytest.approx(
        47 / 144
    )
    assert odd.step.compute == pytest.approx(1.5 * even.step.compute)
    growing = told({**ONE_ROW, "train.ramp_from": 24, "train.ramp_steps": 400, "train.steps": 800})
    assert 24 < growing.batch.rows < 48
    documents = told({}).batch
    assert documents.rows == pytest.approx(512 / 6) and documents.micro_batches == 2


@pytest.mark.parametrize(
    ("less", "more", "part"),
    [
        ({"recompute.granularity": "full"}, {}, "experts"),
        ({}, {"train.micro_batch_size": 2}, "activations"),
        ({"engine.zero_stage": 3}, {"engine.zero_stage": 2}, "weights"),
        ({"engine.zero_stage": 2}, {"engine.zero_stage": 1}, "gradients"),
        ({"engine.offload_optimizer": True}, {"engine.offload_optimizer": False}, "optimizer"),
        ({"layout.tensor": 2}, {}, "activations"),
    ],
)
def test_what_saves_memory_is_seen_where_it_saves(less: dict, more: dict, part: str) -> None:
    small, large = told({**ONE_ROW, **less}), told({**ONE_ROW, **more})
    assert small.memory.parts[part] < 0.9 * large.memory.parts[part]
    # Under ZeRO-3 experts compute by Core's loop, which keeps more: all the rest is less.
    extra = max(0.0, small.memory.parts["experts"] - large.memory.parts["experts"])
    assert (extra > 0) == (less.get("engine.zero_stage") == 3)
    assert small.memory.total - extra < large.memory.total


def test_pipelines_have_a_bubble_and_hold_several_micro_batches() -> None:
    batch = {**ONE_ROW, "train.global_batch_size": 160, "engine.zero_stage": 1}
    piped = told({**batch, "layout.pipeline": 3})
    assert piped.plan.layout.data == 16 and piped.step.bubble == pytest.approx(piped.step.compute * 2 / 10)
    one = sum(piped.memory.modules.values())
    assert piped.memory.activations + piped.memory.experts == pytest.approx(3 * one) and piped.memory.stage == 0
    assert any(flow.kind == "pipeline" for flow in piped.flows) and told(batch).step.bubble == 0


def test_small_pieces_of_work_wait_for_the_host() -> None:
    fast, slow = (told(ONE_ROW, assumed=Assumed(operation_s=seconds)).step.compute for seconds in (1e-9, 1e-3))
    assert slow > 5 * fast


def test_the_best_layouts_fit_and_are_told_fastest_first_with_reasons_for_all_others() -> None:
    three = change(SIX, nodes=3)
    found = search(PHASE, facts_for(three, CORE), three, Assumed())
    assert len(found.ranked) > 20 and all(one.lacks <= 0 for one in found.ranked)
    times = [one.step.total for one in found.ranked]
    assert times == sorted(times)
    assert all(build(one.plan.config, one.plan.facts) for one in found.ranked[:5])
    reasons = {one.reason.partition(":")[0]: one.count for one in found.refused}
    assert reasons["engine.zero_stage"] and reasons["the number of GPUs is no multiple of what the sizes need together"]
    small = change(three, machine=change(A100, memory=32 * 2**30))
    lacking = search(PHASE, facts_for(small, CORE), small, Assumed())
    assert 0 < len(lacking.ranked) < len(found.ranked)
    assert sum(one.count for one in lacking.refused if "does not fit" in one.reason) > 20
    assert lacking.ranked[0].step.total > found.ranked[0].step.total


def test_a_chain_that_cannot_hold_the_run_is_refused() -> None:
    one, assumed = told({"engine.offload_optimizer": False}), Assumed()
    tensors = tensors_of(one.plan)
    alone = cost_of(one, tensors, assumed)
    assert alone.chain.jobs == 1 and alone.gpu_hours == pytest.approx(48 * 24 * alone.days)
    chained = cost_of(one, tensors, assumed, 86400.0)
    assert chained.chain.jobs > alone.days and chained.chain.seconds > alone.chain.seconds
    assert cost_of(one, tensors, assumed, 86400.0, chained.chain.jobs).chain.jobs == chained.chain.jobs
    with pytest.raises(ConfigError, match=rf"--jobs = {chained.chain.jobs - 1}: .* allow {chained.chain.jobs} jobs"):
        cost_of(one, tensors, assumed, 86400.0, chained.chain.jobs - 1)
    with pytest.raises(ConfigError, match="--time-limit = '0.05 h': .* no step"):
        cost_of(one, tensors, assumed, 180.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("2-00", 172800), ("1-12:30", 131400), ("1-00:00:01", 86401)],
)
def test_times_are_read_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def uneven(texts: list[int], audios: list[int]) -> ExpertLoad:
    half = len(texts)
    groups = {"text": tuple(range(half)), "audio": tuple(range(half, 2 * half))}
    return ExpertLoad(step=9, groups=groups, layers={1: tuple(texts + audios), 2: (1,) * (2 * half)})


def test_imbalance_is_counted_by_placement_and_mix_whatever_mix_was_measured() -> None:
    even = uneven([1] * 4, [100] * 4)
    assert imbalance(even, "striped", 2, 10).worst == imbalance(even, "dealt", 4, 90).worst == pytest.approx(1.0)
    assert imbalance(even, "blocked", 2, 10).mean == pytest.approx(1.8)
    skewed = uneven([3, 3, 1, 1], [10, 30, 30, 10])
    found = imbalance(skewed, "striped", 2, 50)  # text 6 and 2, audio 40 and 40: 5/4 and 1, of two layers one even
    assert (found.worst, found.mean) == (pytest.approx(1.25), pytest.approx(1.125))
    assert imbalance(skewed, "striped", 2, 100).worst == pytest.approx(1.5)
    assert imbalance(skewed, "dealt", 2, 100).worst == imbalance(skewed, "dealt", 2, 0).worst == pytest.approx(1.0)
    idle = uneven([0] * 4, [1, 2, 3, 4])
    assert imbalance(idle, "dealt", 2, 50).worst == pytest.approx(1.0)  # a group that had no tokens is taken as even


def test_the_command_tells_what_measured_loads_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "expert_load.json"
    file.write_text(uneven([8, 4] * 16, [1, 2, 3, 4] * 8).to_json())
    words = ["--nodes", "6", "--explain", "recipe", "--layout.expert", "8", "--loads", str(file)]
    assert run_plan([*words, "--json"]) == 0
    rows = {(row["percent"], row["way"]): row for row in json.loads(capsys.readouterr().out)["loads"]}
    assert len(rows) == 9
    for percent in (10, 50, 90):
        blocked, striped, dealt = (rows[percent, way] for way in ("blocked", "striped", "dealt"))
        assert dealt["busiest"]["mean"] <= striped["busiest"]["mean"] <= blocked["busiest"]["mean"]
        assert dealt["by_even"] == pytest.approx(1.0, abs=1e-6) and blocked["seconds"] >= striped["seconds"]
    assert rows[10, "blocked"]["by_even"] > 1.05
    assert run_plan(words) == 0
    shown = capsys.readouterr().out
    assert "8 expert ranks" in shown and "10  blocked" in shown and max(map(len, shown.splitlines())) <= 120


def test_the_command_tells_layouts_cost_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan(["--nodes", "1", "--machine", "h100-80", "--explain", "1", "--top", "3"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "15.71 B parameters",
        "8 h100-80",
        " 3. ",
        "are refused",
        "traffic of a rank",
        "GPU-hours",
        "of quota",
    ):
        assert words in shown, words
    assert max(map(len, shown.splitlines())) <= 120
    assert run_plan(["--nodes", "1", "--json", "--explain", "recipe", "--train.steps", "10", "--sequence", "1024"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert "loads" not in body
    assert body["chosen"]["fits"] and body["cost"]["chain"]["saves"] == 1
    assert body["chosen"]["memory_bytes"]["total"] < 80 * 2**30


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--memory", "8", "--nodes", "1"], LayoutError, "no layout of 8 GPUs fits"),
        (["--explain", "recipe", "--memory", "20"], LayoutError, "does not fit"),
        (["--explain", "recipe", "--layout.tensor", "5"], LayoutError, "multiple of 5"),
        (["--time-limit", "1:00:00", "--jobs", "3", "--explain", "recipe"], ConfigError, "allow .* jobs"),
        (["--jobs", "3", "--explain", "recipe"], ConfigError, "time limit"),
        (
            ["--quota", "0.3", "--explain", "recipe"],
            ConfigError,
            "--quota = 0.3: . checkpoints of 0.188 TB .* 0.754 TB",
        ),
        (["--time-limit", "soon", "--explain", "recipe"], ConfigError, "not a time"),
        (["--assume", "speed=3"], ConfigError, "no such assumption"),
        (["--assume", "efficiency=much"], ConfigError, "no number"),
        (["--assume", "efficiency=5"], ConfigError, "a share is at most 1"),
        (["--assume", "imbalance=0.5"], ConfigError, "at least the mean"),
        (
            ["--loads", str(LOADS)],
            ConfigError,
            r"--loads = .*groups of \[4, 4\] experts, the recipe's are of \[32, 32\]",
        ),
        (["--loads", "no-such.json"], DataError, "no-such.json: not a readable table of expert loads"),
        (["--loads", str(LOADS), "--config", "most-3b-dense"], ConfigError, "spreads no experts"),
        (["--loads", str(LOADS), "--measured", "x"], ConfigError, "it is for predictions"),
        (["--report", "x.md"], ConfigError, "it is for --measured"),
        (["--leave-out", "3"], ConfigError, "it is for --measured"),
        (["--explain", "0"], ConfigError, "neither a number"),
    ],
)
def test_the_command_refuses_in_words(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_plan(words)


@pytest.mark.parametrize("words", ["--nodes abc", "--nodes 0", "--memory 1e9", "--peak much", "--memory nan"])
def test_a_number_that_cannot_be_is_told_with_what_is_wanted(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_plan(words.split())
    assert f"{words.split()[1]}: a" in capsys.readouterr().err
