"""Imported weights give transformers' logits, through the way that training takes, in any layout; exported ones too.

Names and shapes prove little: a wrong order of gate and up, of heads, or of rotary pairs passes all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import find_pieces
from megatron_most.convert import ImportOptions, Layout, prepare_import
from megatron_most.convert.shares import held_by_rank, plan_for
from megatron_most.convert.tables import link
from megatron_most.engine import open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from tests.convert.folders import back, into_ours, make
from tests.convert.whole_logits import LAYOUTS, logits, plan_of, theirs
from tests.harness import run_ranks

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
        pieces = find_pieces(build_model(plan, session.groups), plan.moe)
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
