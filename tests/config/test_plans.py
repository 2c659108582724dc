"""What `build()` decides: placement, sizes that follow others, and soundness of any plan; without torch."""

from __future__ import annotations

import random
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.config import Facts, RunConfig, build, load_recipe, replace
from megatron_most.config.partition import ExpertGroup, parse_groups, place
from megatron_most.errors import ConfigError, MostError
from megatron_most.vocab import TAG_NAMES
from tests.config.runs import FIELDS, MACHINE, TINY, check_invariants, plan_for

ROOT = Path(__file__).resolve().parents[2]
Changes = dict[str, Any]
TP2, EP2, CP2, PP2 = ({f"layout.{name}": 2} for name in ("tensor", "expert", "context", "pipeline"))


def test_auto_placement_is_striped_under_expert_parallelism_and_blocked_otherwise() -> None:
    alone, spread = plan_for({}).moe, plan_for(EP2, world_size=2).moe
    assert alone is not None and spread is not None
    assert alone.slot_of == tuple(range(8))
    assert spread.expert_at(1) == (0, 1, 4, 5, 2, 3, 6, 7)  # half of text and half of audio on each rank
    blocked = plan_for({**EP2, "moe.placement": "blocked"}, world_size=2).moe
    assert blocked is not None and blocked.slot_of == alone.slot_of


def test_expert_tensor_parallelism_follows_tensor_unless_experts_are_spread() -> None:
    def size(changes: Changes, processes: int) -> tuple[int, int]:
        layout = plan_for(changes, world_size=processes).layout
        return layout.expert_tensor, layout.expert_data

    assert size(TP2, 4) == (2, 2)
    assert size({**TP2, **EP2}, 4) == (1, 2)
    assert size({**TP2, **EP2, "layout.expert_tensor": 2}, 4) == (2, 1)


def test_a_layout_names_itself_by_its_sizes_above_one() -> None:
    assert str(plan_for({}).layout) == "one process"
    assert str(plan_for({**TP2, **EP2, **CP2, **PP2}, world_size=16).layout) == "TP2xPP2xCP2xEP2xDP2"


def test_an_auxiliary_loss_without_weight_is_none() -> None:
    with_weight, without = plan_for({}).moe, plan_for({"moe.aux_coefficient": 0.0}).moe
    assert with_weight is not None and without is not None
    assert (with_weight.aux_loss, without.aux_loss) == ("group", "none")


def test_a_shared_only_tag_named_twice_counts_once() -> None:
    plan = plan_for({"moe.shared_only_tags": ["wave", "wave"]})
    assert plan.moe is not None and plan.moe.shared_only == (2,)


def test_importing_config_is_quick_and_leaves_torch_and_the_flag_parser_out() -> None:
    code = (
        "import sys, time; start = time.process_time(); import megatron_most.config as c\n"
        "c.build(c.load_recipe('most-tiny'), c.Facts(world_size=1, device='cpu', core_version=(0, 16)))\n"
        "print(time.process_time() - start)\n"
        "print(sorted({'torch', 'numpy', 'tyro', 'argparse', 'megatron', 'deepspeed'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 1  # of the processor: a busy machine is not our fault
    assert loaded == "[]"


# Properties


@st.composite
def partitions(draw: st.DrawFn, multiple: int = 1) -> list[tuple[int, ...]]:
    """Groups of any sizes (times `multiple`), ids dealt at random, each ascending."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=len(TAG_NAMES)))
    ids = draw(st.permutations(range(sum(sizes) * multiple)))
    cut = [sum(sizes[:index]) * multiple for index in range(len(sizes) + 1)]
    return [tuple(sorted(ids[first:last])) for first, last in zip(cut, cut[1:], strict=False)]


def write_ids(ids: tuple[int, ...], rng: random.Random) -> str:
    """Neighbours joined to runs or not, in any order, with or without spaces."""
    runs: list[list[int]] = []
    for expert in ids:
        if runs and runs[-1][-1] == expert - 1 and rng.random() < 0.7:
            runs[-1].append(expert)
        else:
            runs.append([expert])
    rng.shuffle(runs)
    space = rng.choice(["", " "])
    written = (
        str(run[0]) if len(run) == 1 and rng.random() < 0.9 else f"{run[0]}{space}-{space}{run[-1]}" for run in runs
    )
    return f"{space},{space}".join(written)


@settings(max_examples=100, deadline=None)
@given(partitions(), st.randoms(use_true_random=False))
def test_any_partition_reads_back_as_it_was_written(partition: list[tuple[int, ...]], rng: random.Random) -> None:
    lines = [f"{TAG_NAMES[index]}: {write_ids(ids, rng)}" for index, ids in enumerate(partition)]
    wanted = tuple(ExpertGroup(tags=(TAG_NAMES[index],), experts=ids) for index, ids in enumerate(partition))
    assert parse_groups(lines, sum(map(len, partition))) == wanted
    spoilt = [*lines[:-1], f"{lines[-1]}, {partition[0][0]}"]
    with pytest.raises(ConfigError, match=f"experts owned twice: {partition[0][0]};"):
        parse_groups(spoilt, sum(map(len, partition)))
    with pytest.raises(ConfigError, match=f"owned by nobody: {sum(map(len, partition))};"):
        parse_groups(lines, sum(map(len, partition)) + 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["text", "audio", ":", " ", "+", ",", "-", "0", "1", "2-3", "\n"])).map("".join))
)
def test_any_line_is_read_or_refused_by_name(lines: list[str]) -> None:
    try:
        read = parse_groups(lines, 4)
    except ConfigError as error:
        assert error.field == "moe.groups" and error.value == tuple(lines)
    else:
        assert sorted(expert for group in read for expert in group.experts) == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6).flatmap(lambda ranks: st.tuples(st.just(ranks), partitions(multiple=ranks))))
def test_striped_placement_is_a_permutation_that_gives_each_rank_its_share_of_each_group(
    drawn: tuple[int, list[tuple[int, ...]]],
) -> None:
    ranks, partition = drawn
    slot_of = place(partition, "striped", ranks)
    assert sorted(slot_of) == list(range(len(slot_of)))
    per_rank = len(slot_of) // ranks
    for group in partition:
        assert Counter(slot_of[expert] // per_rank for expert in group) == dict.fromkeys(
            range(ranks), len(group) // ranks
        )
    assert place(partition, "blocked", ranks) == tuple(range(len(slot_of)))
    if ranks > 1:
        with pytest.raises(ConfigError, match=f"layout.expert = {ranks}: does not divide group 0 of 1 experts"):
            place([(0,), tuple(range(1, ranks))], "striped", ranks)


NUMBERS = st.integers(-2, 9) | st.sampled_from([12, 16, 64, 96, 128, 1000, 2560, 10**9, 10**40])
FLOAT = st.floats() | st.sampled_from([0.0, 1.0, 1e-3, 40.0])
LINES = st.sampled_from(
    [*(f"{tags}: {ids}" for tags in ("text", "audio", "wave+text") for ids in ("0-3", "4-7", "7")), "?"]
)
MODULES = st.sampled_from(["core_attn", "mla_up_proj", "mlp", "moe", "layernorm", "all"])
NAMES = ("mtp_num_layers", "window", "sequence_parallel", "zero_optimization.stage", "gradient_clipping", "")
SCALARS = st.booleans() | NUMBERS | FLOAT | st.sampled_from(["none", "fp32"])


def values_for(name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of the right type, most of them wrong in some other way; memory-sized ones excepted."""
    lists = {
        "moe.groups": LINES,
        "moe.shared_only_tags": st.sampled_from([*TAG_NAMES, "x"]),
        "recompute.modules": MODULES,
    }
    if name in lists:
        return st.lists(lists[name], max_size=4)
    if name.startswith("tokens.") and hint is int:
        return st.integers(-2, 300)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is dict:
        return st.dictionaries(st.sampled_from(NAMES), SCALARS, max_size=2)
    kinds = {bool: st.booleans(), int: NUMBERS, float: FLOAT, str: st.text(string.printable, max_size=5)}
    if get_origin(hint) is tuple:
        return st.tuples(FLOAT, FLOAT) if hint == tuple[float, float] else st.lists(st.integers(-1, 5), max_size=5)
    (kind,) = (kind for kind in (get_args(hint) or (hint,)) if kind is not type(None))
    return kinds[kind] if hint is kind else kinds[kind] | st.none()


def test_any_edit_builds_a_sound_plan_or_raises_an_error_of_ours() -> None:
    ends: Counter[str] = Counter()
    edit = st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.tuples(st.just(name), values_for(name, FIELDS[name]))
    )
    recipe = st.sampled_from([TINY, *map(load_recipe, ("most-tiny-upcycled", "most-tiny-dense", "no-shared-tiny"))])
    machine = st.fixed_dictionaries(
        {"world_size": st.sampled_from([1, 2, 4, 8, 12]), "device": st.sampled_from(["cpu", "gpu"])}
    )

    @settings(max_examples=200, deadline=None)
    @given(recipe, st.lists(edit, min_size=1, max_size=4), machine)
    def body(config: RunConfig, edits: list[tuple[str, Any]], machine: Changes) -> None:
        try:
            plan = build(replace(config, dict(edits)), Facts(**{**MACHINE, **machine}))
        except MostError as error:
            ends["refused"] += 1
            assert len(str(error)) > 20
        else:
            ends["built"] += 1
            check_invariants(plan)

    body()
    assert min(ends["built"], ends["refused"]) > 20, ends
