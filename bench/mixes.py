"""Whether a step under expert parallelism takes as long at any mix of text and audio: at three of them, by turns.

    .venv/bin/torchrun --standalone --nproc-per-node 2 bench/mixes.py

Every rank trains on rows of the same mix; a step has taken what it took the slowest rank, on the clock on the wall, so
nothing else should run on the machine. A mix's ratio is the median over rounds of its time by the mean of the three.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from balance import MIXES, mixed_batch
from race import HEAD, Row, spread_of
from step import Steps, ours

from megatron_most.config import load_recipe, replace
from megatron_most.engine import Session, open_session
from megatron_most.runtime import progress, run_command, set_threads

WANTED = 1.03


def rows_of(session: Session, steps: int, rounds: int) -> Iterator[Row]:
    mine, world = ours(session), session.ranks.world_size
    batches = {mix: mixed_batch(session.plan, mix, session.ranks.rank) for mix in MIXES}
    of_mix = {mix: Steps(mine.model, mine.loss, lambda _, mix=mix: [batches[mix]]) for mix in MIXES}
    for _ in progress(range(steps), "learn", "round"):
        for mix in MIXES:
            of_mix[mix]()
    taken: dict[int, list[float]] = {mix: [] for mix in MIXES}
    for number in progress(range(rounds), "rounds", "round"):
        for mix in MIXES if number % 2 else reversed(MIXES):
            taken[mix].append(_slowest(of_mix[mix], session))
    means = [statistics.fmean(times) for times in zip(*taken.values(), strict=True)]
    for mix, times in taken.items():
        ratios = [time_ / mean for time_, mean in zip(times, means, strict=True)]
        ratio = statistics.median(ratios)
        yield Row(
            part=f"step of {world} expert ranks, {mix} % text / three mixes", ours=f"{statistics.median(times):.3g} s",
            peer=f"{statistics.median(means):.3g} s", ratio=ratio, spread=spread_of(ratios), wanted=f"≤ {WANTED:g}",
            ok=ratio <= WANTED, seconds={"ours": times},
        )  # fmt: skip


def _slowest(step: Steps, session: Session) -> float:
    dist.barrier()
    session.device.synchronize()
    start = time.perf_counter()
    step()
    session.device.synchronize()
    took = torch.tensor([time.perf_counter() - start], dtype=torch.float64, device=session.device.torch_device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--steps", type=int, default=3, help="of each mix, learnt before any is timed")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    changes = {"engine.kind": "plain", "engine.precision": "fp32", "layout.expert": 2}
    with open_session(replace(load_recipe(chosen.recipe), changes)) as session:
        if session.device.kind == "cpu":
            set_threads(1)
        rows = list(rows_of(session, chosen.steps, chosen.rounds))
        if session.ranks.rank == 0:
            if not chosen.json:
                print(HEAD)
            print("\n".join(json.dumps(vars(row)) if chosen.json else row.to_markdown() for row in rows), flush=True)


if __name__ == "__main__":
    run_command(main)
