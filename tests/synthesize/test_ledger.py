"""The ledger of a paid writer: the budget holds to the last token under threads and kills, replies are kept."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.synthesize.ledger import REPLIES, Budget, BudgetSpent, Cost, Ledger, open_ledger

NEVER = threading.Event()


def spend(ledger: Ledger, threads: int, most: Cost, used: list[Cost], most_seen: list[Cost]) -> int:
    """Requests from many threads until none fits; how many were made."""
    draw = random.Random(0)

    def run(number: int) -> bool:
        try:
            ticket = ledger.reserve(f"key {number}", most, NEVER)
        except BudgetSpent:
            return False
        with ledger._changed:
            most_seen.append(ledger._all())
        if draw.random() < 0.3:
            threading.Event().wait(0.001)
        ledger.settle(ticket, f"key {number}", used[number % len(used)], {"content": str(number)})
        return True

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(300)))


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(requests=57), lambda cost: cost.requests <= 57),
        (Budget(tokens=9_000), lambda cost: cost.tokens <= 9_000),
        (Budget(money=0.07, price_in=3.0, price_out=15.0), lambda c: 3 * c.prompt + 15 * c.completion <= 70_000),
    ],
    ids=["requests", "tokens", "money"],
)
def test_no_moment_is_over_budget_whatever_the_threads(tmp_path: Path, budget: Budget, limit) -> None:
    seen: list[Cost] = []
    used = [Cost(1, 40, 60), Cost(1, 90, 10), Cost(1, 10, 200)]
    with open_ledger(tmp_path, budget) as ledger:
        made = spend(ledger, 16, Cost(1, 100, 200), used, seen)
        assert all(map(limit, seen)) and limit(ledger.spent)
        # And it is used up: what is left is less than one request may take.
        assert not limit(ledger.spent + Cost(1, 100, 200))
    assert 10 < made < 300
    if budget.requests:
        assert made == 57


def test_what_was_spent_and_answered_is_known_to_the_next_process(tmp_path: Path) -> None:
    with open_ledger(tmp_path, Budget()) as ledger:
        for n in range(3):
            ledger.settle(ledger.reserve(f"key {n}", Cost(1, 100, 200), NEVER), f"key {n}", Cost(1, 10, n), {"n": n})
        ledger.settle(ledger.reserve("failed", Cost(1, 100, 200), NEVER), "failed", Cost(1), None)
        spent = ledger.spent
    with open_ledger(tmp_path, Budget()) as ledger:
        assert ledger.spent == spent == Cost(4, 30, 3)
        assert [ledger.find(f"key {n}") for n in range(3)] == [{"n": n} for n in range(3)]
        assert ledger.find("failed") is None and ledger.find("key 9") is None


def test_a_request_that_nobody_finished_counts_as_its_worst_case(tmp_path: Path) -> None:
    with open_ledger(tmp_path, Budget()) as ledger:
        ledger.reserve("killed", Cost(1, 100, 200), NEVER)
    with open(tmp_path / REPLIES, "ab") as file:
        file.write(b'{"n": 1, "key": "torn')
    with open_ledger(tmp_path, Budget(tokens=300)) as ledger:
        assert ledger.spent == Cost(1, 100, 200)
        with pytest.raises(BudgetSpent, match="--budget.tokens 300"):
            ledger.reserve("next", Cost(1, 1, 0), NEVER)
    with open_ledger(tmp_path, Budget(tokens=301)) as ledger:
        assert ledger.reserve("next", Cost(1, 1, 0), NEVER) == 1
    lines = (tmp_path / REPLIES).read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1]


def test_a_request_waits_for_those_whose_worst_case_is_in_its_way(tmp_path: Path) -> None:
    with open_ledger(tmp_path, Budget(tokens=300)) as ledger:
        first = ledger.reserve("a", Cost(1, 100, 150), NEVER)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ledger.reserve, "b", Cost(1, 100, 150), NEVER)
            assert not second.done()
            ledger.settle(first, "a", Cost(1, 20, 20), None)
            assert second.result(timeout=60) == 1


def test_a_damaged_ledger_is_refused_by_its_line(tmp_path: Path) -> None:
    with open_ledger(tmp_path, Budget()) as ledger:
        for _ in range(3):
            ledger.settle(ledger.reserve("k", Cost(1), NEVER), "k", Cost(1), None)
    lines = (tmp_path / REPLIES).read_bytes().splitlines(keepends=True)
    lines[2] = b"{]\n"
    (tmp_path / REPLIES).write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"replies\.jsonl:3: damaged"), open_ledger(tmp_path, Budget()):
        pass


def test_two_processes_do_not_share_a_ledger(tmp_path: Path) -> None:
    with open_ledger(tmp_path, Budget()), pytest.raises(DataError, match="is writing here"):
        with open_ledger(tmp_path, Budget()):
            pass


@pytest.mark.parametrize(
    ("budget", "named"),
    [(Budget(tokens=-1), "--budget.tokens -1"), (Budget(money=3.0), "--budget.price-in"),
     (Budget(price_out=float("nan")), "--budget.price-out nan")],
    ids=["negative", "no prices", "nan"],
)  # fmt: skip
def test_a_budget_that_is_none_is_refused_by_name(tmp_path: Path, budget: Budget, named: str) -> None:
    with pytest.raises(DataError, match=named), open_ledger(tmp_path, budget):
        pass
