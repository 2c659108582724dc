"""Going on where a run stopped, or from another run's weights: what must be as it was, and a named refusal of what is
not.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_most.config.load import dump, load_recipe
from megatron_most.config.meaning import meaning
from megatron_most.config.schedule import learning_rate
from megatron_most.config.schema import RunConfig
from megatron_most.errors import CheckpointError, ConfigError

# These may change between two attempts of one run: where and how it is computed, how it is watched, and when it gives
# up. Paths among them are of files whose content is compared by itself, or that teach nothing.
MAY_CHANGE = (
    "name", "device", "layout.", "recompute.", "checkpoint.", "core.", "deepspeed.", "engine.kind", "engine.zero_stage",
    "engine.offload_optimizer", "engine.kernels", "moe.placement", "moe.load_file", "moe.dispatcher", "tokens.file",
    "forgetting.", "samples.", "telemetry.", "data.validation_documents", "data.frames", "data.audio_roots",
    "data.frames_model", "data.frames_threads", "data.*.train", "data.*.real", "data.*.valid",
    "data.augment.noise_folders", "data.augment.room_folders", "data.augment.voices_folders", "train.micro_batch_size",
    "train.validate_every", "train.max_skipped", "train.hang_after_s", "train.spike_ratio", "train.spike_window",
    "train.spike_steps", "train.max_rollbacks",
)  # fmt: skip

# These may change as long as no step that is taken already would have gone another way: a run of a constant rate is
# made longer, or cooled down at its end.
RATES = (
    "train.steps", "train.learning_rate", "train.schedule", "train.warmup_steps", "train.decay_steps", "train.end_ratio"
)  # fmt: skip

DECIDES = {  # all others, and what they decide; a name that ends in a dot stands for the table
    "tokens.": "which ids the model reads and writes",
    "model.": "what the weights compute, and what they were at first",
    "moe.": "which experts a token may use and what keeps them busy",
    "engine.precision": "how weights and gradients are rounded",
    "data.*.weight": "which documents come when",
    "data.*.long": "which documents come when",
    "data.*.real_share": "which documents come when",
    "data.augment.": "how speech sounds that is learnt from",
    "data.spec_augment.": "which frames are hidden",
    "data.window": "which documents are packed together",
    "train.seed": "the order of the documents",
    "train.sequence_length": "which documents are packed together",
    "train.global_batch_size": "what a step learns from",
    "train.batch_counts": "what a step learns from",
    "train.ramp_from": "what a step learns from",
    "train.ramp_steps": "what a step learns from",
    **dict.fromkeys(RATES, "how far steps go that are taken already"),
    "train.freeze": "which weights learn",
    "train.betas": "how far a step goes",
    "train.epsilon": "how far a step goes",
    "train.weight_decay": "how far a step goes",
    "train.clip": "how far a step goes",
}


_BALANCED = 'which tokens the auxiliary loss balances together (moe.aux_scope = "batch", or moe.aux_counts_everything)'


def _balances_micro_batches(config: RunConfig) -> bool:
    """Whether an auxiliary loss is of a micro-batch as a whole, or counts the pads that fill it up."""
    moe = config.moe
    is_used = moe.num_experts and (moe.z_coefficient or (moe.aux_coefficient and moe.aux_loss != "none"))
    return bool(is_used) and (moe.aux_scope == "batch" or moe.aux_counts_everything)


def decides(name: str) -> str | None:
    """What a field decides of what is learnt; None where it may change."""
    table, _, rest = name.partition(".")
    is_task = table == "data" and "." in rest and not rest.startswith(("augment.", "spec_augment."))
    pattern = f"data.*.{rest.partition('.')[2]}" if is_task else name
    if any(pattern == known or (known.endswith(".") and pattern.startswith(known)) for known in MAY_CHANGE):
        return None
    return DECIDES.get(pattern) or DECIDES[f"{pattern.rpartition('.')[0]}."]


def require_same_run(stored: Path, config: RunConfig, taken: int) -> None:
    """CheckpointError where a field that decides what is learnt differs from the recipe stored after so many steps.
    Datasets may have moved: their content is compared by the reader.
    """
    try:
        before = dict(_leaves(tomllib.loads(stored.read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{stored}: cannot be read ({error})") from error
    now = dict(_leaves(tomllib.loads(dump(config))))
    before = {**dict(_leaves(tomllib.loads(dump(RunConfig())))), **before}  # fields that are younger than the run
    run = stored.parent.parent.parent  # RUN/checkpoints/step-N/resolved.toml
    together = {"train.micro_batch_size": _BALANCED} if _balances_micro_batches(config) else {}
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name) or (name in RATES and _went_alike(stored, config, taken)):
            continue
        if what := together.get(name) or decides(name):
            raise CheckpointError(
                f"{name} = {now.get(name)!r}, but the run in {run} was begun with {before.get(name)!r}: it decides "
                f"{what}, so it would not be the same run; give the old value, or begin another with "
                "checkpoint.folder and checkpoint.start_from"
            )


def _went_alike(stored: Path, config: RunConfig, taken: int) -> bool:
    """Whether the steps that are taken would have had the same learning rate."""
    then = load_recipe(stored).train
    return all(learning_rate(then, step) == learning_rate(config.train, step) for step in range(taken))


def require_same_meaning(stored: Path, config: RunConfig) -> None:
    """ConfigError where weights of the run of the stored recipe would mean something else here, unless
    checkpoint.allow_changes names the field.
    """
    allowed, theirs = config.checkpoint.allow_changes, load_recipe(stored)
    before, now = meaning(theirs), meaning(config)
    for name in allowed:
        if name not in {*before, *now}:
            near = difflib.get_close_matches(name, now, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"the others of model and moe are {', '.join(now)}"
            raise ConfigError("checkpoint.allow_changes", allowed, f"{name} changes nothing that weights mean", remedy)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name) and name not in (*allowed, *begins_new(theirs, config)):
            table, _, field = name.partition(".")
            value = getattr(getattr(theirs, table), field)
            give = "leave it out" if value is None else f"give {json.dumps(value, ensure_ascii=False)}"
            wrong = f"the weights of {stored.parent} have learnt with {value!r} and would mean another thing"
            remedy = (
                f"{give}, convert them (tools/convert_ckpt.py), or if it is meant name the field in "
                "checkpoint.allow_changes"
            )
            raise ConfigError(name, getattr(getattr(config, table), field), wrong, remedy)


def begins_new(theirs: RunConfig, config: RunConfig) -> dict[str, str]:
    """What weights of the other recipe may lack: field -> a pattern of its tensors' names. A bias on the choice of
    experts begins at zero, where it changes nothing yet; a model that is to hear frames begins to.
    """
    found = {"moe.bias_rate": "*.expert_bias"} if config.moe.bias_rate and not theirs.moe.bias_rate else {}
    if config.model.wave_size and not theirs.model.wave_size:
        found |= {f"model.wave_{name}": "wave.*" for name in ("size", "stack", "tag", "source")}
    if config.model.wave_layers and not theirs.model.wave_layers:
        found |= {f"model.wave_{name}": "wave.encoder.*" for name in ("layers", "heads", "inner_size")}
    return found


def _leaves(table: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
