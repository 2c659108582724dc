"""What a run will take, before a GPU-hour is spent: memory by part, traffic by link, seconds, layouts ranked, cost.

machine.py holds what is known of GPUs and what is assumed; activations.py, weights.py and memory.py count bytes, which
tests compare with those of real engines; traffic.py and step.py predict seconds, which rest on the assumptions;
ranking.py ranks; command.py is tools/plan.py, planning.py what it does, scaling.py its page; measured.py sets what runs
have reached beside it. Names are loaded when they are first asked for: usage lines cost no import of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.plan.command import run_plan
    from megatron_most.plan.machine import MACHINES, Assumed, Machine
    from megatron_most.plan.memory import Memory
    from megatron_most.plan.prediction import Cluster, Cost, Prediction, cost_of, predict
    from megatron_most.plan.ranking import Found, for_planning, predict_recipe, search
    from megatron_most.plan.step import Batch, Step

_HOMES = {
    "command": ("run_plan",),
    "machine": ("MACHINES", "Assumed", "Machine"),
    "memory": ("Memory",),
    "prediction": ("Cluster", "Cost", "Prediction", "cost_of", "predict"),
    "ranking": ("Found", "for_planning", "predict_recipe", "search"),
    "step": ("Batch", "Step"),
}

__all__ = [
    "MACHINES", "Assumed", "Batch", "Cluster", "Cost", "Found", "Machine", "Memory", "Prediction", "Step", "cost_of",
    "for_planning", "predict", "predict_recipe", "run_plan", "search",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
