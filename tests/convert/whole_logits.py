"""Logits of whole models on one batch: transformers' of a folder, and Core's of a checkpoint, on one rank or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint import LocalTensors, TensorReader, find_pieces, read_record
from megatron_most.config import Plan, load_recipe, replace
from megatron_most.data import PackedBatch, synthetic_batch
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import tiny_token_map
from tests.harness import run_ranks

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, {"layout.tensor": 2}),
    "EP2": (2, {"layout.expert": 2}),
    "TP2xEP2": (2, {"layout.tensor": 2, "layout.expert": 2}),
}


def batch() -> PackedBatch:
    return synthetic_batch(tiny_token_map(), ["mixed", "text", "audio", "text"], 32, seed=3, first=0)


def theirs(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    from megatron_most.convert.most_hf import register

    register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(batch().tokens_BS).logits


def plan_of(folder: Path, changes: dict[str, Any], ranks: Ranks) -> Plan:
    one = {"layout.tensor": 1, "layout.expert": 1, "layout.pipeline": 1, "engine.precision": "fp32"}
    return make_plan(replace(load_recipe(folder / "resolved.toml"), {**one, **changes}), ranks.world_size, ranks.device)


def ours(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> torch.Tensor:
    plan = plan_of(folder, changes, ranks)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        pieces = find_pieces(model, plan.moe)
        LocalTensors(TensorReader(folder, read_record(folder)), pieces).fill(model)
        return model(batch(), with_labels=False)


def logits(folder: Path, layout: str = "one process") -> torch.Tensor:
    world, changes = LAYOUTS[layout]
    parts = run_ranks(ours, world, folder, changes)
    return torch.cat(parts, -1) if "TP2" in layout else parts[0]
