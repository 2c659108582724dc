"""Packing changes nothing: a row of several documents costs what each of them costs alone, whatever its neighbours
are.
"""

from __future__ import annotations

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import pack_rows, synthetic_document
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model, loss_terms
from megatron_most.runtime import Ranks
from tests.harness import run_ranks


@pytest.mark.parametrize("recipe", ["most-tiny", "most-tiny-upcycled"])
def test_packed_documents_cost_what_they_cost_alone(recipe: str) -> None:
    [(packed, alone)] = run_ranks(losses_packed_and_alone, 1, recipe)
    assert packed == pytest.approx(alone, rel=1e-5)  # fp32, rotary positions differ by an offset


def test_without_document_bounds_they_cost_something_else() -> None:
    [(packed, alone)] = run_ranks(losses_packed_and_alone, 1, "most-tiny", False)
    assert packed != pytest.approx(alone, rel=1e-3)


def losses_packed_and_alone(ranks: Ranks, recipe: str, with_bounds: bool = True) -> tuple[list[float], list[float]]:
    plan = make_plan(replace(load_recipe(recipe), {"model.init_std": 0.2}), 1, ranks.device)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups).eval()
        documents = [synthetic_document(plan.tokens, kind, size, 0, size) for kind, size in DOCUMENTS]
        batch = pack_rows([documents], 32, plan.tokens)
        if not with_bounds:
            object.__setattr__(batch, "is_packed", False)
        loss = model(batch)[0]
        packed = [float(loss[batch.documents_BS[0] == number].sum()) for number in range(len(documents))]
        alone = []
        for document in documents:
            single = pack_rows([[document]], 32, plan.tokens)
            terms = loss_terms(model(single), single.loss_weights_BS, single.label_tags_BS, single.tasks_BS)
            alone.append(float(terms.loss_sum_JM.sum()))
        return packed, alone


DOCUMENTS = (("mixed", 12), ("audio", 6), ("wave", 9))
