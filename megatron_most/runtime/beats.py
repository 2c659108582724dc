"""How ranks hear what the others do: each puts its beat into the store, rank 0 reads all of them and judges.

The others read rank 0's alone, lest it stand still itself and with it the only judge; a thousand ranks that all read
a thousand beats would be too much for one store.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from megatron_most.runtime.judge import Judge, Pace, Verdict
from megatron_most.runtime.launch import Launch
from megatron_most.runtime.log import get_logger
from megatron_most.runtime.process import kill_if_here, this_process
from megatron_most.runtime.pulse import Beat, Pulse

if TYPE_CHECKING:
    from torch.distributed import Store

LEAST_S, MOST_S = 0.5, 5.0  # between two beats; a twentieth of the limit, in these bounds
_log = get_logger(__name__)


class Beats:
    """One rank's part. Used by one thread, with that thread's connection to the store."""

    def __init__(self, launch: Launch, pulse: Pulse, limit_s: float) -> None:
        self.limit_s = limit_s
        self._launch, self._pulse, self._process = launch, pulse, this_process()
        self._every_s = min(MOST_S, max(LEAST_S, limit_s / 20))
        self._looked = 0.0
        self._serial = 0
        self._read = range(launch.world_size) if launch.rank == 0 else range(1)
        self._judge = Judge(limit_s, self._read, are_all=launch.rank == 0)
        self._pace = Pace(launch.world_size)
        self.heard: dict[int, Beat] = {}

    def exchange(self, store: Store) -> Verdict | None:
        """To be called often; it does something every now and then."""
        now = time.monotonic()
        passed = now - self._looked
        if passed < self._every_s:
            return None
        self._looked = now
        self._serial += 1
        store.set(f"beat/{self._launch.rank}", self._pulse.beat(self._serial, self._process).to_json())
        self._hear(store)
        if self._launch.rank == 0:
            for line in self._pace.look(self.heard, now):
                _log.warning("%s", line)
        return self._judge.look(self.heard, min(passed, 2 * self._every_s))

    def accuse(self, store: Store, verdict: Verdict) -> None:
        """Tell all ranks to end, and which of them are to show their stacks."""
        store.set("hang", json.dumps([verdict.are_silent, verdict.culprits]))
        store.compare_set("failed", "", f"{verdict.words}; nothing has gone on for more than {self.limit_s:g} s")

    def sentence(self, store: Store) -> tuple[bool, list[int]]:
        """(whether they are silent, ranks); none where the job ends for another reason than a hang."""
        if not store.check(["hang"]):
            return False, []
        are_silent, culprits = json.loads(store.get("hang"))
        return are_silent, culprits

    def kill_those_here(self, store: Store, ranks: list[int]) -> None:
        """Ranks that stand still on this machine: the scheduler would do it, where there is one."""
        for rank in ranks:
            if rank != self._launch.rank and (beat := self._beat_of(store, rank)) and kill_if_here(beat.process):
                _log.warning("killed rank %d, process %s, which stood still", rank, beat.process["process"])

    def _beat_of(self, store: Store, rank: int) -> Beat | None:
        if rank not in self.heard and store.check([f"beat/{rank}"]):
            self.heard[rank] = Beat.from_json(store.get(f"beat/{rank}"))
        return self.heard.get(rank)

    def _hear(self, store: Store) -> None:
        """A key that is not there yet would be waited for."""
        known = [rank for rank in self._read if rank in self.heard]
        new = [rank for rank in self._read if rank not in self.heard and store.check([f"beat/{rank}"])]
        there = known + new
        texts = store.multi_get([f"beat/{rank}" for rank in there])
        self.heard.update({rank: Beat.from_json(text) for rank, text in zip(there, texts, strict=True)})
