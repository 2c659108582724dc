"""Going on where a run stopped: what must be as it was, and a named refusal of what is not."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_most.config import RunConfig, dump
from megatron_most.errors import CheckpointError

# These may change between two attempts of one run: where and how it is computed, never what.
_MAY_CHANGE = (
    "device", "layout.", "recompute.", "checkpoint.", "core.", "deepspeed.", "engine.kind", "engine.zero_stage",
    "engine.offload_optimizer", "moe.placement", "moe.dispatcher", "train.micro_batch_size", "train.validate_every",
    "train.max_skipped", "train.hang_after_s", "data.validation_documents", "tokens.file", "telemetry.",
)  # fmt: skip


def require_same_run(stored: Path, config: RunConfig) -> None:
    """CheckpointError where a field that decides what is learnt differs from the stored recipe. Datasets may have
    moved: their content is compared by the reader.
    """
    try:
        before = dict(_leaves(tomllib.loads(stored.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{stored}: cannot be read ({error})") from error
    now = dict(_leaves(tomllib.loads(dump(config))))
    for name in sorted({*before, *now}):
        is_path = name.startswith("data.") and name.endswith((".train", ".valid"))
        if before.get(name) != now.get(name) and not is_path and not name.startswith(_MAY_CHANGE):
            raise CheckpointError(
                f"{name} = {now.get(name)!r}, but the run in {stored.parent.parent} was begun with "
                f"{before.get(name)!r}: it would not be the same run; give the old value, or begin another with "
                "checkpoint.folder and checkpoint.start_from"
            )


def _leaves(table: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
