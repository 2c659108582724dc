"""The logits of a place are those of the whole model, on every rank, however the model is spread."""

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


def logits(ranks: Ranks, changes: dict[str, Any], file: Path) -> dict[str, torch.Tensor]:
    plan = make_plan(
        replace(load_recipe("most-tiny"), {"model.num_layers": 2, **changes}), ranks.world_size, ranks.device
    )
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        if not changes:
            first = whole_weights(model, plan, session.groups)
            for name, weight in first.items():
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
            torch.save(first, file)
        load_parts(model, torch.load(file, weights_only=True), plan, session.groups)
        batch = synthetic_batch(plan.tokens, ["text", "audio", "mixed", "text"], 32, seed=1, first=0)
        found = {}
        if not changes:
            with torch.no_grad():
                logits_BSV = model.eval()(batch, with_labels=False)
            found["whole"] = logits_BSV[range(4), PLACES]
        engine = make_engine(model, plan, session.groups)
        return {**found, "said": engine.logits(batch, torch.tensor(PLACES))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Path]:
    file = tmp_path_factory.mktemp("alone") / "weights.pt"
    [found] = run_ranks(logits, 1, {}, file)
    assert torch.equal(found["said"], found["whole"]) and found["said"].std() > 0.3
    return found["said"], file


@pytest.mark.parametrize(("world_size", "changes"), LAYOUTS, ids=[str(list(c.values())) for _, c in LAYOUTS])
def test_every_rank_has_the_logits_of_the_whole_model(
    alone: tuple[torch.Tensor, Path], world_size: int, changes: dict[str, Any]
) -> None:
    said, file = alone
    for rank in run_ranks(logits, world_size, changes, file):
        torch.testing.assert_close(rank["said"], said, atol=1e-4, rtol=1e-5)  # fp32, sums in another order
