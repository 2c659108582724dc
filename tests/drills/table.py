"""The fault drills and their controls, each a row of a table."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

from tests.drills import changes, damage, hangs, jobs, kills, numbers
from tests.drills.bench import Bench, Drill, Failed, NotInjected

DRILLS: dict[str, Drill] = {
    drill.name: drill
    for drill in (*kills.DRILLS, *damage.DRILLS, *jobs.DRILLS, *hangs.DRILLS, *numbers.DRILLS, *changes.DRILLS)
}
COLUMNS = ("drill", "is", "again", "s", "injected", "what happened")


@dataclass(frozen=True)
class Row:
    """One drill, or one control, done."""

    name: str
    is_good: bool
    """A drill was passed; a control failed, as it must."""
    injected: str
    happened: str
    again: int | None
    seconds: float

    def __str__(self) -> str:
        again = "" if self.again is None else str(self.again)
        cells = (f"{self.name:<18}", "ok" if self.is_good else "FAILED", f"{again:>5}", f"{self.seconds:5.1f}")
        return f"| {' | '.join((*cells, self.injected, self.happened))} |"


def run_drill(drill: Drill, bench: Bench) -> Row:
    """With all protections on."""
    return _run(drill, bench, is_control=False)


def run_control(drill: Drill, bench: Bench) -> Row:
    """With the drill's protection off: it must fail, or it proves nothing."""
    return _run(drill, bench, is_control=True)


def _run(drill: Drill, bench: Bench, is_control: bool) -> Row:
    start = time.monotonic()
    again, injected = None, f"off: {drill.protection}" if is_control else ""
    bench.off = (drill.off,) if is_control else ()
    try:
        outcome = drill.body(bench)
        is_good, happened, again = not is_control, outcome.happened, outcome.again
        if is_control:
            happened = "passed, though its protection is off: it proves nothing"
        else:
            injected = outcome.injected
    except Failed as failure:
        is_good, happened = is_control, str(failure)
    except NotInjected as failure:
        is_good, happened = False, f"the harm was not done: {failure}"
    except Exception as error:  # the others are still worth a try
        traceback.print_exc()
        is_good, happened = False, f"the drill itself is broken: {type(error).__name__}: {error}"
    finally:
        bench.off = ()
        bench.clean_up()
    return Row(drill.name, is_good, injected, happened.replace("\n", " "), again, time.monotonic() - start)
