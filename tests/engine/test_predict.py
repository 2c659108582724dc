"""The likeliest next token is the one of the whole model's logits, however the model is spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import synthetic_batch
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.vocab import OUTSIDE
from tests.harness import run_ranks
from tests.weights import load_parts, whole_weights

PLACES = [0, 7, 16, 31]
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"layout.tensor": 2}),
    (2, {"layout.context": 2}),
    (2, {"layout.pipeline": 2}),
    (4, {"layout.tensor": 2, "layout.pipeline": 2}),
    (2, {"engine.kind": "deepspeed", "engine.zero_stage": 3, "layout.expert": 2}),
    (2, {"engine.kind": "deepspeed", "engine.zero_stage": 1, "layout.pipeline": 2}),
]


def predict(ranks: Ranks, changes: dict[str, Any], file: Path) -> dict[str, list[int]]:
    plan = make_plan(replace(load_recipe("most-tiny"), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        if not changes:
            first = whole_weights(model, plan, session.groups)
            for name, weight in first.items():
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
            first["output_layer.weight"][-3:] = 9.0  # rows of no token, the largest of all or the smallest
            torch.save(first, file)
        load_parts(model, torch.load(file, weights_only=True), plan, session.groups)
        batch = synthetic_batch(plan.tokens, ["text", "audio", "mixed", "text"], 32, seed=1, first=0)
        found = {}
        if not changes:
            with torch.no_grad():
                logits_BSV = model.eval()(batch, with_labels=False)
            unused = torch.tensor(plan.tokens.tag_table()) == OUTSIDE
            assert unused.any() and logits_BSV.argmax(-1).ge(plan.tokens.used_size).any()  # it would be said
            logits_BSV[..., unused] = float("-inf")
            found["whole"] = logits_BSV[range(4), PLACES].argmax(-1).tolist()
        engine = make_engine(model, plan, session.groups)
        return {**found, "said": engine.predict(batch, torch.tensor(PLACES)).tolist()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], Path]:
    file = tmp_path_factory.mktemp("alone") / "weights.pt"
    [found] = run_ranks(predict, 1, {}, file)
    assert found["said"] == found["whole"] and len(set(found["said"])) > 1
    return found["said"], file


@pytest.mark.parametrize(("world_size", "changes"), LAYOUTS, ids=[str(list(c.values())) for _, c in LAYOUTS])
def test_every_rank_hears_the_token_of_the_whole_model(
    alone: tuple[list[int], Path], world_size: int, changes: dict[str, Any]
) -> None:
    said, file = alone
    assert [rank["said"] for rank in run_ranks(predict, world_size, changes, file)] == [said] * world_size
