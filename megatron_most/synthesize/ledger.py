"""What a paid writer was asked and has answered: the budget and the cache, in one append-only file.

Before a request is sent its worst case is put down, and it is sent only where that still fits; when the reply is there,
its true cost and its text are put down in one line. So the budget holds whatever number of threads ask, and a reply
that was paid for is never asked for again. A request without a second line (the process was killed) counts as its
worst case. Requests are known by the hash of their bodies; nothing else of them, and no key, is in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.runtime import claim, writing
from megatron_most.synthesize.writer import WriterFailed

REPLIES = "replies.jsonl"
_AGAIN = ", then run the same command again: it goes on from there"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be used, over all runs of this work together; not set = no limit."""

    requests: int | None = None
    tokens: int | None = None
    """Of prompts and replies together."""
    money: float | None = None
    """In the currency of the prices."""
    price_in: float = 0.0
    """For a million tokens of prompts."""
    price_out: float = 0.0
    """For a million tokens of replies."""

    def check(self) -> None:
        for name in ("requests", "tokens", "money", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e15:
                raise DataError(f"--budget.{name.replace('_', '-')} {value}: not an amount; give 0 or more")
        if self.money is not None and not (self.price_in or self.price_out):
            raise DataError("--budget.money without prices: give --budget.price-in and --budget.price-out too")


@dataclass(frozen=True)
class Cost:
    """Requests and tokens; money follows from them."""

    requests: int = 0
    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.requests + other.requests, self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.requests - other.requests, self.prompt - other.prompt, self.completion - other.completion)

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


class BudgetSpent(DataError):
    """No further request fits."""


@contextlib.contextmanager
def open_ledger(folder: Path, budget: Budget, counted: str = "tokens") -> Iterator[Ledger]:
    """Hold the ledger of a folder, which is made where it is not there. Others are refused meanwhile. `counted`: what
    a request is paid by, in words.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder, _AGAIN):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claim(folder))
            ledger = Ledger(folder, budget, counted)
        stack.callback(ledger.close)
        yield ledger


class Ledger:
    """The file in a folder of its own, open for one process at a time: `with open_ledger(folder, budget) as ledger`."""

    def __init__(self, folder: Path, budget: Budget, counted: str = "tokens") -> None:
        budget.check()
        self.path, self._budget, self._counted = folder / REPLIES, budget, counted
        self.spent = Cost()
        """What is sure: finished requests, and the worst case of those that were never finished."""
        self._open: dict[int, Cost] = {}
        self._replies: dict[str, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._file = open(self.path, "a+b")
        self._read()
        self._next = self._last + 1

    def close(self) -> None:
        self._file.close()

    def find(self, key: str) -> dict[str, Any] | None:
        """The reply to a request, if it was paid for already."""
        with self._changed:
            if key not in self._replies:
                return None
            start, length = self._replies[key]
            line = json.loads(os.pread(self._file.fileno(), length, start))
            return line["reply"]  # type: ignore[no-any-return]

    def reserve(self, key: str, most: Cost, stopped: threading.Event) -> int:
        """Put a request down by its worst case. Waits where others have to come back first; raises BudgetSpent where
        it would not fit even then, WriterFailed where nobody waits for it any more.
        """
        with self._changed:
            while not self._fits(self._all() + most):
                if not self._fits(self.spent + most) or not self._open:
                    raise BudgetSpent(self._told_spent(most))
                self._changed.wait(0.5)
                if stopped.is_set():
                    raise WriterFailed("stopped")
            number = self._next
            self._next += 1
            self._write({"n": number, "key": key, "most": [most.prompt, most.completion]})
            self._open[number] = most
            return number

    def settle(self, number: int, key: str, used: Cost, reply: dict[str, Any] | None) -> None:
        """Put down what a request has cost, and its reply, if it has one worth keeping."""
        with self._changed:
            start = self._file.seek(0, os.SEEK_END)
            line = {"n": number, "key": key, "used": [used.prompt, used.completion], "reply": reply}
            length = self._write(line)
            del self._open[number]
            self.spent += used
            if reply is not None:
                self._replies[key] = (start, length)
            self._changed.notify_all()

    def told(self) -> str:
        """What was used so far, in words."""
        words = f"{self.spent.requests:,} requests, {self.spent.tokens:,} {self._counted}"
        if self._budget.price_in or self._budget.price_out:
            words += f", {float(self._money(self.spent)):.4f} of money"
        return words

    def _all(self) -> Cost:
        return sum(self._open.values(), start=self.spent)

    def _fits(self, cost: Cost) -> bool:
        budget = self._budget
        return (
            (budget.requests is None or cost.requests <= budget.requests)
            and (budget.tokens is None or cost.tokens <= budget.tokens)
            and (budget.money is None or self._money(cost) <= Fraction(str(budget.money)))
        )

    def _money(self, cost: Cost) -> Fraction:
        """Exact: a price is the decimal number that was typed."""
        prices = Fraction(str(self._budget.price_in)), Fraction(str(self._budget.price_out))
        return (cost.prompt * prices[0] + cost.completion * prices[1]) / 1_000_000

    def _told_spent(self, most: Cost) -> str:
        limits = {"requests": self._budget.requests, self._counted: self._budget.tokens, "money": self._budget.money}
        given = ", ".join(f"--budget.{name} {value}" for name, value in limits.items() if value is not None)
        return (
            f"the budget ({given}) is used up: {self.told()}, and the next request may take {most.tokens:,} "
            f"{self._counted}; give a larger one and run the same command again: replies that were paid for are kept"
        )

    def _write(self, line: dict[str, Any]) -> int:
        data = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with writing(self.path.parent, _AGAIN):
            self._file.write(data)
            self._file.flush()
            os.fdatasync(self._file.fileno())
        return len(data)

    def _read(self) -> None:
        self._file.seek(0)
        at, self._last = 0, -1
        opened: dict[int, Cost] = {}
        for count, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):  # torn by a kill
                self._file.truncate(at)
                break
            try:
                line = json.loads(raw)
                number = line["n"]
                if "most" in line:
                    opened[number] = Cost(1, *line["most"])
                else:
                    del opened[number]
                    self.spent += Cost(1, *line["used"])
                    if line["reply"] is not None:
                        self._replies[line["key"]] = (at, len(raw))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{self.path}:{count}: damaged, so what was spent is not known; remove the file to start with "
                    "nothing spent and no replies kept"
                ) from error
            self._last = max(self._last, number)
            at += len(raw)
        self.spent = sum(opened.values(), start=self.spent)
