"""How far a long loop has come: `for row in progress(rows, "fit units", "utterance"): ...`, or, where the work is not
counted in items, `with Meter(total, "units", describe) as meter: meter.advance(hours)`.

Rank 0 shows a bar on a terminal, or logs a line every ten seconds and one at the end where there is none (a batch job's
output file). Other ranks show nothing. The items pass through unchanged on every rank.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from megatron_most.runtime.log import get_logger, get_rank

T = TypeVar("T")
_EVERY_S = 10.0
_log = get_logger(__name__)


@overload
def progress(items: int, description: str, unit: str = ...) -> Iterator[int]: ...
@overload
def progress(items: Iterable[T], description: str, unit: str = ...) -> Iterator[T]: ...
def progress(items: Iterable[T] | int, description: str, unit: str = "item") -> Iterator[T] | Iterator[int]:
    """Pass the items on and show how many are done. A number n stands for range(n)."""
    if isinstance(items, int):
        return _shown(range(items), description, unit)
    return _shown(items, description, unit)


def _shown(items: Iterable[T], description: str, unit: str) -> Iterator[T]:
    total = len(items) if isinstance(items, Sized) else None
    if get_rank() != 0:
        return iter(items)
    return _bar(items, total, description, unit) if sys.stderr.isatty() else _lines(items, total, description, unit)


def _lines(items: Iterable[T], total: int | None, description: str, unit: str) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0

    def line() -> str:
        of = "" if total is None else f"/{total}"
        return f"{description}: {done}{of} {unit}, {done / max(time.monotonic() - start, 1e-9):.3g} {unit}/s"

    try:
        for item in items:
            yield item
            done += 1
            if time.monotonic() - last >= _EVERY_S:
                last = time.monotonic()
                _log.info("%s", line())
    finally:  # also when the loop that uses us breaks or fails: how far it came is what one wants to know then
        _log.info("%s, ended after %.1f s", line(), time.monotonic() - start)


def _bar(items: Iterable[T], total: int | None, description: str, unit: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield from bar.track(items, total=total, description=description)


class Meter:
    """A bar over an amount (hours, bytes, tokens). `describe(done, total, seconds)` says it in the field's own words.

    `seconds` count only what this process did: work found done at the start is given as `done`.
    """

    def __init__(
        self, total: float, description: str, describe: Callable[[float, float, float], str], done: float = 0.0
    ) -> None:
        self._total, self._description, self._describe = total, description, describe
        self._found = self._done = done
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        if get_rank() == 0 and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total, completed=self._done, words="")
        return self

    def advance(self, amount: float) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, words=self.words())
        elif time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            _log.info("%s: %s, %s left", self._description, self.words(), self._left())

    def words(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        words = self._describe(self._done, self._total, seconds)
        return f"{words}, {self._left()} left" if self._bar is not None else words

    def _left(self) -> str:
        new = self._done - self._found
        if new <= 0 or self._done >= self._total:
            return "0:00" if self._done >= self._total else "?"
        seconds = (time.monotonic() - self._start) * (self._total - self._done) / new
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        words = self._describe(self._done, self._total, max(time.monotonic() - self._start, 1e-9))
        if self._bar is not None:
            self._bar.stop()
        _log.info("%s: %s, ended after %.1f s", self._description, words, time.monotonic() - self._start)
