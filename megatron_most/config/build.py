"""RunConfig + Facts -> Plan: every check across fields, before any process group exists.

Wrong values raise a ConfigError that names the field by its dotted path. What is wrong by itself is checked here; what
upstream libraries would get wrong without a word is the table in `refusals.py`.
"""

from __future__ import annotations

from megatron_most.config.partition import parse_groups, place
from megatron_most.config.plan import Facts, LayoutPlan, MoEPlan, Plan
from megatron_most.config.refusals import refuse
from megatron_most.config.schema import LayoutConfig, ModelConfig, MoEConfig, RunConfig, TokensConfig, TrainConfig
from megatron_most.errors import ConfigError, LayoutError
from megatron_most.vocab import TAG_NAMES, TokenMap, deepseek_token_map, llama_token_map, tag_id, tiny_token_map


def build(config: RunConfig, facts: Facts) -> Plan:
    """Check everything and decide everything."""
    _check_positive(config)
    layout = _layout(config.layout, config.moe, facts)
    _check_model(config.model, config.layout, config.tokens)
    moe = _moe(config.moe, config.model, layout, facts) if config.moe.num_experts else None
    tokens = token_map(config.tokens)
    _check_divides("layout.tensor", layout.tensor, "the vocabulary's rows", tokens.vocab_size)
    _check_train(config.train, config.model, layout)
    refuse(config, layout, facts)
    return Plan(config=config, facts=facts, tokens=tokens, layout=layout, moe=moe)


def token_map(config: TokensConfig) -> TokenMap:
    """The vocabulary a config names."""
    if config.backbone == "deepseek":
        return deepseek_token_map(num_units=config.num_units, multiple=config.multiple)
    if config.backbone == "llama":
        return llama_token_map(num_units=config.num_units, multiple=config.multiple)
    return tiny_token_map(num_units=config.num_units, multiple=config.multiple)


def _check_positive(config: RunConfig) -> None:
    at_least_one = {
        "tokens": ("num_units", "multiple"),
        "model": ("hidden_size", "num_layers", "num_heads", "max_positions"),
        "layout": ("tensor", "pipeline", "context", "expert", "expert_tensor"),
        "recompute": ("num_layers",),
        "train": ("steps", "sequence_length", "micro_batch_size", "global_batch_size"),
    }
    for table, names in at_least_one.items():
        for name in names:
            value = getattr(getattr(config, table), name)
            if value is not None and value < 1:
                raise ConfigError(f"{table}.{name}", value, "must be at least 1", "raise it")
    not_negative = {
        "model": ("wave_size", "norm_eps", "init_std"),
        "moe": ("num_experts", "shared_hidden_size", "aux_coefficient", "z_coefficient", "bias_rate"),
        "train": ("learning_rate", "weight_decay", "clip", "epsilon"),
    }
    for table, names in not_negative.items():
        for name in names:
            value = getattr(getattr(config, table), name)
            if not value >= 0:  # NaN too
                raise ConfigError(f"{table}.{name}", value, "must not be negative", "use 0 or more")


def _check_divides(field: str, size: int, what: str, whole: int) -> None:
    if whole % size:
        raise ConfigError(field, size, f"does not divide {what} ({whole})", "use a divisor of it")


def _layout(config: LayoutConfig, moe: MoEConfig, facts: Facts) -> LayoutPlan:
    expert_tensor = config.expert_tensor or (1 if config.expert > 1 else config.tensor)
    model_ranks = config.tensor * config.pipeline * config.context
    if facts.world_size % model_ranks:
        raise LayoutError(
            f"{facts.world_size} processes cannot be cut into layout.tensor {config.tensor} x layout.pipeline "
            f"{config.pipeline} x layout.context {config.context} = {model_ranks}; start a multiple of {model_ranks}"
        )
    if config.expert > 1 and not moe.num_experts:
        raise ConfigError("layout.expert", config.expert, "a dense model has no experts to spread", "use 1")
    expert_ranks = expert_tensor * config.expert * config.pipeline
    if facts.world_size % expert_ranks:
        raise LayoutError(
            f"{facts.world_size} processes cannot be cut into layout.expert {config.expert} x layout.expert_tensor "
            f"{expert_tensor} x layout.pipeline {config.pipeline} = {expert_ranks}; start a multiple of {expert_ranks}"
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


def _check_model(model: ModelConfig, layout: LayoutConfig, tokens: TokensConfig) -> None:
    _check_divides("layout.tensor", layout.tensor, "model.num_heads", model.num_heads)
    _check_divides("layout.tensor", layout.tensor, "model.dense_hidden_size", model.dense_hidden_size)
    _check_divides("layout.pipeline", layout.pipeline, "model.num_layers", model.num_layers)
    if model.attention == "mla":
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(model, name) < 1:
                raise ConfigError(f"model.{name}", getattr(model, name), "must be at least 1 for mla", "raise it")
        if model.qk_rope_head_dim % 2:
            raise ConfigError("model.qk_rope_head_dim", model.qk_rope_head_dim, "rotary dimensions come in pairs", "use an even number")
        if model.rope == "llama3":
            raise ConfigError("model.rope", model.rope, "Megatron-Core's MLA knows plain and yarn", "use one of those")
        return
    num_kv_heads, head_dim = model.num_kv_heads or model.num_heads, model.head_dim or model.hidden_size // model.num_heads
    _check_divides("model.num_kv_heads", num_kv_heads, "model.num_heads", model.num_heads)
    _check_divides("layout.tensor", layout.tensor, "model.num_kv_heads", num_kv_heads)
    if head_dim % 2:
        raise ConfigError("model.head_dim", head_dim, "rotary dimensions come in pairs", "use an even number")
    if model.rope == "yarn":
        raise ConfigError("model.rope", model.rope, "yarn is for mla here", "use plain or llama3 with gqa")
    if model.rope == "llama3" and model.rope_original_length != 8192:
        raise ConfigError("model.rope_original_length", model.rope_original_length, "Megatron-Core's llama3 scaling is fixed at 8192", "use 8192")


def _moe(config: MoEConfig, model: ModelConfig, layout: LayoutPlan, facts: Facts) -> MoEPlan:
    groups = parse_groups(config.groups, config.num_experts)
    shared_only = tuple(sorted(_tag(name, "moe.shared_only_tags") for name in config.shared_only_tags))
    group_of_tag: list[int | None] = [None] * len(TAG_NAMES)
    for index, group in enumerate(groups):
        for name in group.tags:
            tag = _tag(name, "moe.groups")
            if group_of_tag[tag] is not None:
                raise ConfigError("moe.groups", config.groups, f"tag {name} is in two groups", "let each tag own one group")
            if tag in shared_only:
                raise ConfigError("moe.shared_only_tags", config.shared_only_tags, f"tag {name} owns a group too", "choose one")
            group_of_tag[tag] = index
    for tag, name in enumerate(TAG_NAMES):
        if group_of_tag[tag] is None and tag not in shared_only:
            raise ConfigError("moe.groups", config.groups, f"tag {name} owns no experts", f"give it a group, or add {name!r} to moe.shared_only_tags")
    if shared_only and not config.shared_hidden_size:
        names = ", ".join(TAG_NAMES[tag] for tag in shared_only)
        raise ConfigError("moe.shared_only_tags", config.shared_only_tags, f"there are no shared experts, so nothing would act on {names}",
                          "set moe.shared_hidden_size, or give the tag a group")
    if config.top_k < 1:
        raise ConfigError("moe.top_k", config.top_k, "must be at least 1", "raise it")
    for group in groups:
        if config.top_k > len(group.experts):
            raise ConfigError("moe.top_k", config.top_k, f"group {group.name} has only {len(group.experts)} experts", f"use at most {len(group.experts)}")
    if config.expert_hidden_size < 1:
        raise ConfigError("moe.expert_hidden_size", config.expert_hidden_size, "must be at least 1", "raise it")
    for layer in config.dense_layers:
        if not 0 <= layer < model.num_layers:
            raise ConfigError("moe.dense_layers", config.dense_layers, f"there is no layer {layer}", f"use 0..{model.num_layers - 1}")
    _check_divides("layout.expert", layout.expert, "moe.num_experts", config.num_experts)
    _check_divides("layout.expert_tensor", layout.expert_tensor, "moe.expert_hidden_size", config.expert_hidden_size)
    if config.shared_hidden_size:
        _check_divides("layout.tensor", layout.tensor, "moe.shared_hidden_size", config.shared_hidden_size)
    if not config.scale > 0:
        raise ConfigError("moe.scale", config.scale, "must be above 0", "use 1.0 for no scaling")
    routing_groups, kept = _routing_groups(config, [group.experts for group in groups])
    if config.aux_counts_everything and config.aux_loss != "reference":
        raise ConfigError("moe.aux_counts_everything", True, "only the reference auxiliary loss counts pads and markers", "set moe.aux_loss = \"reference\"")
    placement = config.placement if config.placement != "auto" else ("striped" if layout.expert > 1 else "blocked")
    on_gloo = facts.device == "cpu" and layout.expert_tensor > 1
    return MoEPlan(
        num_experts=config.num_experts,
        top_k=config.top_k,
        groups=tuple(group.experts for group in groups),
        group_names=tuple(group.name for group in groups),
        group_of_tag=tuple(group_of_tag),
        shared_only=shared_only,
        slot_of=place([group.experts for group in groups], placement, layout.expert),
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


def _tag(name: str, field: str) -> int:
    if name not in TAG_NAMES:
        raise ConfigError(field, name, "no such tag", f"use {', '.join(TAG_NAMES)}")
    return tag_id(name)


def _routing_groups(config: MoEConfig, groups: list[tuple[int, ...]]) -> tuple[int, int]:
    """Group-limited routing as (runs, runs kept); (1, 1) is no limit."""
    if (config.routing_groups is None) != (config.routing_groups_kept is None):
        raise ConfigError("moe.routing_groups", config.routing_groups, "routing_groups and routing_groups_kept belong together", "set both or neither")
    if config.routing_groups is None or config.routing_groups_kept is None:
        return 1, 1
    runs, kept = config.routing_groups, config.routing_groups_kept
    if runs < 1 or config.num_experts % runs:
        raise ConfigError("moe.routing_groups", runs, f"does not divide moe.num_experts ({config.num_experts})", "use a divisor of it")
    if not 1 <= kept <= runs:
        raise ConfigError("moe.routing_groups_kept", kept, f"there are {runs} routing groups", f"use 1..{runs}")
    size = config.num_experts // runs
    if config.gate == "reference":  # the release leaves slots without a candidate empty; its weights must load
        return runs, kept
    for experts in groups:  # the worst choice of kept runs must still leave top_k experts of the token's own group
        owned = sorted(sum(1 for expert in experts if expert // size == run) for run in range(runs))
        usable = [count for count in owned if count][: kept]
        if sum(usable) < config.top_k:
            raise ConfigError("moe.routing_groups_kept", kept, f"{kept} routing groups may hold only {sum(usable)} experts of one modality, fewer than moe.top_k = {config.top_k}",
                              "keep more routing groups or lower moe.top_k")
    return runs, kept


def _check_train(train: TrainConfig, model: ModelConfig, layout: LayoutPlan) -> None:
    if train.sequence_length > model.max_positions:
        raise ConfigError("train.sequence_length", train.sequence_length, f"model.max_positions is {model.max_positions}", "use at most that")
    if layout.context > 1:
        _check_divides("train.sequence_length", 2 * layout.context, "into zigzag pieces (2 x layout.context) train.sequence_length", train.sequence_length)
    per_rank = train.sequence_length // layout.context
    if per_rank % layout.tensor:
        raise ConfigError("train.sequence_length", train.sequence_length, f"does not divide by layout.context {layout.context} x layout.tensor {layout.tensor}", "use a multiple of it")
