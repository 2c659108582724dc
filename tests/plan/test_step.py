"""The operations and modules that a prediction counts are those of real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_most.config import load_recipe, replace
from megatron_most.data import synthetic_batch
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.plan import step
from megatron_most.runtime import Ranks
from tests.harness import run_ranks

VIEWS = (  # no work of a device
    "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "slice", "select", "expand", "unsqueeze", "squeeze",
    "detach", "alias", "split", "split_with_sizes", "chunk", "unbind", "as_strided",
)  # fmt: skip
SIZES = ((2, 8), (4, 8), (2, 16))  # layers without the dense one, experts of each


class Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation._schema.name.split("::")[1] not in VIEWS
        return operation(*args, **(kwargs or {}))


def counted(ranks: Ranks) -> list[tuple[int, int]]:
    """(operations of a forward and a backward pass, modules) for each of SIZES."""
    out = []
    for layers, experts in SIZES:
        groups = [f"text: 0-{experts // 2 - 1}", f"audio: {experts // 2}-{experts - 1}"]
        changes = {"model.num_layers": layers + 1, "moe.num_experts": experts, "moe.groups": groups}
        plan = make_plan(replace(load_recipe("most-tiny"), changes), 1, ranks.device)
        with open_groups(plan, ranks) as session, Counter() as counter:
            model = build_model(plan, session.groups)
            batch = synthetic_batch(plan.tokens, ["mixed"], 32, seed=1, first=0)
            for _ in range(2):  # the second adds to gradients that are there
                counter.count = 0
                torch.autograd.backward(model(batch).sum())
        out.append((counter.count, sum(1 for _ in model.modules())))
    return out


def test_operations_and_modules_of_a_layer_and_of_an_expert_are_as_counted() -> None:
    (small, deep, wide) = run_ranks(counted, 1)[0]
    for what, layer, expert in (
        (0, step.LAYER_OPERATIONS, step.EXPERT_OPERATIONS),
        (1, step.LAYER_MODULES, step.EXPERT_MODULES),
    ):
        per_expert = (wide[what] - small[what]) / (2 * 8)
        assert per_expert == pytest.approx(expert, rel=0.1)
        assert (deep[what] - small[what]) / 2 - 8 * per_expert == pytest.approx(layer, rel=0.1)
