"""What the choice of experts by modality costs: a router against Core's own, and its share of a step.

    .venv/bin/python bench/router.py

Forward and backward of one layer's router on the same hidden states: ours, with its tags, groups, balance loss and
counts, and the TopKRouter of Core's local spec with its balance loss per sequence. Then the routers of all layers as a
share of a whole step. On a CPU seconds are of CPU time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.transformer.moe.router import TopKRouter
from race import HEAD, Row, cost
from step import Steps, ours, stock_core

from megatron_most.config import load_recipe, replace
from megatron_most.data import PackedBatch
from megatron_most.engine import Session, open_session
from megatron_most.moe import to_planes
from megatron_most.runtime import run_command, set_threads
from megatron_most.train import synthetic_steps

TURNS = 2
"""Micro-batches in a round: one alone is short for the clock."""


def rows_of(session: Session, rounds: int) -> Iterator[Row]:
    def done() -> float:
        """When the device has done what is queued."""
        session.device.synchronize()
        return time.perf_counter()

    clock = time.process_time if session.device.kind == "cpu" else done
    batches = synthetic_steps(session.plan, session.groups)(0)
    mine = ours(session)
    layers = routers_of(mine)
    ours_passes = passes(layers, batches[0], tagged=True)
    stock_passes = passes(routers_of(stock_core(session)), batches[0], tagged=False)
    yield cost("router / Core's own", ours_passes, stock_passes, rounds=rounds, wanted=1.3, clock=clock)
    often = len(batches) / TURNS
    yield cost("routers / step", ours_passes, mine, rounds=min(rounds, 10), wanted=0.02, clock=clock, unit=often)


def routers_of(steps: Steps) -> list[TopKRouter]:
    """In the order of layers; ours are made of Core's."""
    return [module for module in steps.model.modules() if isinstance(module, TopKRouter)]


def passes(layers: Sequence[TopKRouter], batch: PackedBatch, *, tagged: bool) -> Callable[[], None]:
    """Forward and backward over a batch's tokens through all layers' routers, with the states that a fresh model has:
    of no direction. The planes come as the model makes them: once for all layers, each of which turns them.
    """
    device = layers[0].weight.device
    shape = (*batch.tokens_BS.t().shape, layers[0].weight.size(1))
    states_SBD = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    batch = batch.to(device)

    def run() -> None:
        for _ in range(TURNS):
            planes_BSP = to_planes(batch.tags_BS, batch.is_pad_BS) if tagged else None
            for router in layers:
                weights_TE, _ = router(states_SBD, *([] if planes_BSP is None else [planes_BSP.transpose(0, 1)]))
                weights_TE.square().sum().backward()
                states_SBD.grad = router.weight.grad = None

    return run


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    changes = {"train.global_batch_size": 4, "train.micro_batch_size": 4, "engine.precision": "fp32"}
    with open_session(replace(load_recipe(chosen.recipe), changes)) as session:
        if session.device.kind == "cpu":
            set_threads(1)
        if not chosen.json:
            print(HEAD, flush=True)
        for row in rows_of(session, chosen.rounds):
            print(json.dumps(vars(row)) if chosen.json else row.to_markdown(), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
