"""Imported weights give transformers' logits, through the way that training takes, in any layout; exported ones too.

Names and shapes prove little: a wrong order of gate and up, of heads, or of rotary pairs passes all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import LocalTensors, TensorReader, find_pieces, read_record
from megatron_most.config import Plan, load_recipe, replace
from megatron_most.convert import ImportOptions, Layout, prepare_import
from megatron_most.convert.shares import held_by_rank, plan_for
from megatron_most.convert.tables import link
from megatron_most.data import PackedBatch, synthetic_batch
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import tiny_token_map
from tests.convert.folders import back, into_ours, make
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
        pieces = find_pieces(model, plan.moe.expert_at if plan.moe else ())
        LocalTensors(TensorReader(folder, read_record(folder)), pieces).fill(model)
        return model(batch(), with_labels=False)


def logits(folder: Path, layout: str = "one process") -> torch.Tensor:
    world, changes = LAYOUTS[layout]
    parts = run_ranks(ours, world, folder, changes)
    return torch.cat(parts, -1) if "TP2" in layout else parts[0]


CASES = [
    *(("deepseek_v2", layout) for layout in LAYOUTS),
    ("deepseek_v2 compressed", "one process"),
    *(("llama", layout) for layout in ("one process", "TP2")),
    ("llama untied", "one process"),
    *(("qwen3_moe", layout) for layout in ("one process", "TP2xEP2")),
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_imported_weights_give_the_logits_of_transformers(tmp_path: Path, family: str, layout: str) -> None:
    hf = make(family, tmp_path / "hf")
    folder = into_ours(hf, tmp_path / "ours", **({} if "llama" in family else {"expert": 4}))
    torch.testing.assert_close(logits(folder, layout), theirs(hf), atol=1e-4, rtol=1e-4)


def test_an_exported_most_model_gives_the_logits_of_ours(tmp_path: Path) -> None:
    groups = ("text: 0,2,4-6", "audio+wave: 1,3,7")
    folder = into_ours(make("deepseek_v2", tmp_path / "hf"), tmp_path / "ours", groups=groups)
    found = logits(folder)
    torch.testing.assert_close(theirs(back(folder, tmp_path / "again")), found, atol=1e-4, rtol=1e-4)
    assert (found - theirs(tmp_path / "hf")).abs().max() > 0.1  # the groups do something


def held(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> list[Any]:
    plan = plan_of(folder, changes, ranks)
    with open_groups(plan, ranks) as session:
        pieces = find_pieces(build_model(plan, session.groups), plan.moe.expert_at if plan.moe else ())
        return sorted((p.name, p.start, p.shape, p.whole) for boxes in pieces.values() for p in boxes)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("deepseek_v2", {"tensor": 2, "expert": 2, "pipeline": 2}),
        ("most_c", {"expert": 4}),
        ("llama", {"tensor": 2, "pipeline": 2}),
        ("qwen3_moe", {"tensor": 2}),
    ],
)
def test_files_are_cut_where_megatron_core_cuts_tensors(tmp_path: Path, family: str, layout: dict[str, int]) -> None:
    hf = make(family, tmp_path / "hf")
    prepared = prepare_import(hf, tmp_path / "ours", ImportOptions(layout=Layout(**layout)))
    folder = into_ours(hf, tmp_path / "ours", **layout)
    changes = {f"layout.{name}": size for name, size in layout.items()}
    cores = run_ranks(held, prepared.plan.layout.world, folder, changes)
    plan = plan_for(prepared.plan.config, prepared.plan.tokens)
    assert [sorted(boxes) for boxes in held_by_rank(link(prepared.family.table, plan), plan)] == cores
