"""Logits in pieces of the vocabulary: the losses and gradients of Core's whole ones, without anything as large as they
are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from megatron_most.config import Plan, columns_at_once, load_recipe, logits, replace
from megatron_most.data import PackedBatch, pack_rows, synthetic_document
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.engine.schedule import run_micro_batches
from megatron_most.model import build_model, loss_in_pieces
from megatron_most.runtime import Ranks
from tests.harness import BACKENDS, run_ranks

LENGTH, ROWS, COLUMNS = 48, 2, 192  # pieces that do not divide the vocabulary
PIECES = (1, COLUMNS)  # bytes, least columns
WHOLE = (1 << 40, COLUMNS)
TENSOR, TIED = {"layout.tensor": 2}, {"model.tied_embeddings": True}
BF16 = {"engine.precision": "bf16"}
SCALE = 256.0  # so that a gradient is no rounding error of zero
CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "alone": {},
        "tied": TIED,
        "recomputed": {"recompute.granularity": "full"},
        "bf16": BF16,
        "bf16, tied": {**BF16, **TIED},
    },
    2: {
        "TP": TENSOR,
        "TP, tied": {**TENSOR, **TIED},
        "TP, bf16": {**TENSOR, **BF16},
        "CP": {"layout.context": 2},
        "PP": {"layout.pipeline": 2},
        "PP, tied": {"layout.pipeline": 2, **TIED},
    },
}


@contextmanager
def at_once(bytes_and_columns: tuple[int, int]) -> Iterator[None]:
    before = logits.LOGITS_BYTES, logits.LEAST_COLUMNS
    logits.LOGITS_BYTES, logits.LEAST_COLUMNS = bytes_and_columns
    try:
        yield
    finally:
        logits.LOGITS_BYTES, logits.LEAST_COLUMNS = before


def packed(plan: Plan) -> PackedBatch:
    """Rows of two documents and some pads."""
    kinds = ("mixed", "audio")
    documents = [[synthetic_document(plan.tokens, kind, 20, row, row) for kind in kinds] for row in range(ROWS)]
    return pack_rows(documents, LENGTH, plan.tokens)


def plan_of(changes: dict[str, Any], ranks: Ranks) -> Plan:
    common = {"train.sequence_length": LENGTH, "train.micro_batch_size": ROWS}
    common |= {"model.init_std": 0.1, "tokens.num_units": 1500}
    return make_plan(replace(load_recipe("most-tiny"), {**common, **changes}), ranks.world_size, ranks.device)


class Passed:
    """A loss and the gradients of all weights, with the largest tensor that autograd kept."""

    def __init__(self, model: Any, batch: PackedBatch, groups: Any) -> None:
        self.kept = 0
        for weight in model.parameters():
            weight.grad = None
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            terms = run_micro_batches(model, [batch], groups, loss_scale=SCALE)
        self.loss = terms.loss_sum_JM.cpu()
        named = model.named_parameters()
        self.gradients = {name: w.grad.cpu() for name, w in named if w.grad is not None}

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            self.kept = max(self.kept, tensor.numel())
        return tensor


def passed_both_ways(ranks: Ranks, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    out = {}
    for case, changes in cases.items():
        plan = plan_of(changes, ranks)
        with open_groups(plan, ranks) as session:
            model = build_model(plan, session.groups, ranks.device.torch_device).train()
            batch = packed(plan).to(ranks.device.torch_device)
            both = []
            for size in (WHOLE, PIECES):
                with at_once(size):
                    both.append(Passed(model, batch, session.groups))
            ours = plan.tokens.vocab_size // plan.layout.tensor
            out[case] = {"passed": both, "tokens": LENGTH * ROWS // plan.layout.context, "columns": ours}
            out[case]["is_last"] = session.groups.is_last_stage
    return out


@pytest.mark.parametrize("world", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_cost_what_the_whole_costs_and_have_its_gradients(world: int, backend: str) -> None:
    ranks = run_ranks(passed_both_ways, world, CASES[world], backend=backend)
    for case, changes in CASES[world].items():
        # fp32, sums in another order; bf16's gradients of hidden states are rounded elsewhere (2**-8 each), then pass
        # through all layers
        slope = 2e-2 if changes.get("engine.precision") == "bf16" else 2e-6
        for found in (rank[case] for rank in ranks):
            whole, pieces = found["passed"]
            torch.testing.assert_close(pieces.loss, whole.loss, rtol=1e-6, atol=0.0)
            assert whole.loss.sum() > 0 and pieces.gradients.keys() == whole.gradients.keys()
            for name, of_whole in whole.gradients.items():
                difference = (pieces.gradients[name] - of_whole).float().norm()
                assert difference <= slope * of_whole.float().norm(), (case, name, difference / of_whole.float().norm())
            if found["is_last"]:
                assert found["columns"] % COLUMNS and found["columns"] > COLUMNS
                assert whole.kept >= found["tokens"] * found["columns"], "the comparison is with whole logits"
                assert pieces.kept < found["tokens"] * found["columns"] / 2, case


def slopes_in_bf16(ranks: Ranks) -> dict[str, tuple[float, float]]:
    """By operand how far its gradient is from float64's, in pieces and whole."""
    plan = plan_of({}, ranks)
    with open_groups(plan, ranks) as session:
        draw = torch.Generator().manual_seed(0)
        operands = [torch.randn(64, 32, generator=draw), torch.randn(1544, 32, generator=draw)]
        labels_T, slope_T = torch.randint(0, 1544, (64,), generator=draw), torch.rand(64, generator=draw)

        def gradients(dtype: torch.dtype, in_pieces: bool) -> list[torch.Tensor]:
            hidden_TD, weight_VD = (x.bfloat16().to(dtype).requires_grad_() for x in operands)
            if in_pieces:
                loss_T = loss_in_pieces(hidden_TD, weight_VD, labels_T, COLUMNS, session.groups.tensor)
            else:
                logits_TV = hidden_TD @ weight_VD.t()
                wide = torch.promote_types(dtype, torch.float32)
                loss_T = torch.nn.functional.cross_entropy(logits_TV.to(wide), labels_T, reduction="none")
            loss_T.backward(slope_T.to(loss_T.dtype))
            return [x.grad.double() for x in (hidden_TD, weight_VD) if x.grad is not None]

        exact, whole = gradients(torch.float64, False), gradients(torch.bfloat16, False)
        pieces = gradients(torch.bfloat16, True)
        far = [[float((ours - true).norm() / true.norm()) for ours, true in zip(x, exact, strict=True)]
               for x in (pieces, whole)]  # fmt: skip
        return {"hidden": (far[0][0], far[1][0]), "weight": (far[0][1], far[1][1])}


def test_in_bf16_pieces_are_no_further_from_the_truth_than_the_whole() -> None:
    [found] = run_ranks(slopes_in_bf16, 1)
    for operand, (pieces, whole) in found.items():
        assert 0 < pieces < 1.05 * whole, (operand, pieces, whole)


def frozen(ranks: Ranks, pattern: str) -> list[Passed]:
    plan = plan_of({}, ranks)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups).train()
        for name, weight in model.named_parameters():
            weight.requires_grad_((pattern in name) == (pattern != "output_layer"))
        out = []
        for size in (WHOLE, PIECES):
            with at_once(size):
                out.append(Passed(model, packed(plan), session.groups))
        return out


@pytest.mark.parametrize(("pattern", "learns"), [("output_layer", False), ("output_layer.weight", True)])
def test_with_frozen_weights_the_others_have_the_same_gradients(pattern: str, learns: bool) -> None:
    [(whole, pieces)] = run_ranks(frozen, 1, pattern)
    assert ("output_layer.weight" in pieces.gradients) == learns and len(pieces.gradients) >= 1
    for name, of_whole in whole.gradients.items():
        torch.testing.assert_close(pieces.gradients[name], of_whole, rtol=1e-4, atol=1e-5 * float(of_whole.abs().max()))


def without_gradients(ranks: Ranks) -> list[torch.Tensor]:
    plan = plan_of({}, ranks)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        out = []
        for size in (WHOLE, PIECES):
            with at_once(size):
                out.append(model(packed(plan)))
        return out


def test_a_loss_that_is_only_looked_at_is_the_same_for_every_token() -> None:
    [(whole, pieces)] = run_ranks(without_gradients, 1)
    assert whole.shape == (ROWS, LENGTH) and whole.std() > 0.1
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


def two_steps(ranks: Ranks, zero: int) -> dict[str, list[float]]:
    out = {}
    for way, size in (("whole", WHOLE), ("pieces", PIECES)):
        plan = plan_of({"engine.kind": "deepspeed", "engine.zero_stage": zero, "train.global_batch_size": 4}, ranks)
        with at_once(size), open_groups(plan, ranks) as session:
            engine = make_engine(build_model(plan, session.groups), plan, session.groups)
            reports = [engine.step([packed(plan)], 1e-2) for _ in range(2)]
            out[way] = [number for report in reports for number in (report.loss, report.gradient_norm)]
    return out


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_takes_the_same_steps(zero: int) -> None:
    """ZeRO-3 has the weight whole only while the output layer is called, and so goes on with whole logits."""
    for found in run_ranks(two_steps, 2, zero):
        assert found["pieces"] == pytest.approx(found["whole"], rel=1e-5)
        assert found["whole"][0] != pytest.approx(found["whole"][2], rel=1e-4), "it learns"


def test_small_logits_are_not_cut_and_large_ones_fit() -> None:
    assert columns_at_once(4096, 4096) == 4096  # 64 MiB
    assert columns_at_once(4096, 102400) == 4096
    assert columns_at_once(4000, 102400) % 64 == 0
    assert columns_at_once(1 << 20, 102400) == 1024
    assert columns_at_once(1 << 20, 500) == 500
