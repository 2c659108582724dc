"""Checks of numbers: each by itself, and those that must fit one another. `build.py` calls them and decides the rest.

What Megatron-Core or torch would meet later with an assertion, a division by zero or NaN is named here by its field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from megatron_most.config.augment import check_augment, check_spec_augment
from megatron_most.config.data import DataConfig, TaskConfig
from megatron_most.config.plan import LayoutPlan
from megatron_most.config.schema import (
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    TrainConfig,
)
from megatron_most.errors import ConfigError

AT_LEAST_ONE = {
    "tokens": ("num_units", "multiple"),
    "model": ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "q_lora_rank", "dense_hidden_size")
    + ("rope_original_length", "max_positions", "wave_stack", "wave_heads", "wave_inner_size"),
    "layout": ("tensor", "pipeline", "context", "expert", "expert_tensor"),
    "recompute": ("num_layers",),
    "train": ("steps", "sequence_length", "micro_batch_size", "global_batch_size", "max_skipped")
    + ("spike_window", "spike_steps"),
    "samples": ("tokens",),
    "data": ("window", "validation_documents"),
    "telemetry": ("peak_flops",),
}
NOT_NEGATIVE = {
    "model": ("wave_size", "init_std"),
    "moe": ("num_experts", "shared_hidden_size", "aux_coefficient", "z_coefficient", "bias_rate"),
    "train": ("learning_rate", "weight_decay", "clip", "warmup_steps", "decay_steps", "end_ratio", "validate_every")
    + ("ramp_from", "ramp_steps", "max_rollbacks", "hang_after_s"),
    "forgetting": ("limit",),
    "samples": ("count",),
    "checkpoint": ("every", "keep"),
    "telemetry": ("every",),
    "data": ("frames_threads",),
}
ABOVE_ZERO = {  # a norm of zeros and an expert without gradients divide by these alone
    "model": ("norm_eps",),
    "moe": ("scale",),
    "train": ("epsilon",),
}

AT_MOST = {  # beyond these a slip of the keyboard eats the machine's memory before anything can refuse it
    "tokens": {"num_units": 10**6, "multiple": 10**6},
    "model": {"num_layers": 10**4},
    "moe": {"num_experts": 10**5},
    "train": {"steps": 10**9, "ramp_steps": 10**6, "global_batch_size": 10**7, "sequence_length": 10**8},
    "data": {"window": 10**7},
}

MOST_MICRO_BATCHES = 10**4  # of a rank in a step, which would take hours without a word


def check_numbers(config: RunConfig) -> None:
    """Every number by itself."""
    for field, value in _floats(config, ""):
        if not math.isfinite(value):
            raise ConfigError(field, value, "is not a finite number", "give one")
    for table, names in AT_LEAST_ONE.items():
        for name in names:
            value = getattr(getattr(config, table), name)
            if value is not None and value < 1:
                raise ConfigError(f"{table}.{name}", value, "must be at least 1", "raise it")
    for table, most in AT_MOST.items():
        for name, limit in most.items():
            if getattr(getattr(config, table), name) > limit:
                value = getattr(getattr(config, table), name)
                raise ConfigError(f"{table}.{name}", value, f"is beyond {limit}", "check the number of zeros")
    if not config.model.rope_theta > 1:
        raise ConfigError("model.rope_theta", config.model.rope_theta, "must be above 1", "10000 is usual")
    for bounds, wrong, remedy, low in (
        (NOT_NEGATIVE, "must not be negative", "use 0 or more", lambda value: value < 0),
        (ABOVE_ZERO, "must be above 0", "raise it", lambda value: value <= 0),
    ):
        for table, names in bounds.items():
            for name in names:
                value = getattr(getattr(config, table), name)
                if low(value):
                    raise ConfigError(f"{table}.{name}", value, wrong, remedy)


def _floats(value: object, at: str) -> Iterator[tuple[str, float]]:
    """Every float of a config, with its dotted name."""
    if isinstance(value, float):
        yield at, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(item, at)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _floats(item, f"{at}.{name}")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _floats(getattr(value, field.name), f"{at}.{field.name}" if at else field.name)


def check_divides(field: str, size: int, what: str, whole: int) -> None:
    """`size` must cut `whole` into equal pieces."""
    if whole % size:
        raise ConfigError(field, size, f"does not divide {what} ({whole})", "use a divisor of it")


def check_model(model: ModelConfig, layout: LayoutConfig) -> None:
    """Heads, widths and layers against each other and the layout."""
    check_divides("layout.tensor", layout.tensor, "model.num_heads", model.num_heads)
    check_divides("layout.tensor", layout.tensor, "model.dense_hidden_size", model.dense_hidden_size)
    check_divides("layout.pipeline", layout.pipeline, "model.num_layers", model.num_layers)
    _check_rope(model)
    if model.attention == "mla":
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(model, name) < 1:
                raise ConfigError(f"model.{name}", getattr(model, name), "must be at least 1 for mla", "raise it")
        check_pairs("model.qk_rope_head_dim", model.qk_rope_head_dim)
        if model.qk_norm:
            raise ConfigError("model.qk_norm", True, "is for gqa: mla norms its latents", "leave it out")
        return
    num_kv_heads = model.num_kv_heads or model.num_heads
    check_divides("model.num_kv_heads", num_kv_heads, "model.num_heads", model.num_heads)
    check_divides("layout.tensor", layout.tensor, "model.num_kv_heads", num_kv_heads)
    if model.head_dim is None:
        check_divides("model.num_heads", model.num_heads, "model.hidden_size", model.hidden_size)
    check_pairs("model.head_dim", model.head_dim or model.hidden_size // model.num_heads)


def check_pairs(field: str, width: int) -> None:
    if width % 2:
        raise ConfigError(field, width, "rotary dimensions come in pairs", "use an even number")


def _check_rope(model: ModelConfig) -> None:
    if model.attention == "mla" and model.rope == "llama3":
        raise ConfigError("model.rope", model.rope, "Megatron-Core's MLA knows plain and yarn", "use one of those")
    if model.attention == "gqa" and model.rope == "yarn":
        raise ConfigError("model.rope", model.rope, "yarn is for mla here", "use plain or llama3 with gqa")
    if model.rope != "plain" and model.rope_factor < 1:
        raise ConfigError("model.rope_factor", model.rope_factor, "would make positions shorter", "use 1 or more")
    if model.rope == "yarn" and not model.rope_beta_fast > model.rope_beta_slow > 0:
        wrong = f"must be above model.rope_beta_slow ({model.rope_beta_slow}), and that above 0"
        raise ConfigError("model.rope_beta_fast", model.rope_beta_fast, wrong, "DeepSeek-V2 uses 32 and 1")
    if model.rope == "llama3" and model.rope_original_length != 8192:
        wrong = "Megatron-Core's llama3 scaling is fixed at 8192"
        raise ConfigError("model.rope_original_length", model.rope_original_length, wrong, "use 8192")


def check_experts(config: MoEConfig, model: ModelConfig, layout: LayoutPlan) -> None:
    """Sizes of the experts, and where layers have them."""
    for name in ("top_k", "expert_hidden_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"moe.{name}", getattr(config, name), "must be at least 1", "raise it")
    for layer in config.dense_layers:
        if not 0 <= layer < model.num_layers:
            wrong, remedy = f"there is no layer {layer}", f"use 0..{model.num_layers - 1}"
            raise ConfigError("moe.dense_layers", config.dense_layers, wrong, remedy)
    if len(set(config.dense_layers)) == model.num_layers:
        wrong = "no layer is left for the experts"
        raise ConfigError("moe.dense_layers", config.dense_layers, wrong, "name fewer, or set moe.num_experts = 0")
    check_divides("layout.expert", layout.expert, "moe.num_experts", config.num_experts)
    check_divides("layout.expert_tensor", layout.expert_tensor, "moe.expert_hidden_size", config.expert_hidden_size)
    check_divides("layout.tensor", layout.tensor, "moe.shared_hidden_size", config.shared_hidden_size)
    if config.aux_counts_everything and config.aux_loss != "reference":
        wrong = "only the reference auxiliary loss counts pads and markers"
        raise ConfigError("moe.aux_counts_everything", True, wrong, 'set moe.aux_loss = "reference"')


def check_train(train: TrainConfig, model: ModelConfig, layout: LayoutPlan) -> None:
    """Lengths, batches, rates. Neither micro-batch nor data ranks need divide the global batch: it is filled up."""
    if train.sequence_length > model.max_positions:
        wrong = f"model.max_positions is {model.max_positions}"
        raise ConfigError("train.sequence_length", train.sequence_length, wrong, "use at most that")
    # Context ranks take two pieces each (zigzag); tensor ranks share what a context rank has.
    pieces = layout.tensor * layout.context * (2 if layout.context > 1 else 1)
    if train.sequence_length % pieces:
        sizes = f"layout.tensor {layout.tensor} x layout.context {layout.context}"
        wrong = f"cannot be cut into {pieces} pieces, as {sizes} needs"
        raise ConfigError("train.sequence_length", train.sequence_length, wrong, f"use a multiple of {pieces}")
    if train.micro_batch_size > train.global_batch_size:
        wrong = f"train.global_batch_size is {train.global_batch_size}"
        raise ConfigError("train.micro_batch_size", train.micro_batch_size, wrong, "use at most that")
    micro_batches = -(-train.global_batch_size // (train.micro_batch_size * layout.data))
    if micro_batches > MOST_MICRO_BATCHES:
        wrong = f"{micro_batches:,} micro-batches one after the other on each of {layout.data} data-parallel ranks"
        remedy = f"lower it, or raise train.micro_batch_size or the number of ranks: {MOST_MICRO_BATCHES:,} are allowed"
        raise ConfigError("train.global_batch_size", train.global_batch_size, wrong, remedy)
    for beta in train.betas:
        if not 0 <= beta < 1:
            wrong = f"{beta} is not a decay rate"
            raise ConfigError("train.betas", train.betas, wrong, "use 0 or more and less than 1")
    if not 0 <= train.seed < 2**32:  # numpy has no more, and two seeds must not mean the same
        raise ConfigError("train.seed", train.seed, "not in 0..4294967295", "use a number in that range")
    _check_schedule(train)


def _check_schedule(train: TrainConfig) -> None:
    if bool(train.ramp_from) != bool(train.ramp_steps):
        remedy = "give both, or neither"
        raise ConfigError("train.ramp_steps", train.ramp_steps, f"train.ramp_from is {train.ramp_from}", remedy)
    if train.ramp_from > train.global_batch_size:
        wrong = f"train.global_batch_size is {train.global_batch_size}"
        raise ConfigError("train.ramp_from", train.ramp_from, wrong, "use less: the batch grows")
    if train.ramp_from and train.batch_counts == "documents":
        raise ConfigError("train.ramp_from", train.ramp_from, "grows rows only", 'set train.batch_counts = "rows"')
    if train.spike_ratio and not train.spike_ratio > 1:
        raise ConfigError(
            "train.spike_ratio", train.spike_ratio, "every loss would be a spike", "use more than 1, or 0"
        )
    if train.warmup_steps >= train.steps and train.warmup_steps:
        raise ConfigError("train.warmup_steps", train.warmup_steps, f"train.steps is {train.steps}", "use fewer")
    if (train.schedule == "wsd") != (train.decay_steps > 0):
        wrong = f"train.schedule is {train.schedule}"
        raise ConfigError("train.decay_steps", train.decay_steps, wrong, "give steps to wsd, and 0 to the others")
    if train.warmup_steps + train.decay_steps > train.steps:
        wrong = f"with train.warmup_steps {train.warmup_steps} more than train.steps {train.steps}"
        raise ConfigError("train.decay_steps", train.decay_steps, wrong, "use fewer")
    if train.end_ratio > 1:
        raise ConfigError("train.end_ratio", train.end_ratio, "would let the rate rise", "use 0 to 1")


def check_data(data: DataConfig) -> None:
    """Tasks: a weight has datasets, and datasets have a weight."""
    for field in fields(data):
        task = getattr(data, field.name)
        if not isinstance(task, TaskConfig):
            continue
        weight, train = task.weight, task.train
        if weight < 0:
            raise ConfigError(f"data.{field.name}.weight", weight, "must not be negative", "use 0 or more")
        if weight and not train:
            raise ConfigError(f"data.{field.name}.train", train, f"the weight is {weight:g}", "name its datasets")
        if train and not weight:
            remedy = "give it a weight, or leave the datasets out"
            raise ConfigError(f"data.{field.name}.weight", weight, "its datasets would never be read", remedy)
        if not 0 <= (share := task.real_share) < 1:
            remedy = "use 0 or more and less than 1"
            raise ConfigError(f"data.{field.name}.real_share", share, "is no share beside synthetic data", remedy)
        if bool(share) != bool(task.real):
            wrong = f"data.{field.name}.real is {task.real}"
            raise ConfigError(f"data.{field.name}.real_share", share, wrong, "give both, or neither")
    check_augment(data.augment)
    check_spec_augment(data.spec_augment)
    if data.augment.changes_length:
        name = "speed" if data.augment.speed else "tempo"
        wrong = "would change how many frames a document has, and they are counted before they are heard"
        remedy = 'set 0 (as "parts/augment-frames" does); speech to be made units of: prepare_data.py augment'
        raise ConfigError(f"data.augment.{name}", getattr(data.augment, name), wrong, remedy)


_OF_WAVE = ("wave_stack", "wave_tag", "wave_source", "wave_layers", "wave_heads", "wave_inner_size")
MOST_WAVE_LAYERS = 1000


def check_wave(config: RunConfig) -> None:
    """Continuous features: what is said of them belongs together."""
    model, data = config.model, config.data
    if model.wave_size % model.wave_stack:
        wrong = f"does not divide model.wave_size ({model.wave_size})"
        raise ConfigError("model.wave_stack", model.wave_stack, wrong, "wave_size is so many times the encoder's width")
    _check_wave_layers(model)
    if model.wave_size:
        return
    for table, section, unsaid, names in (
        ("model", model, ModelConfig(), _OF_WAVE),
        ("data", data, DataConfig(), ("frames", "audio_roots", "frames_model", "augment", "spec_augment")),
    ):
        for name in names:
            if (value := getattr(section, name)) != getattr(unsaid, name):
                wrong = "is about continuous features, and model.wave_size is 0"
                raise ConfigError(f"{table}.{name}", value, wrong, "set model.wave_size, or leave it out")


def _check_wave_layers(model: ModelConfig) -> None:
    layers, width = model.wave_layers, model.wave_size // model.wave_stack
    if not layers:
        for name in ("wave_heads", "wave_inner_size"):
            if (value := getattr(model, name)) != getattr(ModelConfig(), name):
                wrong = "is about the encoder's layers that learn, and model.wave_layers is empty"
                raise ConfigError(f"model.{name}", value, wrong, "set model.wave_layers, or leave it out")
        return
    if layers[0] < 1 or layers != tuple(range(layers[0], layers[0] + len(layers))) or layers[-1] > MOST_WAVE_LAYERS:
        remedy = f"name the layers after the one that the data has, up to {MOST_WAVE_LAYERS}, as [10, 11]"
        raise ConfigError("model.wave_layers", layers, "not layers one after the other, from 1 on", remedy)
    if width and width % model.wave_heads:
        wrong = f"does not divide the encoder's width ({width})"
        raise ConfigError("model.wave_heads", model.wave_heads, wrong, "give the heads of the encoder")


def check_watch(config: RunConfig) -> None:
    """What looks at a run while it learns: the gate and the samples need validations to happen at."""
    if not config.train.validate_every:
        for name, value in (("forgetting.valid", config.forgetting.valid), ("samples.count", config.samples.count)):
            if value:
                wrong = "looked at with each validation, and train.validate_every is 0"
                raise ConfigError(name, value, wrong, "set train.validate_every")
    if config.checkpoint.keep_optimizer and config.checkpoint.start_from is None:
        wrong = "there is no checkpoint.start_from whose optimizer could be kept"
        raise ConfigError("checkpoint.keep_optimizer", True, wrong, "name one")
    if config.checkpoint.allow_changes and config.checkpoint.start_from is None:
        wrong = "there is no checkpoint.start_from whose recipe this one could differ from"
        raise ConfigError("checkpoint.allow_changes", config.checkpoint.allow_changes, wrong, "name one")
