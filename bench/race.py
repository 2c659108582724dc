"""Two ways to one result, by turns, and a line of a table about them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_most.runtime import get_logger

HEAD = "| part | ours | peer | ratio | wanted | verdict |\n|---|---|---|---|---|---|"
say = get_logger(__name__).info


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; a part without `ok` is told, not judged."""

    part: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    wanted: str = ""
    ok: bool | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each round; in the JSON only."""
    spread: float | None = None
    """Of the rounds' ratios; in the JSON only, for the gate."""

    def to_markdown(self) -> str:
        verdict = "" if self.ok is None else "ok" if self.ok else "MISSED"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}" if self.ratio >= 0.1 else f"{self.ratio:.3f}"
        return "| " + " | ".join((self.part, self.ours, self.peer, ratio, self.wanted, verdict)) + " |"


def spread_of(ratios: list[float]) -> float | None:
    """Half of what lies between the quartiles; of one round there is none."""
    if len(ratios) < 2:
        return None
    quarter, _, three = statistics.quantiles(ratios, n=4, method="inclusive")
    return (three - quarter) / 2


Contender = Callable[[], Callable[[], object]]
"""Sets the stage anew for a round, which is not timed, and returns what is. That may return seconds of its own."""


def race(
    part: str,
    ours: Contender,
    peer: Contender,
    *,
    rounds: int,
    amount: tuple[float, str],
    wanted: float | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Row:
    """`amount`: how much is done in a round, and of what. The ratio is the median over rounds of peer by ours."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds):
        for name, contender in (("ours", ours), ("peer", peer)):
            timed = contender()
            gc.collect()
            start = clock()
            elsewhere = timed()
            times[name].append(elsewhere if isinstance(elsewhere, float) else clock() - start)
        say("%s: round %d of %d, %.3g s and %.3g s", part, number + 1, rounds, times["ours"][-1], times["peer"][-1])
    ratios = [b / a for a, b in zip(times["ours"], times["peer"], strict=True)]
    ratio = statistics.median(ratios)
    mine, other = (f"{amount[0] / statistics.median(kept):,.3g} {amount[1]}/s" for kept in times.values())
    judged: dict[str, Any] = {} if wanted is None else {"wanted": f"≥ {wanted:g}", "ok": ratio >= wanted}
    return Row(part=part, ours=mine, peer=other, ratio=ratio, spread=spread_of(ratios), seconds=times, **judged)


def cost(
    part: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    rounds: int,
    wanted: float,
    clock: Callable[[], float] = time.process_time,
    unit: float = 1.0,
) -> Row:
    """What ours takes for what the peer takes, by turns, each first every other time. `unit`: how often ours is done in
    what the peer does.
    """
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    both = (("ours", ours, unit), ("peer", peer, 1.0))
    for _, work, _ in both:
        work()  # the first time something is made that stays
    gc.collect()
    gc.freeze()  # collecting again what stays took longer than a short round
    for number in range(rounds):
        for name, work, often in both if number % 2 else reversed(both):
            gc.collect()
            start = clock()
            work()
            times[name].append((clock() - start) * often)
        say("%s: round %d of %d, %.3g s and %.3g s", part, number + 1, rounds, times["ours"][-1], times["peer"][-1])
    gc.unfreeze()
    ratios = [a / b for a, b in zip(times["ours"], times["peer"], strict=True)]
    ratio = statistics.median(ratios)
    mine, other = (f"{statistics.median(kept):.3g} s" for kept in times.values())
    return Row(
        part=part, ours=mine, peer=other, ratio=ratio, spread=spread_of(ratios),
        wanted=f"≤ {wanted:g}", ok=ratio <= wanted, seconds=times,
    )  # fmt: skip


def fresh(path: Path) -> Iterator[Path]:
    """path-0, path-1, ...: a job that is done is not done twice."""
    number = 0
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def require_equal(*paths: Path) -> None:
    first, *rest = (path.read_bytes() for path in paths)
    assert all(data == first for data in rest), f"what was made differs: {', '.join(map(str, paths))}"
