"""Routed tokens of the busiest rank by those of the mean one, at three mixes of text and audio, striped and blocked.

    .venv/bin/python bench/balance.py [--steps 1200] [--batches 96]

Counted, not timed: a model of the recipe learns for some steps on rows of half text and half audio, at a rate that
falls to 0 in the second half, as runs end; then it routes rows of each mix. Which rank each choice goes to follows from
the placement table alone, so one count serves every layout. The worst layer is told: in each, ranks wait for one
another.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from race import HEAD, Row
from step import Steps, ours

from megatron_most.config import MoEPlan, Plan, load_recipe, place, replace
from megatron_most.data import Document, PackedBatch, pack_rows
from megatron_most.engine import Session, open_session
from megatron_most.moe import move_biases, routers
from megatron_most.runtime import progress, run_command, set_threads
from megatron_most.vocab import AUDIO, TEXT

MIXES = (10, 50, 90)
"""Percent of the places that are text."""
RANKS = (2, 4)
WANTED = 1.03
ROWS = 10


def rows_of(session: Session, steps: int, batches: int) -> Iterator[Row]:
    plan, moe = session.plan, session.plan.moe
    assert moe is not None, "a recipe with experts is asked for"
    mine = ours(session)
    learning = Steps(mine.model, mine.loss, lambda step: [mixed_batch(plan, 50, step)])
    for number in progress(range(steps), "learning", "step"):
        share = min(1.0, 2 * (steps - number) / steps)
        learning.slow(share)
        learning()
        move_biases(mine.model, None, share)
    known_LE = routed(mine.model, [mixed_batch(plan, 50, steps + number) for number in range(batches)])
    for mix in MIXES:
        load_LE = routed(mine.model, [mixed_batch(plan, mix, steps + batches + number) for number in range(batches)])
        for ranks in RANKS:
            dealt, striped, blocked = (
                worst(load_LE, moe, way, ranks, known)
                for way, known in (("striped", known_LE), ("striped", None), ("blocked", None))
            )
            yield Row(
                part=f"busiest of {ranks} ranks, {mix} % text: dealt / striped / blocked", ours=f"{dealt:.3f}",
                peer=f"{striped:.3f} / {blocked:.3f}", ratio=dealt, wanted=f"≤ {WANTED:g}", ok=dealt <= WANTED,
            )  # fmt: skip


def mixed_batch(plan: Plan, percent: int, number: int) -> PackedBatch:
    """Rows of either modality, ids drawn evenly; every row is one document."""
    draw, tokens, length = random.Random(f"{percent}/{number}"), plan.tokens, plan.config.train.sequence_length + 1
    rows = []
    for row in range(ROWS):
        if 100 * row < percent * ROWS:
            ids, tag = [draw.randrange(tokens.bos_id) for _ in range(length)], TEXT
        else:
            ids, tag = [tokens.first_unit_id + draw.randrange(tokens.num_units) for _ in range(length)], AUDIO
        rows.append([Document(ids=ids, tags=[tag] * length, is_trained=[True] * length)])
    return pack_rows(rows, length - 1, tokens)


def routed(model: torch.nn.Module, batches: Sequence[PackedBatch]) -> torch.Tensor:
    """Choices of each layer's experts over the batches, [layers, experts], in published ids."""
    layers = routers(model)
    for layer in layers:
        layer.sums.forget(keep_step=False)
    for batch in progress(batches, "routing", "batch"):
        model(batch.to(layers[0].weight.device))  # with gradients, else routers do not count
    return torch.stack([layer.sums.parts()[0] for layer in layers])


def worst(
    load_LE: torch.Tensor, moe: MoEPlan, way: Literal["striped", "blocked"], ranks: int, known_LE: torch.Tensor | None
) -> float:
    """Over layers: the busiest rank's choices by the mean rank's. `known_LE`: what was counted before, to deal by."""
    found = []
    for layer, load_E in enumerate(load_LE):
        slots = place(moe.groups, way, ranks, None if known_LE is None else known_LE[layer].tolist())
        by_slot_E = torch.zeros_like(load_E)
        by_slot_E[list(slots)] = load_E
        by_rank_R = by_slot_E.view(ranks, -1).sum(-1)
        found.append(float(by_rank_R.max() / by_rank_R.mean()))
    return max(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--steps", type=int, default=1200, help="learnt before routing is counted")
    parser.add_argument("--bias-rate", type=float, default=1e-4, help="moe.bias_rate; 0 balances by the loss alone")
    parser.add_argument("--batches", type=int, default=96, help="of ten rows, counted for each mix: fewer are noise")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    changes = {"engine.precision": "fp32", "moe.bias_rate": chosen.bias_rate}
    with open_session(replace(load_recipe(chosen.recipe), changes)) as session:
        if session.device.kind == "cpu":
            set_threads(1)
        if not chosen.json:
            print(HEAD, flush=True)
        for row in rows_of(session, chosen.steps, chosen.batches):
            print(json.dumps(vars(row)) if chosen.json else row.to_markdown(), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
