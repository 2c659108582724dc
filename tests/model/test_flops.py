"""The products that config/size.py counts by arithmetic are those that torch sees in a forward pass.

Rows are full and hold text and units alone, so that every token uses top_k experts. Torch counts the whole square of a
row's tokens, with the half that is masked.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_most.config import count_flops, load_recipe, replace
from megatron_most.data import PackedRow, synthetic_batch
from megatron_most.data.packing import Piece
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Device, Ranks
from tests.harness import run_ranks

MODELS: dict[str, dict[str, Any]] = {
    "most-tiny": {},
    "most-tiny with compressed queries": {"model.q_lora_rank": 24},
    "most-tiny with wave": {"model.wave_size": 6},
    "most-tiny-upcycled": {},
    "most-tiny-dense": {},
    "no-shared-tiny": {},
    "vanilla-moe-tiny": {},
}
ROWS, LENGTH = 2, 32


def counted(ranks: Ranks, name: str) -> tuple[int, int]:
    """(what torch sees, what the arithmetic says)."""
    plan = make_plan(replace(load_recipe(name.split()[0]), MODELS[name]), 1, ranks.device)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        batch = synthetic_batch(plan.tokens, ["text", "audio"], LENGTH, seed=1, first=0)
        # The fused attention of a CPU is no product to torch's counter; written out, it is two.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(batch)
    flops = count_flops(plan)
    return counter.get_total_flops(), flops.per_token * ROWS * LENGTH + flops.per_pair * ROWS * LENGTH**2


@pytest.mark.parametrize("name", MODELS)
def test_the_arithmetic_gives_the_products_of_a_forward_pass(name: str) -> None:
    ((seen, said),) = run_ranks(counted, 1, name)
    assert said == seen


def test_a_step_is_three_forward_passes_over_tokens_and_pairs_within_documents() -> None:
    row = PackedRow((Piece(0, 0, 0, 0, 6), Piece(0, 0, 1, 3, 12)))
    assert (row.filled, row.pairs) == (5 + 8, 15 + 36)
    flops = count_flops(make_plan(load_recipe("most-tiny"), 1, Device("cpu")))
    assert flops.of_step(row.filled, row.pairs) == 3 * (13 * flops.per_token + 51 * flops.per_pair)
