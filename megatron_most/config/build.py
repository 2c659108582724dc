"""RunConfig + Facts -> Plan: every check across fields, before any process group exists.

Wrong values raise a ConfigError that names the field by its dotted path. Numbers are checked in `checks.py`, tags and
experts here; what upstream libraries would get wrong without a word is the table in `refusals.py`.
"""

from __future__ import annotations

from megatron_most.config.checks import (
    check_data,
    check_divides,
    check_experts,
    check_model,
    check_numbers,
    check_train,
    check_watch,
    check_wave,
)
from megatron_most.config.expert_load import ExpertLoad
from megatron_most.config.partition import ExpertGroup, parse_groups, place
from megatron_most.config.plan import Facts, LayoutPlan, MoEPlan, Plan
from megatron_most.config.refusals import refuse
from megatron_most.config.schema import LayoutConfig, ModelConfig, MoEConfig, RunConfig, TokensConfig
from megatron_most.errors import ConfigError, LayoutError
from megatron_most.vocab import TAG_NAMES, TokenMap, deepseek_token_map, llama_token_map, tag_id, tiny_token_map


def build(config: RunConfig, facts: Facts, tokens: TokenMap | None = None) -> Plan:
    """Check everything and decide everything. `tokens`: the map, where the file that config names is not there yet."""
    check_numbers(config)
    layout = _layout(config.layout, config.moe, facts)
    check_model(config.model, config.layout)
    moe = _moe(config.moe, config.model, layout, facts) if config.moe.num_experts else None
    tokens = tokens or token_map(config.tokens)
    check_divides("layout.tensor", layout.tensor, "the vocabulary's rows", tokens.vocab_size)
    check_train(config.train, config.model, layout)
    check_data(config.data)
    check_wave(config)
    check_watch(config)
    refuse(config, layout, facts)
    rows_at_once = config.train.micro_batch_size * layout.data
    micro_batches = -(-config.train.global_batch_size // rows_at_once)
    return Plan(config=config, facts=facts, tokens=tokens, layout=layout, micro_batches=micro_batches, moe=moe)


def token_map(config: TokensConfig) -> TokenMap:
    """The vocabulary a config names."""
    if (config.backbone == "file") != (config.file is not None):
        raise ConfigError("tokens.file", config.file, 'belongs to tokens.backbone = "file"', "give both or neither")
    if config.file is not None:
        return TokenMap.load(config.file)
    if config.backbone == "deepseek":
        return deepseek_token_map(num_units=config.num_units, multiple=config.multiple)
    if config.backbone == "llama":
        return llama_token_map(num_units=config.num_units, multiple=config.multiple)
    return tiny_token_map(num_units=config.num_units, multiple=config.multiple)


def _layout(config: LayoutConfig, moe: MoEConfig, facts: Facts) -> LayoutPlan:
    expert_tensor = config.expert_tensor or (1 if config.expert > 1 else config.tensor)
    model_ranks = config.tensor * config.pipeline * config.context
    if facts.world_size % model_ranks:
        raise LayoutError(
            f"{facts.world_size} processes cannot be cut into layout.tensor {config.tensor} x layout.pipeline "
            f"{config.pipeline} x layout.context {config.context} = {model_ranks}; "
            f"start a multiple of {model_ranks}, for example by torchrun --nproc-per-node {model_ranks}"
        )
    if config.expert > 1 and not moe.num_experts:
        raise ConfigError("layout.expert", config.expert, "a dense model has no experts to spread", "use 1")
    expert_ranks = expert_tensor * config.expert * config.pipeline
    if facts.world_size % expert_ranks:
        raise LayoutError(
            f"{facts.world_size} processes cannot be cut into layout.expert {config.expert} x layout.expert_tensor "
            f"{expert_tensor} x layout.pipeline {config.pipeline} = {expert_ranks}; "
            f"start a multiple of {expert_ranks}, for example by torchrun --nproc-per-node {expert_ranks}"
        )
    return LayoutPlan(
        world=facts.world_size,
        data=facts.world_size // model_ranks,
        tensor=config.tensor,
        pipeline=config.pipeline,
        context=config.context,
        expert=config.expert,
        expert_tensor=expert_tensor,
        expert_data=facts.world_size // expert_ranks,
    )


def _moe(config: MoEConfig, model: ModelConfig, layout: LayoutPlan, facts: Facts) -> MoEPlan:
    check_experts(config, model, layout)
    groups = parse_groups(config.groups, config.num_experts)
    group_of_tag, shared_only = _owners(config, groups)
    for group in groups:
        if config.top_k > (size := len(group.experts)):
            wrong = f"group {group.name} has only {size} experts"
            raise ConfigError("moe.top_k", config.top_k, wrong, f"use at most {size}")
    routing_groups, kept = _routing_groups(config, groups)
    placement = config.placement if config.placement != "auto" else ("striped" if layout.expert > 1 else "blocked")
    if config.load_file is not None and config.placement == "blocked":
        wrong, remedy = "blocked placement has nothing to deal", "leave it out, or let moe.placement be auto"
        raise ConfigError("moe.load_file", config.load_file, wrong, remedy)
    on_gloo = facts.device == "cpu" and layout.expert_tensor > 1
    return MoEPlan(
        num_experts=config.num_experts,
        top_k=config.top_k,
        groups=tuple(group.experts for group in groups),
        group_names=tuple(group.name for group in groups),
        group_of_tag=group_of_tag,
        shared_only=shared_only,
        slot_of=place([group.experts for group in groups], placement, layout.expert),
        dealt=_deal(config, model, groups, layout.expert) if placement == "striped" and layout.expert > 1 else {},
        gate=config.gate,
        normalise_top_k=config.normalise_top_k,
        scale=config.scale,
        routing_groups=routing_groups,
        routing_groups_kept=kept,
        aux_loss=config.aux_loss if config.aux_coefficient else "none",
        aux_coefficient=config.aux_coefficient,
        aux_scope=config.aux_scope,
        aux_counts_everything=config.aux_counts_everything,
        z_coefficient=config.z_coefficient,
        bias_rate=config.bias_rate,
        dispatcher=config.dispatcher if config.dispatcher != "auto" else ("allgather" if on_gloo else "alltoall"),
    )


def _deal(
    config: MoEConfig, model: ModelConfig, groups: tuple[ExpertGroup, ...], ranks: int
) -> dict[int, tuple[int, ...]]:
    """The placement of each layer with experts, by the loads of moe.load_file."""
    if config.load_file is None:
        return {}
    load = ExpertLoad.load(config.load_file)
    layers = [layer for layer in range(model.num_layers) if layer not in config.dense_layers]
    load.require_of(config.load_file, {group.name: group.experts for group in groups}, layers)
    experts = [group.experts for group in groups]
    return {layer: place(experts, "striped", ranks, load.layers[layer]) for layer in layers}


def _owners(config: MoEConfig, groups: tuple[ExpertGroup, ...]) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """(for each tag its group or None, tags that use the shared experts alone)."""
    shared_only = tuple(sorted({_tag(name, "moe.shared_only_tags") for name in config.shared_only_tags}))
    group_of_tag: list[int | None] = [None] * len(TAG_NAMES)
    for index, group in enumerate(groups):
        for name in group.tags:
            tag = _tag(name, "moe.groups")
            if group_of_tag[tag] is not None:
                wrong = f"tag {name} is listed twice"
                raise ConfigError("moe.groups", config.groups, wrong, "let each tag own one group")
            if tag in shared_only:
                wrong = f"tag {name} owns a group too"
                raise ConfigError("moe.shared_only_tags", config.shared_only_tags, wrong, "choose one")
            group_of_tag[tag] = index
    for tag, name in enumerate(TAG_NAMES):
        if group_of_tag[tag] is None and tag not in shared_only:
            remedy = f"give it a group, or add {name!r} to moe.shared_only_tags"
            raise ConfigError("moe.groups", config.groups, f"tag {name} owns no experts", remedy)
    if shared_only and not config.shared_hidden_size:
        names = ", ".join(TAG_NAMES[tag] for tag in shared_only)
        wrong = f"there are no shared experts, so nothing would act on {names}"
        remedy = "set moe.shared_hidden_size, or give the tag a group"
        raise ConfigError("moe.shared_only_tags", config.shared_only_tags, wrong, remedy)
    return tuple(group_of_tag), shared_only


def _tag(name: str, field: str) -> int:
    if name not in TAG_NAMES:
        raise ConfigError(field, name, "no such tag", f"use {', '.join(TAG_NAMES)}")
    return tag_id(name)


def _routing_groups(config: MoEConfig, groups: tuple[ExpertGroup, ...]) -> tuple[int, int]:
    """Group-limited routing as (runs, runs kept); (1, 1) is no limit."""
    runs, kept = config.routing_groups, config.routing_groups_kept
    if (runs is None) != (kept is None):
        wrong = "routing_groups and routing_groups_kept belong together"
        raise ConfigError("moe.routing_groups", runs, wrong, "set both or neither")
    if runs is None or kept is None:
        return 1, 1
    if runs < 1 or config.num_experts % runs:
        wrong = f"does not divide moe.num_experts ({config.num_experts})"
        raise ConfigError("moe.routing_groups", runs, wrong, "use a divisor of it")
    if not 1 <= kept <= runs:
        raise ConfigError("moe.routing_groups_kept", kept, f"there are {runs} routing groups", f"use 1..{runs}")
    if config.gate == "reference":  # the release leaves slots without a candidate empty; its weights must load
        return runs, kept
    size = config.num_experts // runs
    for group in groups:  # the worst choice of kept runs must still leave top_k experts of the token's own group
        owned = sorted(sum(1 for expert in group.experts if expert // size == run) for run in range(runs))
        usable = sum([count for count in owned if count][:kept])
        if usable < config.top_k:
            wrong = f"{kept} routing groups may hold only {usable} experts of {group.name}, moe.top_k is {config.top_k}"
            raise ConfigError("moe.routing_groups_kept", kept, wrong, "keep more routing groups or lower moe.top_k")
    return runs, kept
