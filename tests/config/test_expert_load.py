"""Measured loads: what is kept comes back, what is no such file is refused, and striped placement deals by it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.config import ExpertLoad, Facts, MoEPlan, build, load_recipe, place, replace
from megatron_most.errors import ConfigError, DataError

LOADS = Path(__file__).parents[1] / "loads" / "four_layers.json"
LOAD = ExpertLoad.load(LOADS)


def plan_with(load_file: Path, **changes: Any) -> MoEPlan:
    given = {"moe.load_file": str(load_file), "layout.expert": 2, "train.micro_batch_size": 1, **changes}
    config = replace(load_recipe("most-tiny"), given)
    plan = build(config, Facts(world_size=2, device="cpu", core_version=(0, 16)))
    assert plan.moe is not None
    return plan.moe


def carried(load_E: tuple[float, ...], slot_of: tuple[int, ...], ranks: int, group: tuple[int, ...]) -> list[float]:
    """Tokens of a group for each rank."""
    found = [0.0] * ranks
    for expert in group:
        found[slot_of[expert] * ranks // len(slot_of)] += load_E[expert]
    return found


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text(LOAD.to_json())
    assert ExpertLoad.load(tmp_path / "load.json") == LOAD and (tmp_path / "load.json").read_text() == LOADS.read_text()


def test_each_layer_is_dealt_by_its_own_loads_and_shares_every_group_evenly() -> None:
    moe = plan_with(LOADS)
    assert sorted(moe.dealt) == [1, 2, 3] and len(set(moe.dealt.values())) > 1
    for layer, load_E in LOAD.layers.items():
        slots = moe.slots(layer)
        assert [slots[expert] for expert in moe.expert_at(layer)] == list(range(8))
        for group in moe.groups:
            owners = [slots[expert] // 4 for expert in group]
            assert owners.count(0) == owners.count(1) == 2
            best = min(
                max(sum(load_E[e] for e in pair), sum(load_E[e] for e in group if e not in pair))
                for pair in itertools.combinations(group, 2)
            )
            assert max(carried(load_E, slots, 2, group)) == best, "of two ranks with two experts each the best there is"
    assert moe.slots(0) == moe.slot_of == (0, 1, 4, 5, 2, 3, 6, 7), "a layer without loads stays striped by id"


@given(st.lists(st.integers(0, 1000), min_size=16, max_size=16), st.sampled_from([2, 4, 8]))
@settings(max_examples=200)
def test_dealing_is_a_placement_that_is_never_worse_than_its_bound(loads: list[int], ranks: int) -> None:
    groups = [tuple(range(8)), tuple(range(8, 16))]
    slot_of = place(groups, "striped", ranks, loads)
    assert sorted(slot_of) == list(range(16))
    for group in groups:
        owners = [slot_of[expert] * ranks // 16 for expert in group]
        assert all(owners.count(rank) == 8 // ranks for rank in range(ranks))
        tokens = carried(tuple(loads), slot_of, ranks, group)
        # Greedy: what puts a rank above another is at most one expert, the busiest.
        assert max(tokens) - min(tokens) <= max(loads[expert] for expert in group)
    again = place(groups, "striped", ranks, [load * 3 for load in loads])
    assert again == slot_of, "only how experts compare counts"


def test_ranks_trade_where_the_busiest_first_is_not_the_best() -> None:
    loads = [8, 7, 6, 5, 4, 2]  # the busiest first: 8+5+4 and 7+6+2, or 17 and 15; there is 16 and 16
    slot_of = place([range(6)], "striped", 2, loads)
    assert carried(tuple(loads), slot_of, 2, tuple(range(6))) == [16, 16]


def test_two_groups_busiest_experts_are_not_on_one_rank() -> None:
    slot_of = place([(0, 1), (2, 3)], "striped", 2, [9, 1, 9, 1])
    assert slot_of[0] // 2 != slot_of[2] // 2


def test_loads_are_unused_without_expert_ranks_and_refused_with_blocked_placement(tmp_path: Path) -> None:
    assert plan_with(tmp_path / "missing.json", **{"layout.expert": 1}).dealt == {}
    with pytest.raises(ConfigError, match=r"moe\.load_file.*blocked"):
        plan_with(LOADS, **{"moe.placement": "blocked"})
    with pytest.raises(DataError, match=r"missing\.json.*expert_load\.json of a checkpoint"):
        plan_with(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe.groups": ["text: 0-3,5", "audio: 4,6,7"], "layout.expert": 1, "layout.tensor": 1}, None),
        ({"moe.groups": ["text: 0,1,2,4", "audio: 3,5-7"]}, "other expert groups"),
        ({"model.num_layers": 3}, "loads of layers 1, 2, 3, but experts are in 1, 2"),
    ],
)
def test_loads_of_another_model_are_refused(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert plan_with(LOADS, **changes).dealt == {}
        return
    with pytest.raises(DataError, match=message):
        plan_with(LOADS, **changes)


def damaged() -> dict[str, Any]:
    good = json.loads(LOADS.read_text())
    return {
        "no JSON": "{",
        "a list": "[]",
        "deep": "[" * 100_000,
        "another format": json.dumps({**good, "format": "x"}),
        "a step of words": json.dumps({**good, "step": "x"}),
        "a step below 0": json.dumps({**good, "step": -1}),
        "no groups": json.dumps({**good, "groups": {}}),
        "an expert twice": json.dumps({**good, "groups": {"text": [0, 1, 2, 3], "audio": [3, 5, 6, 7]}}),
        "true for 1": json.dumps({**good, "groups": {"text": [0, True, 2, 3], "audio": [4, 5, 6, 7]}}),
        "no layers": json.dumps({**good, "layers": {}}),
        "a layer of words": json.dumps({**good, "layers": {"x": good["layers"]["1"]}}),
        "a layer with a zero before": json.dumps({**good, "layers": {"01": good["layers"]["1"]}}),
        "too few": json.dumps({**good, "layers": {"1": [1, 2]}}),
        "below 0": json.dumps({**good, "layers": {"1": [-1, *good["layers"]["1"][1:]]}}),
        "not a number": json.dumps({**good, "layers": {"1": [float("nan"), *good["layers"]["1"][1:]]}}),
        "endless": json.dumps({**good, "layers": {"1": [float("inf"), *good["layers"]["1"][1:]]}}),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_is_one_message_with_its_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / "expert_load.json"
    path.write_text(damaged()[name])
    with pytest.raises(DataError) as caught:
        ExpertLoad.load(path)
    assert str(caught.value).startswith(str(path)) and "expert_load.json of a checkpoint" in str(caught.value)


def test_a_plan_is_compared_with_its_dealing() -> None:
    moe = plan_with(LOADS)
    assert moe != dataclasses.replace(moe, dealt={})
