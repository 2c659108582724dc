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

    def to_markdown(self) -> str:
        verdict = "" if self.ok is None else "ok" if self.ok else "MISSED"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return "| " + " | ".join((self.part, self.ours, self.peer, ratio, self.wanted, verdict)) + " |"


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
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["peer"], strict=True))
    mine, other = (f"{amount[0] / statistics.median(kept):,.3g} {amount[1]}/s" for kept in times.values())
    judged: dict[str, Any] = {} if wanted is None else {"wanted": f"≥ {wanted:g}", "ok": ratio >= wanted}
    return Row(part=part, ours=mine, peer=other, ratio=ratio, seconds=times, **judged)


def fresh(path: Path) -> Iterator[Path]:
    """path-0, path-1, ...: a job that is done is not done twice."""
    number = 0
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def require_equal(*paths: Path) -> None:
    first, *rest = (path.read_bytes() for path in paths)
    assert all(data == first for data in rest), f"what was made differs: {', '.join(map(str, paths))}"
