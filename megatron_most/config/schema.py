"""Every setting of a run, as frozen plain data: what a recipe (TOML) and the command line may say.

Nothing here decides anything: defaults are those of most-16b (DeepSeek-V2-Lite shapes), `None` means "not set" and is
left out of files, and `build.py` checks what it all means together. Names of Megatron-Core and Hugging Face settings
that we rename are given in the field's comment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_most.config.data import DataConfig

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """The vocabulary: a backbone's own tokens, the speech units and their markers."""

    backbone: Literal["deepseek", "llama", "tiny", "file"] = "deepseek"
    """Whose text vocabulary: deepseek (102400 rows), llama (128256 rows), tiny (for tests), or that of `file`."""
    file: str | None = None
    """backbone = "file": a token_map.json, as data preparation and checkpoints hold it; it decides the other fields."""
    num_units: int = 500
    """Speech units, one token each."""
    multiple: int = 128
    """A vocabulary that has to grow is padded to a multiple of this (tensor parallelism splits its rows)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The transformer around the mixture of experts."""

    attention: Literal["mla", "gqa"] = "mla"
    """mla: multi-latent attention (DeepSeek-V2). gqa: grouped-query attention (Llama)."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    num_layers: int = 27
    """Transformer layers."""
    num_heads: int = 16
    """Query heads."""
    kv_lora_rank: int = 512
    """mla: width of the compressed keys and values."""
    q_lora_rank: int | None = None
    """mla: width of the compressed queries; not set = queries are not compressed."""
    qk_nope_head_dim: int = 128
    """mla: part of each query/key head without position."""
    qk_rope_head_dim: int = 64
    """mla: part of each query/key head with rotary position."""
    v_head_dim: int = 128
    """mla: width of a value head."""
    num_kv_heads: int | None = None
    """gqa: key/value heads; not set = as many as query heads."""
    head_dim: int | None = None
    """gqa: width of a head; not set = hidden_size / num_heads."""
    qk_norm: bool = False
    """gqa: normalise each query and key head (Qwen3)."""
    dense_hidden_size: int = 10944
    """Inner width of the dense feed-forward layers (HF intermediate_size)."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    tied_embeddings: bool = False
    """The output layer is the embedding."""
    init_std: float = 0.02
    """Spread of the first weights."""
    wave_size: int = 0
    """Width of continuous speech features that enter through a linear projector (HuBERT-base: 768); 0 = units only."""
    wave_stack: int = 1
    """Frames of the encoder that make one feature, side by side: the projector is then a convolution whose kernel and
    stride are so many, and wave_size so many times the encoder's width.
    """
    wave_tag: Literal["audio", "wave"] = "audio"
    """The tag of continuous features, which says whose experts they use: those of audio, as in the MoST release, or
    those of wave: the shared experts alone, or a group of its own.
    """
    wave_source: str | None = None
    """What makes the features: the hash in dataset.json, or its beginning, so that no other is taken by mistake; not
    set = whatever made those of the data.
    """
    wave_layers: tuple[int, ...] = ()
    """Layers of the encoder, counted from 1, that are part of the model and learn: 10, 11 where the data has frames of
    layer 9. A first run takes them from the data's HuBERT; those of MFCCs begin at random. Empty = a frozen encoder.
    """
    wave_heads: int = 12
    """wave_layers: attention heads of each."""
    wave_inner_size: int = 3072
    """wave_layers: inner width of each one's feed-forward."""

    rope: Literal["plain", "yarn", "llama3"] = "yarn"
    """Rotary positions: as they are, or stretched as DeepSeek (yarn) or Llama 3 (llama3) do."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_factor: float = 40.0
    """yarn, llama3: how many times longer than rope_original_length positions may get."""
    rope_original_length: int = 4096
    """yarn, llama3: positions that the weights were first trained on."""
    rope_beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original length stay as they are."""
    rope_beta_slow: float = 1.0
    """yarn: those that turn less often are stretched by the whole factor."""
    rope_mscale: float = 0.707
    """yarn: how far rotated queries and keys are scaled, over rope_mscale_all_dim."""
    rope_mscale_all_dim: float = 0.707
    """yarn: how far the attention's logits are scaled."""
    max_positions: int = 163840
    """train.sequence_length must not be longer."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Which experts there are, which modality owns which, how tokens choose, and what keeps them busy."""

    num_experts: int = 64
    """Routed experts per MoE layer; 0 = a dense model."""
    top_k: int = 6
    """Experts each token uses, out of its own group."""
    expert_hidden_size: int = 1408
    """Inner width of one routed expert."""
    shared_hidden_size: int = 2816
    """Inner width of the shared experts, which every token uses (all of them as one MLP); 0 = none."""
    dense_layers: tuple[int, ...] = (0,)
    """Layers, counted from 0, that have one dense feed-forward instead of experts."""

    groups: tuple[str, ...] = ("text: 0-31", "audio: 32-63")
    """The partition, by published expert id: "tags: ids", as "text: 0-31", "text+audio: 0-63", "audio: 1,3,5-9"."""
    shared_only_tags: tuple[str, ...] = ("wave",)
    """Tags that own no group on purpose: their tokens use the shared experts alone."""
    placement: Literal["auto", "blocked", "striped"] = "auto"
    """Where experts sit under expert parallelism: blocked (by id), striped (each rank owns some of every group), auto =
    striped when expert-parallel. It never changes what is computed.
    """
    load_file: str | None = None
    """The expert_load.json of a checkpoint: striped placement then deals experts out by how busy they were, so that
    ranks get as many tokens as each other. Unused without expert parallelism.
    """

    gate: Literal["masked_softmax", "reference"] = "masked_softmax"
    """masked_softmax: softmax over the token's own group. reference: the MoST release's rule, softmax over all experts
    and then zero outside the group; needed to load its weights, but its auxiliary loss drives the group's mass to 0.
    """
    normalise_top_k: bool = False
    """Weights of the chosen experts sum to 1 (HF norm_topk_prob). Under `reference` this also drops `scale`."""
    scale: float = 1.0
    """Factor on the routed output (HF routed_scaling_factor)."""
    routing_groups: int | None = None
    """Group-limited routing: into how many equal runs of published ids (HF n_group)."""
    routing_groups_kept: int | None = None
    """Group-limited routing: how many of them a token may use (HF topk_group)."""

    aux_loss: Literal["none", "group", "reference"] = "group"
    """group: balance inside each expert group, 1.0 when perfect for any text/audio ratio. reference: the release's."""
    aux_coefficient: float = 0.001
    """Weight of the auxiliary loss; 0 = none."""
    aux_scope: Literal["sequence", "batch"] = "sequence"
    """Balance each sequence by itself, or each micro-batch, whose size and ranks then decide what is learnt."""
    aux_counts_everything: bool = False
    """reference only: count pads and shared-only tokens too, as the release does. A micro-batch of it is one rank's."""
    z_coefficient: float = 0.0
    """Router z-loss: keeps logits small."""
    bias_rate: float = 0.0
    """Balancing by a bias on the choice (not on the weights), moved this much a step towards idle experts; 0 = off. It
    falls as the learning rate does, so that loads settle.
    """

    dispatcher: Literal["auto", "alltoall", "allgather"] = "auto"
    """How tokens reach their experts: alltoall, allgather; auto = whichever the device can do."""


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Sizes of the parallel groups; data parallelism is what is left of the world."""

    tensor: int = 1
    """Tensor parallelism; sequence parallelism comes with it."""
    pipeline: int = 1
    """Pipeline stages; must divide model.num_layers."""
    context: int = 1
    """Ranks that share each sequence, in pieces."""
    expert: int = 1
    """Ranks that share a layer's experts; taken from the data-parallel ranks."""
    expert_tensor: int | None = None
    """Tensor parallelism inside an expert; not set = 1 when expert-parallel, else as `tensor`."""


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Activations that are computed again in the backward pass instead of being kept."""

    granularity: Literal["none", "full", "selective"] = "none"
    """none, full: whole layers, selective: the modules named below."""
    method: Literal["uniform", "block"] = "uniform"
    """full: recompute every num_layers layers as one (uniform). block is refused where it loses the tags."""
    num_layers: int = 1
    """full: layers recomputed as one."""
    modules: tuple[str, ...] = ("core_attn",)
    """selective: any of core_attn, mla_up_proj, mlp, moe, shared_experts."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Who turns gradients into new weights."""

    kind: Literal["plain", "deepspeed"] = "plain"
    """plain: a torch optimizer, every rank holds all of its state. deepspeed: ZeRO."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the computation; bf16 and fp16 keep float32 masters."""
    zero_stage: int = 1
    """deepspeed: what data-parallel ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """deepspeed: keep optimizer state in host memory."""
    kernels: Literal["auto", "plain", "fp8"] = "auto"
    """auto: on a GPU from Ampere on packed documents end to end (bf16 or fp16) and kernels of our own, from Hopper on
    all experts' rows in one call (bf16); to rounding what plain gives. plain: torch's and Core's way alone. fp8: auto,
    with the products of experts in fp8 (Hopper, bf16), which is coarser.
    """


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig:
    """A gate against losing what the backbone knew: its loss on fixed texts, at first and at each validation."""

    valid: tuple[str, ...] = ()
    """Folders of text datasets, their first data.validation_documents; none = no gate."""
    limit: float = 0.1
    """Rise of the loss, in nats a token over what the phase began with, that is an alarm. Phase 2 keeps the loss that
    phase 1 began with, if the texts are the same.
    """
    action: Literal["warn", "stop"] = "warn"
    """stop: an alarm saves and ends the run."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """What the model says, in samples.jsonl at each validation: the answers to some validation documents' prompts."""

    count: int = 0
    """Documents of each validation set; 0 = none."""
    tokens: int = 64
    """Longest answer. With pipeline stages, context parallelism or ZeRO-3 each token is a pass over the whole row."""
    tokenizer: str | None = None
    """A tokenizer's file or folder, to write text rather than token ids."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, and where."""

    folder: str = "runs/{name}"
    """The run's folder; {name} is the run's name. Checkpoints, metrics and the resolved recipe go there."""
    every: int = 500
    """Steps between two checkpoints; the last step is always saved. 0 = only the last."""
    keep: int = 3
    """How many stay; 0 = all."""
    start_from: str | None = None
    """A run's folder, or one step's, whose weights a new run begins with, as phase 2 does with phase 1's."""
    keep_optimizer: bool = False
    """start_from: also its optimizer's moments; else they begin at zero."""
    allow_changes: tuple[str, ...] = ()
    """start_from: fields of model and moe that may differ from its recipe's though the weights mean another thing then,
    as "moe.gate".
    """


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What a run tells beside a line a step in metrics.jsonl; none of it changes what is learnt."""

    every: int = 10
    """Steps between two looks: gradient norms by part, memory, the experts' load since the last look; 0 = none."""
    tensorboard: bool = True
    """Write the same numbers for TensorBoard, into the run's folder."""
    wandb: bool = False
    """Send them to Weights & Biases too; its own environment variables say where."""
    peak_flops: float | None = None
    """What one device can do a second, for the MFU; not set = by the name of the GPU in bf16 or fp16, else no MFU."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One phase of training."""

    seed: int = 42
    """Of first weights and the order of the data."""
    steps: int = 100
    """Optimizer steps."""
    sequence_length: int = 2048
    """Tokens in a packed row."""
    micro_batch_size: int = 1
    """Rows a data-parallel rank computes at once."""
    global_batch_size: int = 512
    """Of an optimizer step, over all ranks; of what, batch_counts says."""
    batch_counts: Literal["rows", "documents"] = "rows"
    """rows: packed rows, as many in each step. documents: as the MoST release counts, packed into as many rows as they
    take (a row of 2048 tokens holds about 6); data.window does not matter then.
    """
    ramp_from: int = 0
    """Rows of the first step's batch, which then grows evenly to global_batch_size; 0 = the same from the first on."""
    ramp_steps: int = 0
    """Steps in which it grows."""
    learning_rate: float = 1e-5
    """At its highest."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How it falls after the warm-up, to end_ratio times itself at the last step. wsd: it stays, and falls linearly
    over the last decay_steps.
    """
    warmup_steps: int = 0
    """Steps in which it rises linearly from 0."""
    decay_steps: int = 0
    """wsd: steps of the fall."""
    end_ratio: float = 0.0
    """Of the learning rate: what is left at the last step."""
    freeze: tuple[str, ...] = ()
    """What does not learn, by patterns of checkpoint names ("decoder.layers.*.self_attention.*", "*.router.*"), or
    "experts:GROUP" for all routed experts of a group ("experts:text").
    """
    validate_every: int = 0
    """Steps between two validations; 0 = none."""
    max_skipped: int = 10
    """So many steps in a row whose gradient is not finite end the run. They leave the weights as they were."""
    hang_after_s: float = 900.0
    """Seconds without progress after which the run ends and names the rank that holds it up; 0 = never. Starting, the
    first step, saving and validating may take four times as long.
    """
    spike_ratio: float = 0.0
    """A loss this many times the median of the last spike_window steps is a spike; after spike_steps of them in a row
    the run goes back to its last checkpoint, and on with the data that comes after the spike. 0 = never.
    """
    spike_window: int = 100
    """Steps that the median is taken of."""
    spike_steps: int = 3
    """So many in a row are a spike."""
    max_rollbacks: int = 3
    """Spikes after which the run stops instead."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the mean and of the mean square of gradients."""
    epsilon: float = 1e-8
    """AdamW: added to the root of the mean square."""
    weight_decay: float = 0.0
    """AdamW: share of a weight taken off, times the learning rate."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 = no clipping."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole."""

    name: str = "most-16b"
    """Of the run, and of its folder."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU where there is one."""
    tokens: TokensConfig = field(default_factory=TokensConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    core: dict[str, Scalar] = field(default_factory=dict)
    """More of Megatron-Core's TransformerConfig, by upstream name; what we set or cannot keep true is refused."""
    deepspeed: dict[str, Scalar] = field(default_factory=dict)
    """More settings of DeepSpeed's JSON, by dotted upstream names ("zero_optimization.overlap_comm"); likewise."""
