"""Values that would fail later, or mean something else, are refused by their dotted name before anything starts.

Which upstream faults are refused is in test_refusals.py; here are sizes, experts, tags and placement.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from megatron_most.config import Facts, build, load_recipe, replace
from megatron_most.config import checks as checking
from megatron_most.errors import ConfigError, LayoutError
from tests.config.runs import FIELDS, TINY, check_invariants, plan_for

Changes = dict[str, Any]
TP2, EP2, CP2, PP2 = ({f"layout.{name}": 2} for name in ("tensor", "expert", "context", "pipeline"))
GQA = {"model.attention": "gqa", "model.rope": "plain"}
LLAMA3 = {"model.attention": "gqa", "model.rope": "llama3", "model.rope_original_length": 8192}
ROUTING = {"moe.routing_groups": 4, "moe.routing_groups_kept": 2}


def groups(*lines: str) -> Changes:
    return {"moe.groups": list(lines)}


# name: (changes, processes, field, words)
REFUSED: dict[str, tuple[Changes, int, str, str]] = {
    # partition
    "owned twice": (groups("text: 0-4", "audio: 4-7"), 1, "moe.groups", "twice: 4; list each of 0..7 once"),
    "owned twice in one group": (groups("text: 0-3,2", "audio: 4-7"), 1, "moe.groups", "experts owned twice: 2"),
    "owned by nobody": (groups("text: 0-2", "audio: 5-7"), 1, "moe.groups", "experts owned by nobody: 3, 4"),
    "many owned by nobody": (
        {"moe.num_experts": 64, **groups("text: 0-3", "audio: 4-7")}, 1,
        "moe.groups", "owned by nobody: 8, 9, 10, 11, 12, 13, 14, 15, ...;",
    ),
    "no groups": (groups(), 1, "moe.groups", "owned by nobody: 0, 1"),
    "unknown expert": (groups("text: 0-3", "audio: 4-8"), 1, "moe.groups", "there is no expert 8"),
    "backwards range": (groups("text: 3-0", "audio: 4-7"), 1, "moe.groups", "'3-0' runs backwards"),
    **{
        f"unreadable line {line!r}": (groups(line, "audio: 4-7"), 1, "moe.groups", f"cannot read {line!r}")
        for line in ("", "text", "text:", ": 0-3", "text 0-3", "text: 0..3", "text: 0-", "text: -1", "text: 0,,1")
        + ("text+: 0-3", "+text: 0-3", "Text: 0-3", "text: 0-3 audio: 4", "text: ٣", "text: " + "9" * 5000)
    },
    # tags
    "tag without group": (
        {**groups("text: 0-7")}, 1, "moe.groups",
        "tag audio owns no experts; give it a group, or add 'audio' to moe.shared_only_tags",
    ),
    "tag twice": (groups("text: 0-1", "text: 2-3", "audio: 4-7"), 1, "moe.groups", "tag text is listed twice"),
    "tag twice in one group": (groups("text+text: 0-3", "audio: 4-7"), 1, "moe.groups", "tag text is listed twice"),
    "unknown tag": (groups("txt: 0-3", "audio: 4-7"), 1, "moe.groups", "no such tag; use text, audio, wave"),
    "unknown shared-only tag": (
        {"moe.shared_only_tags": ["waves"]}, 1, "moe.shared_only_tags", "no such tag; use text",
    ),
    "shared-only tag with a group": (
        groups("text+wave: 0-3", "audio: 4-7"), 1, "moe.shared_only_tags", "wave owns a group too",
    ),
    "shared-only without shared experts": (
        {"moe.shared_hidden_size": 0}, 1, "moe.shared_only_tags", "so nothing would act on wave",
    ),
    # experts
    "top-k larger than a group": ({"moe.top_k": 5}, 1, "moe.top_k", "group text has only 4 experts; use at most 4"),
    "top-k larger than the smaller group": (
        {"moe.top_k": 3, **groups("text: 0-5", "audio: 6,7")}, 1, "moe.top_k", "group audio has only 2 experts",
    ),
    "no expert per token": ({"moe.top_k": 0}, 1, "moe.top_k", "must be at least 1"),
    "experts without width": ({"moe.expert_hidden_size": 0}, 1, "moe.expert_hidden_size", "must be at least 1"),
    "dense layer out of range": ({"moe.dense_layers": [0, 4]}, 1, "moe.dense_layers", "there is no layer 4; use 0..3"),
    "dense layer below 0": ({"moe.dense_layers": [-1]}, 1, "moe.dense_layers", "there is no layer -1"),
    "only dense layers": (
        {"moe.dense_layers": [3, 2, 1, 0, 0]}, 1, "moe.dense_layers", "no layer is left for the experts",
    ),
    "counts of the release without its loss": (
        {"moe.aux_counts_everything": True}, 1, "moe.aux_counts_everything", 'set moe.aux_loss = "reference"',
    ),
    "norms of heads that mla does not have": ({"model.qk_norm": True}, 1, "model.qk_norm", "mla norms its latents"),
    # routing groups
    "routing groups alone": ({"moe.routing_groups": 4}, 1, "moe.routing_groups", "belong together"),
    "kept routing groups alone": ({"moe.routing_groups_kept": 2}, 1, "moe.routing_groups", "belong together"),
    "routing groups not dividing": (
        {**ROUTING, "moe.routing_groups": 3}, 1, "moe.routing_groups", "moe.num_experts (8)",
    ),
    "no routing groups": ({**ROUTING, "moe.routing_groups": 0}, 1, "moe.routing_groups", "does not divide"),
    "more kept than there are": ({**ROUTING, "moe.routing_groups_kept": 5}, 1, "moe.routing_groups_kept", "use 1..4"),
    "none kept": (
        {**ROUTING, "moe.routing_groups_kept": 0}, 1, "moe.routing_groups_kept", "there are 4 routing groups",
    ),
    "kept with too few of a modality": (
        {**ROUTING, "moe.routing_groups_kept": 1, "moe.top_k": 3}, 1,
        "moe.routing_groups_kept", "may hold only 2 experts of text, moe.top_k is 3",
    ),
    # layout
    "EP not dividing a group when striped": (
        {"layout.expert": 4, **groups("text: 0-1", "audio: 2-7")}, 4,
        "layout.expert", "does not divide group 0 of 2 experts, as striped placement needs",
    ),
    "EP not dividing experts": ({"layout.expert": 3}, 3, "layout.expert", "does not divide moe.num_experts (8)"),
    "EP of a dense model": (
        {**EP2, "moe.num_experts": 0}, 2, "layout.expert", "a dense model has no experts to spread",
    ),
    "ETP not dividing expert width": (
        {"moe.expert_hidden_size": 33, **TP2}, 2, "layout.expert_tensor", "does not divide moe.expert_hidden_size (33)",
    ),
    "TP not dividing heads": ({"layout.tensor": 3}, 3, "layout.tensor", "does not divide model.num_heads (4)"),
    "TP not dividing ffn": ({"model.dense_hidden_size": 33, **TP2}, 2, "layout.tensor", "model.dense_hidden_size (33)"),
    "TP not dividing shared ffn": (
        {"moe.shared_hidden_size": 33, **TP2}, 2, "layout.tensor", "moe.shared_hidden_size (33)",
    ),
    "TP not dividing vocabulary": (
        {"tokens.multiple": 1, "tokens.num_units": 21, **TP2}, 2, "layout.tensor", "the vocabulary's rows (65)",
    ),
    "TP not dividing key heads": (
        {**GQA, **TP2, "model.num_kv_heads": 1}, 2, "layout.tensor", "model.num_kv_heads (1)",
    ),
    "PP not dividing layers": ({"layout.pipeline": 3}, 3, "layout.pipeline", "does not divide model.num_layers (4)"),
    # model
    "key heads not dividing heads": ({**GQA, "model.num_kv_heads": 3}, 1, "model.num_kv_heads", "model.num_heads (4)"),
    "heads not dividing width": (
        {**GQA, "model.hidden_size": 66}, 1, "model.num_heads", "does not divide model.hidden_size (66)",
    ),
    "odd head": ({**GQA, "model.head_dim": 15}, 1, "model.head_dim", "rotary dimensions come in pairs"),
    "odd head by division": ({**GQA, "model.hidden_size": 12}, 1, "model.head_dim", "rotary dimensions come in pairs"),
    "odd rope head": ({"model.qk_rope_head_dim": 7}, 1, "model.qk_rope_head_dim", "use an even number"),
    **{
        f"mla without {name}": ({f"model.{name}": 0}, 1, f"model.{name}", "must be at least 1 for mla")
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    },
    "llama3 rope with mla": ({"model.rope": "llama3"}, 1, "model.rope", "MLA knows plain and yarn"),
    "yarn with gqa": ({**GQA, "model.rope": "yarn"}, 1, "model.rope", "use plain or llama3 with gqa"),
    "llama3 rope of another length": (
        {**LLAMA3, "model.rope_original_length": 4096}, 1, "model.rope_original_length", "fixed at 8192",
    ),
    "yarn that shortens": ({"model.rope_factor": 0.5}, 1, "model.rope_factor", "use 1 or more"),
    "llama3 that shortens": ({**LLAMA3, "model.rope_factor": 0.0}, 1, "model.rope_factor", "use 1 or more"),
    "yarn with its betas swapped": (
        {"model.rope_beta_fast": 1.0, "model.rope_beta_slow": 32.0}, 1,
        "model.rope_beta_fast", "must be above model.rope_beta_slow (32.0)",
    ),
    "yarn with a beta of 0": ({"model.rope_beta_slow": 0.0}, 1, "model.rope_beta_fast", "and that above 0"),
    # training
    "sequence longer than positions": (
        {"train.sequence_length": 2568}, 1, "train.sequence_length", "model.max_positions is 2560",
    ),
    "sequence with CP": (
        {**CP2, "train.sequence_length": 34}, 2, "train.sequence_length", "cannot be cut into 4 pieces",
    ),
    "sequence with TP": ({**TP2, "train.sequence_length": 33}, 2, "train.sequence_length", "use a multiple of 2"),
    "sequence with CP and TP": (
        {**CP2, **TP2, "train.sequence_length": 36}, 4,
        "train.sequence_length", "cannot be cut into 8 pieces, as layout.tensor 2 x layout.context 2 needs",
    ),
    "micro-batch above global batch": (
        {"train.micro_batch_size": 9}, 1, "train.micro_batch_size", "train.global_batch_size is 8; use at most that",
    ),
    "a batch that would take hours": (
        {"train.global_batch_size": 10**7}, 4,
        "train.global_batch_size", "2,500,000 micro-batches one after the other on each of 4 data-parallel ranks; low",
    ),
    "a beta of 1": ({"train.betas": [0.9, 1.0]}, 1, "train.betas", "1.0 is not a decay rate"),
    "a negative beta": ({"train.betas": [-0.1, 0.9]}, 1, "train.betas", "-0.1 is not a decay rate"),
    "a negative seed": ({"train.seed": -1}, 1, "train.seed", "not in 0..4294967295"),
    "a seed of 33 bits": ({"train.seed": 2**32}, 1, "train.seed", "not in 0..4294967295"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "processes", "field", "words"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_does_not_fit_is_refused_by_field_and_reason(
    changes: Changes, processes: int, field: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for(changes, world_size=processes)
    error = caught.value
    assert error.field == field
    assert str(error).startswith(f"{field} = ") and words in str(error)
    assert error.remedy


# name: (changes, processes): what is on the right side of each border above
BUILDS: dict[str, tuple[Changes, int]] = {
    "top-k as large as its group": ({"moe.top_k": 4}, 1),
    "groups in pieces, spaces and any order": (groups(" audio : 7, 0 - 2 ", "text:3-6"), 1),
    "three groups": ({**groups("text: 0-3", "audio: 4,5", "wave: 6-7"), "moe.shared_only_tags": []}, 1),
    "no shared experts and no shared-only tag": (
        {"moe.shared_hidden_size": 0, "moe.shared_only_tags": [], **groups("text+wave: 0-3", "audio: 4-7")}, 1,
    ),
    "a tag of shared experts only, though text": (
        {**groups("audio: 0-7"), "moe.shared_only_tags": ["wave", "text"]}, 1,
    ),
    "all layers but one dense": ({"moe.dense_layers": [0, 1, 2]}, 1),
    "no dense layer": ({"moe.dense_layers": []}, 1),
    "a layout of everything": ({**TP2, **EP2, **CP2, **PP2}, 8),
    "uneven groups when blocked": (
        {"layout.expert": 4, "moe.placement": "blocked", **groups("text: 0-1", "audio: 2-7")}, 4,
    ),
    "one key head": ({**GQA, "model.num_kv_heads": 1}, 1),
    "a head of its own width": ({**GQA, "model.hidden_size": 66, "model.head_dim": 16}, 1),
    "llama3": (LLAMA3, 1),
    "plain mla": ({"model.rope": "plain", "model.rope_factor": 0.0}, 1),
    "as long as positions": ({"train.sequence_length": 2560}, 1),
    "48 data ranks for 8 rows": ({}, 48),
    "micro-batches that do not divide": ({"train.micro_batch_size": 3, "train.global_batch_size": 8}, 5),
    "no clipping, no decay, no learning": ({"train.clip": 0, "train.weight_decay": 0, "train.learning_rate": 0}, 1),
    "the largest seed": ({"train.seed": 2**32 - 1}, 1),
    "kept routing groups with just enough": ({**ROUTING, "moe.routing_groups_kept": 1}, 1),
    "too few kept, as the release allows": (
        {**ROUTING, "moe.routing_groups_kept": 1, "moe.top_k": 3, "moe.gate": "reference"}, 1,
    ),
    "counts of the release with its loss": ({"moe.aux_counts_everything": True, "moe.aux_loss": "reference"}, 1),
    "a dense model, whatever its experts would be": ({"moe.num_experts": 0, "moe.top_k": 0, **groups("none: 5")}, 1),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "processes"), BUILDS.values(), ids=BUILDS)
def test_a_value_at_the_border_builds(changes: Changes, processes: int) -> None:
    plan = plan_for(changes, world_size=processes)
    assert plan.config != TINY or not changes
    check_invariants(plan)


@pytest.mark.parametrize(
    ("changes", "processes", "sizes"),
    [
        (TP2, 3, "3 processes cannot be cut into layout.tensor 2 x layout.pipeline 1 x layout.context 1 = 2"),
        (
            {**TP2, **PP2, **CP2},
            12,
            "12 processes cannot be cut into layout.tensor 2 x layout.pipeline 2 x layout.context 2",
        ),
        (EP2, 3, "3 processes cannot be cut into layout.expert 2 x layout.expert_tensor 1 x layout.pipeline 1 = 2"),
        ({**EP2, **TP2, "layout.expert_tensor": 2}, 6, "expert 2 x layout.expert_tensor 2 x layout.pipeline 1 = 4"),
    ],
)
def test_a_world_that_does_not_divide_is_refused_with_all_sizes(changes: Changes, processes: int, sizes: str) -> None:
    with pytest.raises(LayoutError) as caught:
        plan_for(changes, world_size=processes)
    assert sizes in str(caught.value) and "start a multiple of" in str(caught.value)


FLOATS = [name for name, hint in FIELDS.items() if hint is float]
ANY_SIGN = {"model.rope_mscale", "model.rope_mscale_all_dim"}  # powers in YaRN's attention scale
AT_LEAST_ONE = [f"{table}.{name}" for table, names in checking.AT_LEAST_ONE.items() for name in names]


@pytest.mark.parametrize("field", [*FLOATS, "core.window", "deepspeed.zero_optimization.sub_group_size"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_rate_is_a_number(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match="is not a finite number") as caught:
        plan_for({field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", sorted({*FLOATS} - ANY_SIGN))
def test_a_rate_is_not_negative(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for({field: -1e-9})
    assert caught.value.field in (field, "model.rope_beta_fast")  # which is said of both betas


@pytest.mark.parametrize("field", ["train.epsilon", "model.norm_eps", "moe.scale"])
def test_what_is_divided_by_is_not_0(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} = 0\.0: must be above 0"):
        plan_for({field: 0.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens.num_units", 10**30),
        ("model.num_layers", 10**9),
        ("train.steps", 10**40),
        ("train.global_batch_size", 10**9),
        ("train.sequence_length", 10**12),
        ("data.window", 10**10),
    ],
)
def test_a_size_with_too_many_zeros_is_refused_before_it_eats_the_memory(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match="check the number of zeros"):
        plan_for({field: value})


def test_rotary_positions_need_a_base_above_1() -> None:
    with pytest.raises(ConfigError, match=r"model.rope_theta = 1.0: must be above 1"):
        plan_for({"model.rope_theta": 1.0})


def test_a_setting_of_core_that_nobody_proved_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"core.attention_dropout = 0.37: not proven"):
        plan_for({"core.attention_dropout": 0.37})


@pytest.mark.parametrize("field", AT_LEAST_ONE)
@pytest.mark.parametrize("value", [0, -2])
def test_a_size_is_at_least_1(field: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for({**GQA, field: value})  # a negative divisor divides, and 0 could pass for "not set"
    assert (caught.value.field, caught.value.wrong) == (field, "must be at least 1")


@pytest.mark.parametrize("field", ["model.wave_size", "moe.num_experts", "moe.shared_hidden_size"])
def test_a_size_that_may_be_0_is_not_negative(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} = -1: must not be negative"):
        plan_for({field: -1})


def test_every_size_of_a_config_has_a_lower_bound() -> None:
    tables = (*checking.AT_LEAST_ONE.items(), *checking.NOT_NEGATIVE.items())
    bounded = {f"{table}.{name}" for table, names in tables for name in names}
    elsewhere = {  # checked where their meaning is, with cases above
        *(f"model.{name}" for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
        *("moe.top_k", "moe.expert_hidden_size", "moe.routing_groups", "moe.routing_groups_kept"),
        *("engine.zero_stage", "train.seed", "data.augment.seed", "data.spec_augment.seed", "data.augment.voices_most"),
        *(f"data.spec_augment.{name}" for name in ("time_masks", "time_frames", "feature_masks")),
    }
    assert {name for name, hint in FIELDS.items() if hint in (int, int | None)} - bounded == elsewhere


def test_an_error_travels_between_ranks_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_for({"moe.top_k": 5})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.field, again.value) == (str(caught.value), "moe.top_k", 5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data.asr.weight": 0.4}, "data.asr.train"),
        ({"data.asr.train": ["d"]}, "data.asr.weight"),
        ({"data.asr.weight": -1.0, "data.asr.train": ["d"]}, "data.asr.weight"),
        ({"data.asr.weight": float("nan"), "data.asr.train": ["d"]}, "data.asr.weight"),
        ({"data.window": 0}, "data.window"),
        ({"train.warmup_steps": 60}, "train.warmup_steps"),
        ({"train.schedule": "wsd"}, "train.decay_steps"),
        ({"train.decay_steps": 5}, "train.decay_steps"),
        ({"train.schedule": "wsd", "train.decay_steps": 40, "train.warmup_steps": 30}, "train.decay_steps"),
        ({"train.end_ratio": 1.5}, "train.end_ratio"),
        ({"checkpoint.keep": -1}, "checkpoint.keep"),
        ({"tokens.backbone": "file"}, "tokens.file"),
        ({"tokens.file": "x.json"}, "tokens.file"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    facts = Facts(world_size=1, device="cpu", core_version=(0, 16))
    with pytest.raises(ConfigError) as error:
        build(replace(load_recipe("most-tiny"), changes), facts)
    assert error.value.field == field
