"""How far a long loop has come: `for row in progress(rows, "fit units", "utterance"): ...`.

Rank 0 shows a bar on a terminal, or logs a line every ten seconds and one at the end where there is none (a batch job's
output file). Other ranks show nothing. The items pass through unchanged on every rank.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar, overload

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
