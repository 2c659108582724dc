"""What a step pays for being told, saved and modality-aware: ratios to the same step without, by turns in one run.

    .venv/bin/python bench/telemetry.py

telemetry: every step timed by laps and told (metrics.jsonl, TensorBoard), routers summing what they do, and a look at
norms, experts and memory every telemetry.every steps; against none of it. checkpoints: one after every step, written
while the next is computed, against none. MAMoE: most-mini against vanilla-moe-mini, which differ in their groups alone.
On a CPU the first and the last are ratios of CPU time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from race import HEAD, Row, spread_of

from megatron_most.checkpoint import Saver, Shelf, find_pieces
from megatron_most.config import dump, load_recipe, replace
from megatron_most.data import PackedRow, Position, Step
from megatron_most.data.packing import Piece
from megatron_most.engine import Session, make_engine, make_plan, open_session
from megatron_most.engine.interface import Engine
from megatron_most.model import build_model
from megatron_most.moe import routers
from megatron_most.runtime import get_logger, run_command, set_threads
from megatron_most.train import synthetic_steps
from megatron_most.train.metrics import Metrics
from megatron_most.upstream import find_versions

RATE = 1e-4
WARM_UP = 2
SAVED_AT_ONCE = 5
say = get_logger(__name__).info
Timed = Callable[[int], object]
"""Takes step n."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--vanilla", default="vanilla-moe-mini", help="of the same shape, without modalities")
    parser.add_argument("--steps", type=int, default=40, help="of each kind")
    parser.add_argument("--rows", type=int, default=4, help="in a step")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    rows = {"train.global_batch_size": chosen.rows, "train.micro_batch_size": chosen.rows}
    changes = {**rows, "train.steps": 10**9}
    config = replace(load_recipe(chosen.recipe), changes)

    def tell(row: Row) -> None:
        print(json.dumps(vars(row)) if chosen.json else row.to_markdown(), flush=True)

    if not chosen.json:
        print(HEAD)
    with open_session(config) as session, tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter
        if session.device.kind == "cpu":
            clock = time.process_time
            set_threads(1)  # two would wait for one another on a machine with other work
        engine = open_engine(session)
        tell(telemetry(session, engine, Path(folder), chosen.steps, clock))
        tell(checkpoints(session, engine, Path(folder), chosen.steps))
        vanilla = make_plan(replace(load_recipe(chosen.vanilla), changes), 1, session.device)
        other = open_engine(Session(vanilla, session.groups, session.ranks))
        tell(modalities(session, engine, other, chosen.steps, clock))


def open_engine(session: Session) -> Engine:
    model = build_model(session.plan, session.groups, session.device.torch_device)
    return make_engine(model, session.plan, session.groups)


def telemetry(session: Session, engine: Engine, folder: Path, steps: int, clock: Callable[[], float]) -> Row:
    train, batches_of = session.plan.config.train, synthetic_steps(session.plan, session.groups)
    metrics = Metrics(session, engine, (), folder, 0, time.time())
    rows = [PackedRow((Piece(0, 0, n, 0, train.sequence_length + 1),)) for n in range(train.global_batch_size)]

    def told(step: int) -> None:
        batches = batches_of(step)
        metrics.lap("data")
        report = engine.step(batches, RATE, lap=metrics.lap, look=metrics.looks_at(step))
        metrics.step(step, report, Step(batches=batches, rows=rows, after=Position()), RATE)

    def untold(step: int) -> None:
        with without_sums(engine):
            engine.step(batches_of(step), RATE)

    on, off = by_turns(told, untold, steps, clock)
    metrics.close()
    # A look comes seldom: what it adds to a step is spread over the steps between two.
    looks = [seconds for step, seconds in enumerate(on, WARM_UP) if metrics.looks_at(step)]
    pairs = [(a, b) for step, (a, b) in enumerate(zip(on, off, strict=True), WARM_UP) if not metrics.looks_at(step)]
    plain = statistics.median(b for _, b in pairs)
    extra = statistics.median(looks) - statistics.median(a for a, _ in pairs) if looks else 0.0
    ratio = statistics.median(a / b for a, b in pairs) + extra / session.plan.config.telemetry.every / plain
    return Row(
        part="telemetry on / off", ours=f"{ratio * plain:.4g} s", peer=f"{plain:.4g} s",
        ratio=ratio, wanted="≤ 1.02", ok=ratio <= 1.02, seconds={"on": on, "off": off},
        spread=spread_of([a / b for a, b in pairs]),
    )  # fmt: skip


@contextmanager
def without_sums(engine: Engine) -> Iterator[None]:
    """The routers do not count: with no look to come, they would not have to."""
    sums = [router.sums for router in routers(engine.model)]
    for one in sums:
        one.add = one.add_balance = lambda *_: None  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for one in sums:
            del one.add, one.add_balance


def checkpoints(session: Session, engine: Engine, folder: Path, steps: int) -> Row:
    plan, batches_of = session.plan, synthetic_steps(session.plan, session.groups)
    pieces = find_pieces(engine.model, plan.moe)
    (folder / "checkpoints").mkdir()
    saver = Saver(Shelf(folder / "checkpoints"), pieces, None, keep=2, versions=find_versions())

    def saved(step: int) -> None:
        engine.step(batches_of(step), RATE)
        saver.write(saver.snapshot(step, engine.state(), {"step": step}, {"resolved.toml": dump(plan.config)}))

    def untouched(step: int) -> None:
        engine.step(batches_of(step), RATE)

    with_saves, without = by_turns(saved, untouched, steps, time.perf_counter, at_once=SAVED_AT_ONCE, after=saver.wait)
    one = sum(without) / len(without)
    stall = sum(with_saves) / len(with_saves) - one
    return Row(
        part="checkpoint each step: stall / step", ours=f"{stall:.4g} s", peer=f"{one:.4g} s",
        ratio=stall / one, wanted="≤ 1", ok=stall <= one, seconds={"saved": with_saves, "not": without},
        spread=spread_of([(a - one) / one for a in with_saves]),
    )  # fmt: skip


def modalities(session: Session, engine: Engine, other: Engine, steps: int, clock: Callable[[], float]) -> Row:
    batches_of = synthetic_steps(session.plan, session.groups)
    ours, peer = by_turns(
        lambda step: engine.step(batches_of(step), RATE), lambda step: other.step(batches_of(step), RATE), steps, clock
    )
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        part="MAMoE / vanilla MoE", ours=f"{statistics.median(ours):.4g} s", peer=f"{statistics.median(peer):.4g} s",
        ratio=ratio, wanted="≤ 1.05", ok=ratio <= 1.05, seconds={"mamoe": ours, "vanilla": peer},
        spread=spread_of(ratios),
    )  # fmt: skip


def by_turns(
    first: Timed, second: Timed, steps: int, clock: Callable[[], float], *, at_once: int = 1,
    after: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Seconds of `steps` steps of each kind, so many `at_once`; what comes `after` these is not timed."""
    for take in (first, second):
        for step in range(WARM_UP):
            take(step)
        after()
    seconds: tuple[list[float], list[float]] = ([], [])
    for start in range(WARM_UP, WARM_UP + steps, at_once):
        turns = list(zip((first, second), seconds, strict=True))
        for take, kept in turns if start // at_once % 2 else reversed(turns):
            gc.collect()
            for step in range(start, start + at_once):
                began = clock()
                take(step)
                kept.append(clock() - began)
            after()
        say("%d of %d, %.3g s and %.3g s", start + at_once - WARM_UP, steps, seconds[0][-1], seconds[1][-1])
    return seconds


if __name__ == "__main__":
    run_command(main)
