"""What upstream would get wrong, mostly without a word: refused by name before any process group exists.

One row, one refusal. Versions and figures are those where the fault was measured: loss or gradient norm against one
process. A row goes when a test proves the setting right. Numbers in `wrong` are relative errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_most.config.plan import Facts, LayoutPlan
from megatron_most.config.schema import RunConfig, Scalar
from megatron_most.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """What a refusal may look at."""

    config: RunConfig
    layout: LayoutPlan
    facts: Facts

    @property
    def has_experts(self) -> bool:
        return self.config.moe.num_experts > 0

    @property
    def uses_deepspeed(self) -> bool:
        return self.config.engine.kind == "deepspeed"

    def is_expert_parallel(self) -> bool:
        return self.layout.expert > 1


@dataclass(frozen=True)
class Refusal:
    """A field, when it is refused, why, and what to do instead."""

    field: str
    when: Callable[[Run], bool]
    wrong: str
    remedy: str


def refuse(config: RunConfig, layout: LayoutPlan, facts: Facts) -> None:
    """Raise a ConfigError for the first row that applies."""
    run = Run(config, layout, facts)
    for row in REFUSALS:
        if row.when(run):
            raise ConfigError(row.field, lookup(config, row.field), row.wrong, row.remedy)


def lookup(config: RunConfig, field: str) -> object:
    """The value behind a dotted name, upstream tables included."""
    table, _, name = field.partition(".")
    section = getattr(config, table)
    return section.get(name) if isinstance(section, Mapping) else (getattr(section, name) if name else section)


def core(name: str, bad: Callable[[Scalar], bool] = bool) -> Callable[[Run], bool]:
    """The Core setting is given and bad (by default: switched on)."""
    return lambda run: name in run.config.core and bad(run.config.core[name])


def deepspeed(name: str, bad: Callable[[Scalar], bool] = bool) -> Callable[[Run], bool]:
    """The DeepSpeed setting is given and bad (by default: switched on)."""
    return lambda run: name in run.config.deepspeed and bad(run.config.deepspeed[name])


def both(*conditions: Callable[[Run], bool]) -> Callable[[Run], bool]:
    return lambda run: all(condition(run) for condition in conditions)


def is_false(value: Scalar) -> bool:
    return value is False


EXPERT_PARALLEL = Run.is_expert_parallel

CORE = [
    Refusal(
        "recompute.method",
        lambda run: run.has_experts and run.config.recompute.granularity == "full" and run.config.recompute.method == "block"
        and run.facts.core_version < (0, 18),
        "Megatron-Core before 0.18 drops the modality tags of layers it does not recompute", 'use "uniform"'),
    Refusal(
        "recompute.modules",
        lambda run: run.config.recompute.granularity == "selective" and "layernorm" in run.config.recompute.modules
        and not run.facts.has_transformer_engine,
        "Megatron-Core can recompute layernorm only with Transformer Engine", "leave layernorm out"),
    Refusal(
        "recompute.modules",
        lambda run: run.config.recompute.granularity == "selective"
        and not {*run.config.recompute.modules} <= {"core_attn", "mla_up_proj", "mlp", "moe", "shared_experts", "layernorm"},
        "not something Megatron-Core can recompute here", "use core_attn, mla_up_proj, mlp, moe, shared_experts"),
    Refusal(
        "recompute.modules",
        lambda run: run.config.recompute.granularity == "selective" and "mla_up_proj" in run.config.recompute.modules
        and run.config.model.attention != "mla", "there is no mla_up_proj without mla", "leave it out"),
    Refusal("core.overlap_moe_expert_parallel_comm", core("overlap_moe_expert_parallel_comm"),
            "the overlapped schedule has not been proven to carry modality tags", "leave it out"),
    Refusal("core.cuda_graph_impl", core("cuda_graph_impl", lambda value: value != "none"),
            "graph capture of the router has not been proven with modality tags", "leave it out"),
    Refusal("core.cuda_graph_scope", core("cuda_graph_scope"),
            "graph capture of the router has not been proven with modality tags", "leave it out"),
    Refusal("core.enable_cuda_graph", core("enable_cuda_graph"),
            "graph capture of the router has not been proven with modality tags", "leave it out"),
    Refusal("core.external_cuda_graph", core("external_cuda_graph"),
            "graph capture of the router has not been proven with modality tags", "leave it out"),
    Refusal("core.use_cpu_initialization", core("use_cpu_initialization"),
            "experts of different expert-parallel ranks would start identical", "leave it out"),
    Refusal("core.virtual_pipeline_model_parallel_size", core("virtual_pipeline_model_parallel_size"),
            "interleaved stages are wrong with Megatron-Core's default p2p settings and unproven with tags", "leave it out"),
    Refusal("core.sequence_parallel", core("sequence_parallel", is_false),
            "Megatron-Core refuses to train experts under tensor parallelism without it", "leave it out: it follows layout.tensor"),
    Refusal("core.moe_permute_fusion", core("moe_permute_fusion"),
            "the fused permutation counts top_k rows for every token, which shared-only tokens do not have", "leave it out"),
    Refusal("core.moe_expert_capacity_factor", core("moe_expert_capacity_factor", lambda value: value is not None),
            "tokens are never dropped here", "leave it out"),
    Refusal("core.moe_router_fusion", core("moe_router_fusion"), "the router is ours and not fused", "leave it out"),
    Refusal("core.mtp_num_layers", core("mtp_num_layers"), "multi-token prediction drops the modality tags", "leave it out"),
    Refusal("core.mlp_chunks_for_prefill", core("mlp_chunks_for_prefill", lambda value: value != 1),
            "chunked prefill drops the modality tags", "leave it out"),
    Refusal("core.rotary_interleaved", core("rotary_interleaved"), "MLA pairs adjacent dimensions by itself", "leave it out"),
    Refusal("core.gradient_accumulation_fusion", core("gradient_accumulation_fusion"),
            "gradients would go to main_grad, which neither engine reads", "leave it out"),
    Refusal("core.enable_autocast", core("enable_autocast"), "precision is engine.precision, not autocast", "leave it out"),
    Refusal(
        "layout.expert_tensor",
        lambda run: run.has_experts and run.layout.expert == 1 and run.layout.expert_tensor != run.layout.tensor,
        "without expert parallelism Megatron-Core before 0.19 never reduces expert gradients over the odd ranks (gradients 1.3 off)",
        "leave it out, or use layout.expert > 1"),
    Refusal(
        "moe.dispatcher",
        lambda run: run.has_experts and run.facts.device == "cpu" and run.layout.expert_tensor > 1
        and run.config.moe.dispatcher == "alltoall",
        "gloo has no uneven all-gather, which alltoall needs when layout.expert_tensor > 1", 'use "allgather", or "auto"'),
]

DEEPSPEED = [
    Refusal("engine.zero_stage", lambda run: run.uses_deepspeed and run.config.engine.zero_stage not in (0, 1, 2, 3),
            "no such ZeRO stage", "use 0, 1, 2 or 3"),
    Refusal("engine.zero_stage", lambda run: run.uses_deepspeed and run.config.engine.zero_stage == 0 and EXPERT_PARALLEL(run),
            "DeepSpeed without ZeRO is silently wrong with expert parallelism (loss 3e-4 off)", "use 1, 2 or 3"),
    Refusal("engine.zero_stage", lambda run: run.uses_deepspeed and run.layout.pipeline > 1 and run.config.engine.zero_stage != 1,
            "with pipeline stages only ZeRO-1 accumulates gradients rightly", "use 1"),
    Refusal("deepspeed.zero_optimization.contiguous_gradients",
            both(EXPERT_PARALLEL, deepspeed("zero_optimization.contiguous_gradients", is_false)),
            "without it ZeRO-1 is silently wrong with expert parallelism (gradient norm 6e-2 off)", "leave it out"),
    Refusal("deepspeed.zero_optimization.reduce_scatter",
            both(EXPERT_PARALLEL, deepspeed("zero_optimization.reduce_scatter", is_false)),
            "ZeRO-1 and 2 fail without it under expert parallelism", "leave it out"),
    Refusal("deepspeed.zero_optimization.zero_hpz_partition_size",
            both(EXPERT_PARALLEL, deepspeed("zero_optimization.zero_hpz_partition_size", lambda size: size != 1)),
            "hpZ fails with expert parallelism", "leave it out"),
    Refusal("deepspeed.zero_optimization.round_robin_gradients", deepspeed("zero_optimization.round_robin_gradients"),
            "reading weights back (checkpoints!) would return other parameters' numbers", "leave it out"),
    Refusal("deepspeed.expert_parallel.enabled", deepspeed("expert_parallel.enabled"),
            "DeepSpeed's AutoEP would rebuild experts that Megatron-Core already spreads", "use layout.expert"),
    Refusal("deepspeed.checkpoint.load_universal", both(EXPERT_PARALLEL, deepspeed("checkpoint.load_universal")),
            "Universal Checkpoint fails with expert parallelism", "leave it out: our checkpoints fit any layout"),
    Refusal("deepspeed.zero_init.dtype",
            lambda run: run.facts.device == "cpu" and run.config.deepspeed.get("zero_init.dtype") in ("fp32", "float32"),
            "zero.Init turns float32 into bfloat16 on a CPU", "leave it out"),
    Refusal("deepspeed.torch_autocast.enabled", deepspeed("torch_autocast.enabled"),
            "precision is engine.precision; autocast would change what experts compute", "leave it out"),
    Refusal("deepspeed.sequence_parallel_size", deepspeed("sequence_parallel_size", lambda size: size != 1),
            "Ulysses groups would replace Megatron-Core's", "use layout.context"),
    Refusal("deepspeed.tensor_parallel.autotp_size", deepspeed("tensor_parallel.autotp_size", lambda size: size not in (0, 1)),
            "AutoTP would cut weights that Megatron-Core already cuts", "use layout.tensor"),
    Refusal("deepspeed.zero_optimization.stage", deepspeed("zero_optimization.stage", lambda value: True),
            "the stage has a field of its own", "set engine.zero_stage"),
    Refusal("engine.offload_optimizer", lambda run: run.config.engine.offload_optimizer and not run.uses_deepspeed,
            "the plain engine keeps its state where the weights are", 'set engine.kind = "deepspeed"'),
]

OWNED = {  # Core's name: ours. A second way to say a thing would be a way to contradict it.
    "num_layers": "model.num_layers", "hidden_size": "model.hidden_size", "num_attention_heads": "model.num_heads",
    "num_query_groups": "model.num_kv_heads", "ffn_hidden_size": "model.dense_hidden_size", "kv_channels": "model.head_dim",
    "layernorm_epsilon": "model.norm_eps", "kv_lora_rank": "model.kv_lora_rank", "q_lora_rank": "model.q_lora_rank",
    "qk_head_dim": "model.qk_nope_head_dim", "qk_pos_emb_head_dim": "model.qk_rope_head_dim", "v_head_dim": "model.v_head_dim",
    "rope_type": "model.rope", "rotary_base": "model.rope_theta", "rotary_scaling_factor": "model.rope_factor",
    "original_max_position_embeddings": "model.rope_original_length", "mscale": "model.rope_mscale",
    "mscale_all_dim": "model.rope_mscale_all_dim", "beta_fast": "model.rope_beta_fast", "beta_slow": "model.rope_beta_slow",
    "init_method_std": "model.init_std", "num_moe_experts": "moe.num_experts", "moe_router_topk": "moe.top_k",
    "moe_ffn_hidden_size": "moe.expert_hidden_size", "moe_shared_expert_intermediate_size": "moe.shared_hidden_size",
    "moe_layer_freq": "moe.dense_layers", "moe_router_num_groups": "moe.routing_groups",
    "moe_router_group_topk": "moe.routing_groups_kept", "moe_router_topk_scaling_factor": "moe.scale",
    "moe_aux_loss_coeff": "moe.aux_coefficient", "moe_router_load_balancing_type": "moe.aux_loss",
    "moe_z_loss_coeff": "moe.z_coefficient", "moe_router_enable_expert_bias": "moe.bias_rate",
    "moe_router_bias_update_rate": "moe.bias_rate", "moe_token_dispatcher_type": "moe.dispatcher",
    "moe_router_pre_softmax": "moe.gate", "moe_router_score_function": "moe.gate",
    "tensor_model_parallel_size": "layout.tensor", "pipeline_model_parallel_size": "layout.pipeline",
    "context_parallel_size": "layout.context", "expert_model_parallel_size": "layout.expert",
    "expert_tensor_parallel_size": "layout.expert_tensor", "recompute_granularity": "recompute.granularity",
    "recompute_method": "recompute.method", "recompute_num_layers": "recompute.num_layers",
    "recompute_modules": "recompute.modules", "bf16": "engine.precision", "fp16": "engine.precision",
    "params_dtype": "engine.precision", "pipeline_dtype": "engine.precision", "add_bias_linear": "model.attention",
    "calculate_per_token_loss": "train.micro_batch_size", "multi_latent_attention": "model.attention",
    "qk_layernorm": "model.attention", "normalization": "model.norm_eps", "gated_linear_unit": "model.dense_hidden_size",
}  # fmt: skip

REFUSALS = [
    *CORE,
    *DEEPSPEED,
    *(
        Refusal(f"core.{upstream}", core(upstream, lambda value: True), "this setting has a field of its own", f"set {ours}")
        for upstream, ours in OWNED.items()
    ),
]
