"""How an exported folder is compared with its checkpoint before it gets its name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_most.checkpoint import DTYPES
from megatron_most.config import Plan
from megatron_most.convert.export_job import Export
from megatron_most.convert.hf_folder import HfFolder
from megatron_most.convert.prompts import Prompts, gate_prompts
from megatron_most.convert.readers import CONSTANT, as_base
from megatron_most.runtime import get_logger
from megatron_most.vocab import TEXT

if TYPE_CHECKING:
    from megatron_most.convert.lent import Read

BUFFERS = (CONSTANT, ".mlp.router.expert_bias")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_log = get_logger(__name__)


def require_comparable(prepared: Export) -> None:
    """What the gate would find only after everything is written: no prompts, or a model that transformers builds
    otherwise. DataError, CheckpointError, UpstreamError.
    """
    from megatron_most.convert.hf_build import build, require_tensors  # and transformers

    values, where = json.loads(json.dumps(prepared.config)), f"the export of {prepared.ours.folder}"
    _gate_prompts(prepared, values["vocab_size"])
    shapes = {name: tuple(shape) for file in prepared.files for name, (_, shape) in file.tensors.items()}
    require_tensors(build(where, values, prepared.plan.tokens), where, shapes)


def check_export(prepared: Export, folder: Path) -> None:
    """CheckpointError where transformers does not compute from the folder what we do from the checkpoint."""
    from megatron_most.convert.gate import require_equal  # Megatron-Core and transformers, which others do without
    from megatron_most.convert.hf_layers import HfModel

    ours, options = prepared.ours, prepared.options
    plan, read = _as_exported(prepared)
    theirs = HfModel(HfFolder(folder), plan.tokens, our_ids=_text_experts(plan) if options.text_only else None)
    prompts = _gate_prompts(prepared, theirs.vocab_size)
    found = require_equal(f"{ours.folder} and transformers from the export of it", plan, read, theirs, prompts)
    _log.info("logits gate passed, on %s: %s", prompts.source, found)


def _gate_prompts(prepared: Export, vocab: int) -> Prompts:
    options = prepared.options
    # a model without modalities is asked for text alone
    plan = prepared.plan if options.text_only else _as_exported(prepared)[0]
    return gate_prompts(plan, None, options.tokenizer, vocab)


def _text_experts(plan: Plan) -> dict[int, Sequence[int]]:
    assert plan.moe is not None and (group := plan.moe.group_of_tag[TEXT]) is not None, "the export has been prepared"
    return dict.fromkeys(range(plan.config.model.num_layers), plan.moe.groups[group])


def _as_exported(prepared: Export) -> tuple[Plan, Read]:
    """The checkpoint as the model that is exported."""
    plan, read = prepared.ours.plan(), partial(_read_rounded, prepared)
    return as_base(plan, read) if prepared.options.drop_routing else (plan, read)


def _read_rounded(prepared: Export, name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
    """Rounded as the export rounds: both sides then compute with the same numbers, and the tolerance stays.

    A constant that is multiplied into experts before they are rounded is so here as well; in float32 it stays by
    itself, and the multiplication is compared too.
    """
    ours, dtype = prepared.ours, prepared.options.dtype
    data = ours.read("weight", name, first, rows)
    factor = _factor(prepared, name)
    if name.endswith(BUFFERS):
        return torch.ones_like(data) if name.endswith(CONSTANT) and factor != 1.0 else data
    if ".experts." in name and name.endswith("linear_fc2.weight") and factor != 1.0:
        data = data.float() * factor
    stored = ours.weights[name].dtype
    return data.to(DTYPES[dtype or stored])


def _factor(prepared: Export, name: str) -> float:
    layer = _LAYER.match(name)
    factor = prepared.folded.get(int(layer[1]), 1.0) if layer else 1.0
    if layer is None or factor == 1.0:
        return 1.0
    stored = prepared.ours.weights[f"{layer[0]}mlp.experts.0.linear_fc2.weight"].dtype
    return 1.0 if (prepared.options.dtype or stored) == "float32" else factor
