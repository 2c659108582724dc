"""What the cache and the batch are worth in generation: a cached token beside the whole row, many rows beside one.

    .venv/bin/python bench/generate.py --config most-tiny --past 1000 --rows 8

Both are taken by turns, on one thread of a CPU. Seconds are by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from race import HEAD, Row, spread_of

from megatron_most.config import Plan, load_recipe, replace
from megatron_most.data import Document, pack_rows, synthetic_document
from megatron_most.engine import open_session
from megatron_most.generate import CoreModel, Prompt, Settings, generate
from megatron_most.model import MostModel, build_model
from megatron_most.runtime import run_command, set_threads


class Endless(CoreModel):
    """Never says EOS, so that all rows are of one length."""

    def step(self, *args: Any) -> torch.Tensor:
        logits_BV = super().step(*args)
        logits_BV[:, self.tokens.eos_id] = float("-inf")
        return logits_BV


def measure(model: MostModel, plan: Plan, past: int, rows: int, new: int, rounds: int) -> Iterator[Row]:
    """A token after `past` ones, by the cache and by the whole row; tokens a second of `rows` and of 1."""
    cached = Endless(model)
    prompt = _prompt(plan, past)
    state = cached.open(1, past + 21 * rounds + 1)
    ids, tags = torch.tensor([prompt.ids]), torch.tensor([prompt.tags])
    cached.step(state, ids, tags, torch.tensor([past]))
    one = torch.ones(1, dtype=torch.long)
    whole = Document([*prompt.ids, plan.tokens.eos_id], [*prompt.tags, 0], [False] * (past + 1))
    batch = pack_rows([[whole]], past, plan.tokens)
    times = []
    for _ in range(rounds):
        step_s = _seconds(lambda: cached.step(state, ids[:, -1:], tags[:, -1:], one), 20)
        with torch.no_grad():  # and in eval mode, as generation has it until the state is closed
            whole_s = _seconds(lambda: model(batch, with_labels=False), 3)
        times.append((step_s, whole_s))
    state.close()
    rates = [(_rate(cached, plan, 1, new), _rate(cached, plan, rows, new)) for _ in range(rounds)]
    steps, wholes = ([pair[way] for pair in times] for way in (0, 1))
    yield _row(
        f"generation: a token after {past}, cached", [whole / step for step, whole in times], 5.0,
        f"{1e3 * median(steps):.3g} ms", f"{1e3 * median(wholes):.3g} ms", {"ours": steps, "peer": wholes},
    )  # fmt: skip
    ones, many = ([pair[way] for pair in rates] for way in (0, 1))
    yield _row(
        f"generation: {rows} rows at once", [more / one for one, more in rates], 3.0,
        f"{median(many):.4g} tokens/s", f"{median(ones):.4g} tokens/s", {},
    )  # fmt: skip


def _row(part: str, ratios: list[float], wanted: float, ours: str, peer: str, seconds: dict[str, list[float]]) -> Row:
    ratio = median(ratios)
    return Row(
        part=part, ours=ours, peer=peer, ratio=ratio, wanted=f"≥ {wanted:g}", ok=ratio >= wanted, seconds=seconds,
        spread=spread_of(ratios),
    )  # fmt: skip


def _rate(model: CoreModel, plan: Plan, count: int, new: int) -> float:
    """Tokens a second of `count` answers at once."""
    prompts = [_prompt(plan, 40 + 3 * row) for row in range(count)]
    settings = Settings(max_new_tokens=new, mode="text-only", temperature=1.0)
    start = time.perf_counter()
    answers = generate(model, prompts, settings)
    return sum(len(answer.ids) for answer in answers) / (time.perf_counter() - start)


def _prompt(plan: Plan, size: int) -> Prompt:
    return Prompt.of(synthetic_document(plan.tokens, "mixed", size, 1, size).ids, plan.tokens)


def _seconds(act: Callable[[], object], times: int) -> float:
    act()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", default="most-tiny")
    parser.add_argument("--past", type=int, default=1000, help="tokens before the one that is timed")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--new", type=int, default=100, help="tokens of an answer at most")
    parser.add_argument("--rounds", type=int, default=5, help="what is compared by turns, so often: medians")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    with open_session(replace(load_recipe(chosen.config), {"device": "cpu"})) as session:
        set_threads(1)  # so small a model spends its time waiting for threads
        model = build_model(session.plan, session.groups)
        if not chosen.json:
            print(HEAD, flush=True)
        for row in measure(model, session.plan, chosen.past, chosen.rows, chosen.new, chosen.rounds):
            print(json.dumps(vars(row)) if chosen.json else row.to_markdown(), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
