"""Partitions are read or refused by field name; striped placement gives every rank its share of every group."""

# E routed experts

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_most.config import Facts, MoEPlan, build, load_recipe, replace
from megatron_most.config.partition import parse_groups, place
from megatron_most.errors import ConfigError
from megatron_most.vocab import TAG_NAMES


def build_moe(world_size: int = 1, **changes: Any) -> MoEPlan:
    """The plan of most-tiny with fields of [moe] changed; `expert` is layout.expert."""
    named = {"layout.expert" if name == "expert" else f"moe.{name}": value for name, value in changes.items()}
    config = replace(load_recipe("most-tiny"), {"train.micro_batch_size": 1, **named})
    plan = build(config, Facts(world_size=world_size, device="cpu", core_version=(0, 16)))
    assert plan.moe is not None
    return plan.moe


PLAN = build_moe()
UNEVEN = ["text: 0,2,4,5,6,7", "audio: 1,3"]


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[list[int]], list[str]]:
    """Groups of experts, and lines that list them out of order, with runs, alone and with blanks."""
    owner = draw(st.lists(st.integers(0, 2), min_size=1, max_size=24))
    groups = [[e for e, group in enumerate(owner) if group == g] for g in sorted(set(owner))]
    lines = []
    for group in groups:
        starts = [e for e in group if e - 1 not in group]
        runs = [(first, next(e for e in range(first, 25) if e + 1 not in group)) for first in starts]
        blank = draw(st.sampled_from(["", " "]))
        words = [f"{a}" if a == b else f"{a}{blank}-{blank}{b}" for a, b in draw(st.permutations(runs))]
        lines.append(f"{draw(st.sampled_from(TAG_NAMES))}{blank}:{blank}" + f"{blank},{blank}".join(words))
    return groups, lines


@given(partitions())
def test_a_partition_is_read_as_it_was_written(written: tuple[list[list[int]], list[str]]) -> None:
    groups, lines = written
    parsed = parse_groups(lines, sum(map(len, groups)))
    assert [list(group.experts) for group in parsed] == groups
    assert [group.tags[0] for group in parsed] == [line.split(":")[0].strip() for line in lines]


def test_tags_joined_by_plus_own_a_group_together() -> None:
    plan = build_moe(groups=["text: 0-3", "audio + wave: 4-7"], shared_only_tags=[])
    assert plan.group_names == ("text", "audio+wave") and plan.group_of_tag == (0, 1, 1) and plan.shared_only == ()


@pytest.mark.parametrize(
    ("groups", "wrong"),
    [
        (["text: 0-3", "audio: 3-7"], "owned twice: 3"),
        (["text: 0,0-3", "audio: 4-7"], "owned twice: 0"),
        (["text: 0-2", "audio: 5-7"], "owned by nobody: 3, 4"),
        (["text: 0-3", "audio: 4-8"], "no expert 8"),
        (["text: 3-0", "audio: 4-7"], "'3-0' runs backwards"),
        (["text 0-3", "audio: 4-7"], "cannot read 'text 0-3'"),
        (["text:", "audio: 0-7"], "cannot read 'text:'"),
        (["text: -1-3", "audio: 4-7"], "cannot read"),
        (["text: 0-3", "speech: 4-7"], "no such tag"),
        (["text: 0-3", "text+audio: 4-7"], "tag text is"),
        (["text+text: 0-3", "audio: 4-7"], "tag text is"),
        (["text: 0-7"], "tag audio owns no experts"),
    ],
)
def test_a_wrong_partition_is_refused_as_moe_groups(groups: list[str], wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_moe(groups=groups)
    assert caught.value.field == "moe.groups"
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shared_only_tags": []}, "moe.groups"),  # wave owns nothing, and nobody said it should
        ({"shared_only_tags": ["wave", "audio"]}, "moe.shared_only_tags"),
        ({"shared_only_tags": ["music"]}, "moe.shared_only_tags"),
        ({"shared_hidden_size": 0}, "moe.shared_only_tags"),
        ({"top_k": 4, "groups": ["text: 0-4", "audio: 5-7"]}, "moe.top_k"),
        ({"num_experts": 9}, "moe.groups"),
    ],
)
def test_what_a_partition_cannot_serve_is_refused_by_field_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_moe(**changes)
    assert caught.value.field == field


@st.composite
def striped(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Interleaved groups whose sizes a number of ranks divides, and that number."""
    ranks, shares = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ids = draw(st.permutations(range(ranks * sum(shares))))
    groups, at = [], 0
    for share in shares:
        groups.append(sorted(ids[at : at + ranks * share]))
        at += ranks * share
    return groups, ranks


@given(striped())
def test_striped_gives_every_rank_its_share_of_every_group(case: tuple[list[list[int]], int]) -> None:
    groups, ranks = case
    slot_of = place(groups, "striped", ranks)
    num_experts = len(slot_of)
    assert sorted(slot_of) == list(range(num_experts))
    for group in groups:
        owners = [slot_of[e] // (num_experts // ranks) for e in group]
        assert [owners.count(rank) for rank in range(ranks)] == [len(group) // ranks] * ranks


@given(striped())
def test_blocked_is_the_identity(case: tuple[list[list[int]], int]) -> None:
    groups, ranks = case
    assert place(groups, "blocked", ranks) == tuple(range(sum(map(len, groups))))


def test_a_striped_plan_knows_both_directions_and_most_tiny_by_heart() -> None:
    plan = build_moe(world_size=2, expert=2, placement="striped")
    assert plan.slot_of == (0, 1, 4, 5, 2, 3, 6, 7)
    assert all(plan.expert_at(1)[plan.slot_of[e]] == e and plan.slot_of[plan.expert_at(1)[e]] == e for e in range(8))
    assert plan.expert_at(1) != tuple(range(8))


@given(st.permutations(range(8)))
def test_expert_at_is_the_inverse_of_any_placement(slot_of: list[int]) -> None:
    plan = dataclasses.replace(PLAN, slot_of=tuple(slot_of))
    assert [plan.slot_of[e] for e in plan.expert_at(1)] == list(range(8))


@pytest.mark.parametrize(("expert", "expected"), [(1, tuple(range(8))), (2, (0, 1, 4, 5, 2, 3, 6, 7))])
def test_placement_is_striped_by_itself_exactly_when_expert_parallel(expert: int, expected: tuple[int, ...]) -> None:
    assert build_moe(world_size=2, expert=expert).slot_of == expected


@pytest.mark.parametrize("placement", ["auto", "striped"])
def test_expert_parallelism_that_divides_no_group_is_refused_as_layout_expert(placement: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_moe(world_size=4, expert=4, groups=UNEVEN, placement=placement)
    assert caught.value.field == "layout.expert"
    assert "group 0 of 6 experts" in str(caught.value) and "blocked" in caught.value.remedy


def test_blocked_placement_needs_no_even_groups_but_an_even_number_of_experts() -> None:
    assert build_moe(world_size=4, expert=4, groups=UNEVEN, placement="blocked").slot_of == tuple(range(8))
    with pytest.raises(ConfigError) as caught:
        build_moe(world_size=3, expert=3, placement="blocked")
    assert caught.value.field == "layout.expert"


def test_experts_are_owned_ascending_however_they_were_listed() -> None:
    assert build_moe(groups=["text: 6,0-2", "audio: 7,3-5"]).groups == ((0, 1, 2, 6), (3, 4, 5, 7))
